"""Adapters: families, the registry that makes units of them, and the bank that holds and gates the units.

Importing this registers every family.
"""

from sea_peft.adapters import (
    adaptformer,
    affine,
    bias,
    black_box,
    compacter,
    conv_adapter,
    convnext,
    full,
    houlsby,
    ia3,
    lora,
    lora_variants,
    ssf,
    tsa,
)
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
