"""The source that the bundled weights were trained on, and targets that each differ for one reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from sea_peft.data.phantom.acquisition import CT, MR, Acquisition
from sea_peft.data.phantom.patient import STRUCTURES, Build
from sea_peft.data.phantom.sampling import Grid
from sea_peft.data.phantom.tissues import LATE_ARTERIAL

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
        "another scanner and protocol: low dose, thick slices, contrast medium drunk and not injected",
        CT(
            enhancement=0.0,
            oral_contrast=200.0,
            noise=28.0,
            noise_blur=6.0,
            slice_thickness=10.0,
            resolution=5.0,
            starvation=20.0,
            cupping=15.0,
        ),
    ),
    Target(
        "sharp-kernel-metal",
        "another reconstruction: bone kernel with its noise, and streaks from spinal screws",
        CT(noise=55.0, noise_blur=1.0, resolution=2.0, sharpening=1.6, metal_streaks=400.0),
        Build(spinal_screws=True),
    ),
    Target(
        "paediatric-ct",
        "other patients: small children, with large liver and kidneys and little fat, at 80 kVp",
        CT(enhancement=1.5, noise=14.0),
        Build(
            scale=(0.56, 0.70),
            fat=(3.0, 8.0),
            organ_scale=(
                ("liver", 1.14),
                ("spleen", 1.1),
                ("right_kidney", 1.15),
                ("left_kidney", 1.15),
                ("pancreas", 1.1),
            ),
        ),
        grid=Grid(shape=(48, 48, 32)),
    ),
    Target(
        "mr-t1",
        "another modality: fat-suppressed T1-weighted MR, with coil shading and Rician noise",
        MR(),
    ),
    Target(
        "novel-organs",
        "other labels: structures that the weights know only as background, on the scanner they know",
        build=Build(organ_scale=(("gallbladder", 1.2), ("duodenum", 1.1))),  # fasting, so both are full
        labels=NOVEL,
    ),
    Target(
        "small-lesions",
        "another disease: small lesions, bright in the late arterial phase; the weights know large dark ones",
        CT(phase=LATE_ARTERIAL),
        Build(lesions=(3, 6), lesion_radius=(9.0, 14.0)),
        labels=("liver_lesion",),
    ),
)

TARGETS: Mapping[str, Target] = MappingProxyType({target.name: target for target in _TARGETS})
