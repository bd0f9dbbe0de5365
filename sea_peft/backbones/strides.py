"""The input sizes that follow from the strides of a U-Net's stages."""

import math
from collections.abc import Sequence

from sea_peft.backbones.limits import Limits, Size, per_axis

Strides = Sequence[int | Sequence[int]]
"""One entry per stage: a number for all three axes, or one for each."""

# An instance norm subtracts the mean of its voxels and divides by their deviation: it refuses a
# single voxel, and turns any two into +1 and -1.
_LEAST_AT_THE_BOTTOM = 3


def reach(strides: Strides) -> Size:
    """How many times smaller the bottom is than the input, along each axis. Sides must be
    multiples of it.
    """
    d, h, w = (math.prod(axis) for axis in zip(*map(per_axis, strides), strict=True))
    return d, h, w


def limits_of_strides(strides: Strides) -> Limits:
    """The input sizes of a U-Net with these strides. At its bottom a norm needs several voxels
    of a channel.
    """
    divisor = reach(strides)
    return Limits(divisor, minimum=divisor, bottom=_LEAST_AT_THE_BOTTOM)
