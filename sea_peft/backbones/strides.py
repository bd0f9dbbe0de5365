"""What the strides of a U-Net's stages ask of its input."""

from __future__ import annotations

import math
from collections.abc import Sequence

Strides = Sequence[int | Sequence[int]]
"""One entry a stage: a number for all three axes, or one for each."""


def reach(strides: Strides) -> int:
    """How many times smaller the bottom is than the input, on the axis where that is most; what every side must be a multiple of."""
    per_axis = zip(*([s] * 3 if isinstance(s, int) else s for s in strides), strict=True)
    return max(math.prod(axis) for axis in per_axis)
