"""Backbones: frozen pretrained networks, their sites and their weights. Importing this
registers every architecture.
"""

from sea_peft.backbones import (  # noqa: F401  (each registers its own)
    dynunet,
    hippodeep,
    linknet,
    mednext,
    meshnet,
    nnunet,
    obelisk,
    segresnet,
    swinunetr,
    unet,
    unet3d,
    unetr,
)
from sea_peft.backbones.batching import batch_for_masks
from sea_peft.backbones.limits import Limits
from sea_peft.backbones.registry import Architecture, architecture, architectures, register
from sea_peft.backbones.sites import KINDS, STAGES, Site, find_sites

__all__ = [
    "KINDS",
    "STAGES",
    "Architecture",
    "Limits",
    "Site",
    "architecture",
    "architectures",
    "batch_for_masks",
    "find_sites",
    "register",
]
