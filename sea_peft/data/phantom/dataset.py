"""Phantom cases and data sets: rendered in memory when first asked for, always the same for a number."""

from __future__ import annotations

import difflib
import zlib
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sea_peft.data.cases import Case, Dataset
from sea_peft.data.phantom.anatomy import draw_anatomy
from sea_peft.data.phantom.patient import STRUCTURES
from sea_peft.data.phantom.sampling import label_map, sample
from sea_peft.data.phantom.targets import SOURCE, TARGETS, Target
from sea_peft.data.volumes import Volume
from sea_peft.errors import DataError

SUPPORT_CASES, TEST_CASES = 12, 20
# Patients are numbered, and a number is one patient in every target: the pretraining's lie below these
FIRST_SUPPORT, FIRST_TEST = 1000, 2000


class PhantomCase(Case):
    """One phantom patient as one target's scanner sees it."""

    def __init__(self, target: Target, number: int) -> None:
        self.id = f"{target.name}_{number:04d}"
        self.channels = (target.acquisition.channel,)
        self.target = target
        self.number = number

    def image(self, channel: str) -> Volume:
        if channel not in self.channels:
            raise DataError(
                f"case {self.id}: channel {channel} is missing (it has {', '.join(self.channels)}); "
                "choose another channel"
            )
        return self._volumes[0]

    def label(self) -> Volume:
        return self._volumes[1]

    @cached_property
    def _volumes(self) -> tuple[Volume, Volume]:
        image, label, affine = render(self.target, self.number)
        image.flags.writeable = label.flags.writeable = False  # shared by everyone who asks
        return Volume(image, affine), Volume(label, affine)


def render(target: Target, number: int) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.float64]]:
    """Patient `number` as `target` scans and labels it.

    Returns:
        Image int16 `[I, J, K]` (HU, or arbitrary units for MR), label uint8 `[I, J, K]` with the codes of
        `STRUCTURES` (structures that the target does not label are 0), and the affine, voxel to mm in RAS.
    """
    anatomy = draw_anatomy(number, target.build)
    layers = sample(anatomy, target.grid)
    rng = np.random.default_rng([21, number, zlib.crc32(target.name.encode())])
    image = target.acquisition.acquire(layers, target.grid, rng)
    known = np.zeros(len(STRUCTURES) + 1, dtype=np.uint8)
    for code in codes(target):
        known[code] = code
    return image, known[label_map(layers, target.grid.shape)], target.grid.affine


def codes(target: Target) -> tuple[int, ...]:
    """The label codes of the target's labels, in their order."""
    return tuple(1 + STRUCTURES.index(label) for label in target.labels)


def phantom_target(name: str) -> Target:
    """The target called `name`, or the source. Raises `DataError` with the names there are."""
    if name == SOURCE.name:
        return SOURCE
    if name in TARGETS:
        return TARGETS[name]
    near = difflib.get_close_matches(name, TARGETS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise DataError(f"no phantom is called {name}; {hint}There are {', '.join([SOURCE.name, *TARGETS])}")


def phantom_dataset(
    name: str, support: int = SUPPORT_CASES, test: int = TEST_CASES, resolution: float = 1.0
) -> Dataset:
    """An embedded target as a data set of the layout "phantom".

    Args:
        name: `source`, or a name in `TARGETS`.
        support: Labelled cases to choose shots from.
        test: Cases to score on.
        resolution: Voxels per mm relative to the default grid: 1.5 renders the same patients on 96x96x72
            voxels.

    Raises:
        DataError: There is no phantom of that name.
    """
    target = phantom_target(name)
    if resolution != 1.0:
        target = replace(target, grid=target.grid.refined(resolution))
    return Dataset(
        name=target.name,
        layout="phantom",
        channels=(target.acquisition.channel,),
        labels={label: (code,) for label, code in zip(target.labels, codes(target), strict=True)},
        cases=tuple(PhantomCase(target, FIRST_SUPPORT + i) for i in range(support)),
        test_cases=tuple(PhantomCase(target, FIRST_TEST + i) for i in range(test)),
        codes=frozenset(codes(target)),
    )
