"""Backbones: frozen pretrained networks, their sites and their weights. Importing this registers every architecture."""

from sea_peft.backbones import segresnet, unet
from sea_peft.backbones.registry import Architecture, architecture, architectures, register
from sea_peft.backbones.sites import KINDS, STAGES, Site, find_sites

__all__ = [
    "KINDS",
    "STAGES",
    "Architecture",
    "Site",
    "architecture",
    "architectures",
    "find_sites",
    "register",
    "segresnet",
    "unet",
]
