"""What the strides of a U-Net's stages ask of its input."""

import math
from collections.abc import Sequence

from sea_peft.backbones.limits import Limits, Size, per_axis

Strides = Sequence[int | Sequence[int]]
"""One entry a stage: a number for all three axes, or one for each."""

# An instance norm takes a mean and a deviation out of the voxels that it sees: it refuses one, and of two it leaves +1 and -1, whatever
# they were.
_LEAST_AT_THE_BOTTOM = 3


def reach(strides: Strides) -> Size:
    """How many times smaller the bottom is than the input, along each axis; what its sides must be multiples of."""
    d, h, w = (math.prod(axis) for axis in zip(*map(per_axis, strides), strict=True))
    return d, h, w


def limits_of_strides(strides: Strides) -> Limits:
    """The sizes that a U-Net with these strides takes whose norms go over the voxels of one channel at its bottom."""
    divisor = reach(strides)
    return Limits(divisor, minimum=divisor, bottom=_LEAST_AT_THE_BOTTOM)
