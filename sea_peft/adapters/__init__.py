"""Adapters: families, the registry that makes units of them, and the bank that holds and gates the units.

Importing this registers every family, in the order in which units of one site act: affine first, since it
computes its norm anew, then those that act on whatever they are given.
"""

from sea_peft.adapters import affine  # isort: skip
from sea_peft.adapters import lora  # isort: skip
from sea_peft.adapters import lora_variants  # isort: skip
from sea_peft.adapters import conv_adapter  # isort: skip
from sea_peft.adapters import tsa  # isort: skip
from sea_peft.adapters import bias  # isort: skip
from sea_peft.adapters import ssf  # isort: skip
from sea_peft.adapters import ia3  # isort: skip
from sea_peft.adapters import adaptformer  # isort: skip
from sea_peft.adapters import houlsby  # isort: skip
from sea_peft.adapters import compacter  # isort: skip
from sea_peft.adapters import convnext  # isort: skip
from sea_peft.adapters import black_box  # isort: skip
from sea_peft.adapters import full  # isort: skip
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
    "adaptformer",
    "affine",
    "bias",
    "black_box",
    "compacter",
    "conv_adapter",
    "convnext",
    "families",
    "full",
    "houlsby",
    "ia3",
    "lora",
    "lora_variants",
    "register",
    "ssf",
    "total_cost",
    "tsa",
    "units_for",
]
