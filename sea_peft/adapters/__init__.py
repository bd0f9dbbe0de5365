"""Adapters: the families, the registry that makes units of them, and the bank that holds and gates
the units.

Importing this registers every family. A family is a module in this folder, and is found there.
"""

import importlib
import pkgutil

from sea_peft.adapters.adapted import Adapted
from sea_peft.adapters.bank import Bank
from sea_peft.adapters.base import Adapter, CannotMerge
from sea_peft.adapters.head import TargetHead
from sea_peft.adapters.registry import Offer, Unit, families, register, total_cost, units_for

__all__ = [
    "Adapted",
    "Adapter",
    "Bank",
    "CannotMerge",
    "Offer",
    "TargetHead",
    "Unit",
    "families",
    "register",
    "total_cost",
    "units_for",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
