"""Backbones: frozen pretrained networks, their sites and their weights. Importing this registers every architecture."""

from sea_peft.backbones import (
    dynunet,
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
from sea_peft.backbones.limits import Limits
from sea_peft.backbones.registry import Architecture, architecture, architectures, register
from sea_peft.backbones.sites import KINDS, STAGES, Site, find_sites
from sea_peft.backbones.unet3d import mixes_its_batch

__all__ = [
    "KINDS",
    "STAGES",
    "Architecture",
    "Limits",
    "Site",
    "architecture",
    "architectures",
    "dynunet",
    "find_sites",
    "linknet",
    "mednext",
    "meshnet",
    "mixes_its_batch",
    "nnunet",
    "obelisk",
    "register",
    "segresnet",
    "swinunetr",
    "unet",
    "unet3d",
    "unetr",
]
