"""Embedded phantoms: a randomised abdomen, scanners, and named targets, to try everything
offline.
"""

from sea_peft.phantom.dataset import PATIENTS, PhantomCase, phantom_dataset, phantom_target, render
from sea_peft.phantom.targets import LABELS, SOURCE, SOURCES, TARGETS, Target

__all__ = [
    "LABELS",
    "PATIENTS",
    "SOURCE",
    "SOURCES",
    "TARGETS",
    "PhantomCase",
    "Target",
    "phantom_dataset",
    "phantom_target",
    "render",
]
