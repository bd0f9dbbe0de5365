"""Phantom cases and data sets: rendered in memory when first used, always the same for a number."""

import difflib
import re
import zlib
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sea_peft.data.cases import Case, Dataset
from sea_peft.data.volumes import Volume
from sea_peft.errors import DataError
from sea_peft.phantom.sampling import label_map, sample
from sea_peft.phantom.targets import SOURCES, TARGETS, Target

SUPPORT_CASES, TEST_CASES = 12, 12
# Patients are numbered, and a number is the same patient in every target; those of the pretraining
# have lower numbers
FIRST_SUPPORT, FIRST_TEST = 1000, 2000
PATIENTS = FIRST_TEST - FIRST_SUPPORT  # that may be labelled cases
_FINEST = 3.0  # largest multiple of the default grid's resolution; more would only fill the memory


class PhantomCase(Case):
    """One phantom patient, imaged by one target's scanner."""

    def __init__(self, target: Target, number: int) -> None:
        self.id = f"{target.name}_{number:04d}"
        self.channels = target.acquisition.channels
        self.target = target
        self.number = number

    def image(self, channel: str) -> Volume:
        if channel not in self.channels:
            missing = f"channel {channel} is missing (it has {', '.join(self.channels)})"
            raise DataError(f"case {self.id}: {missing}; choose another channel")
        return self._volumes[0][channel]

    def label(self) -> Volume:
        return self._volumes[1]

    @cached_property
    def _volumes(self) -> tuple[dict[str, Volume], Volume]:
        images, label, affine = render(self.target, self.number)
        label.flags.writeable = False  # shared by everyone who asks
        for image in images.values():
            image.flags.writeable = False
        return {channel: Volume(image, affine) for channel, image in images.items()}, Volume(
            label, affine
        )


def render(
    target: Target, number: int
) -> tuple[dict[str, NDArray[np.int16]], NDArray[np.uint8], NDArray[np.float64]]:
    """Patient `number`, scanned and labelled as in `target`.

    Returns:
        Channel → image int16 `[I, J, K]` (HU, or arbitrary units for MR); label uint8 `[I, J, K]`
            with the codes of the region's structures (0 for structures that the target does not
            label); and the affine, voxel to mm in RAS.
    """
    layers = sample(target.region.draw(number, target.build), target.grid)
    rng = np.random.default_rng([21, number, zlib.crc32(target.name.encode())])
    images = target.acquisition.acquire(layers, target.grid, rng)
    structures = target.region.structures
    known = np.zeros(len(structures) + 1, dtype=np.uint8)
    for code in target.codes.values():
        known[code] = code
    return images, known[label_map(layers, target.grid.shape, structures)], target.grid.affine


def phantom_target(name: str) -> Target:
    """A target or a source by name; `NAME@FACTOR` has FACTOR times as many voxels along each axis.

    Raises:
        DataError: there is no phantom of that name, or the factor makes no sense.
    """
    plain, at, factor = name.partition("@")
    there = {**SOURCES, **TARGETS}
    if plain not in there:
        near = difflib.get_close_matches(plain, there, n=1)
        hint = f"did you mean {near[0]}? There" if near else "there"
        raise DataError(f"no phantom is called {plain}; {hint} are {', '.join(there)}")
    target = there[plain]
    if not at:
        return target
    if not re.fullmatch(r"\d+(\.\d+)?", factor) or not 1 <= float(factor) <= _FINEST:
        raise DataError(
            f"phantom {name}: {factor or 'nothing'} after the @ is no resolution; give a factor"
            f" from 1 to {_FINEST:g}, for instance {plain}@1.5"
        )
    return replace(target, grid=target.grid.refined(float(factor)))


def phantom_dataset(
    name: str, support: int = SUPPORT_CASES, test: int = TEST_CASES, skip: int = 0
) -> Dataset:
    """An embedded target as a data set of the layout "phantom".

    Args:
        name: a name in `SOURCES` or `TARGETS`. `NAME@1.5` renders the same patients with 1.5 times
            as many voxels along each axis.
        support: labelled cases to choose shots from.
        test: cases to score on.
        skip: patients to pass over before the first labelled case.

    Raises:
        DataError: there is no phantom of that name.
    """
    target = phantom_target(name)
    return Dataset(
        name=name,
        layout="phantom",
        channels=target.acquisition.channels,
        labels={label: (code,) for label, code in target.codes.items()},
        cases=tuple(PhantomCase(target, FIRST_SUPPORT + skip + i) for i in range(support)),
        test_cases=tuple(PhantomCase(target, FIRST_TEST + i) for i in range(test)),
        codes=frozenset(target.codes.values()),
    )
