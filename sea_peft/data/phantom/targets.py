"""The source that the weights of this package were trained on, and the targets that each differ for one reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from sea_peft.data.phantom.acquisition import CT, Acquisition
from sea_peft.data.phantom.anatomy import STRUCTURES, Build
from sea_peft.data.phantom.sampling import Grid

NOVEL = ("gallbladder", "duodenum", "psoas")
SOURCE_LABELS = tuple(name for name in STRUCTURES if name not in NOVEL)
LABELS: Mapping[str, int] = MappingProxyType({name: 1 + STRUCTURES.index(name) for name in SOURCE_LABELS})


@dataclass(frozen=True)
class Target:
    """A world of cases: who is scanned, how, and what is labelled."""

    name: str
    reason: str
    acquisition: Acquisition = field(default_factory=CT)
    build: Build = field(default_factory=Build)
    labels: tuple[str, ...] = SOURCE_LABELS
    grid: Grid = field(default_factory=Grid)


SOURCE = Target("source", "contrast-enhanced CT in the portal venous phase at full dose: what the weights know")

_TARGETS = (
    Target(
        "low-dose-ct",
        "another scanner: a third of the dose, thick slices, no contrast medium",
        CT(
            enhancement=0.0,
            noise=26.0,
            noise_blur=6.0,
            slice_thickness=10.0,
            resolution=4.5,
            starvation=14.0,
            cupping=10.0,
        ),
    ),
)

TARGETS: Mapping[str, Target] = MappingProxyType({target.name: target for target in _TARGETS})
