"""Separable linear interpolation, whole or a few planes at a time, so that memory does not grow
with the scan.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

# Planes `a` up to before `b` of values with axes [K, D, H, W], as float32 [K, b - a, H, W]
ReadPlanes = Callable[[int, int], Tensor]

_SLAB_VALUES = 1 << 25  # values held at once: 128 MB as float32


def resampled(
    read: ReadPlanes, at: Sequence[Tensor], channels: int, plane: int
) -> Iterator[tuple[int, Tensor]]:
    """Linear interpolation of values `[K, D, H, W]` along D, H and W, in slabs of as many planes of
    the result as fit.

    Args:
        read: the planes of the values.
        at: for each of the three axes, the positions of the result's voxels, in voxels of the
            values; ascending along D.
        channels: K.
        plane: voxels of one plane of the values, H × W.

    Yields:
        The first plane of a slab and its values `[K, n, H', W']`.
    """
    if not len(at[0]):
        return
    thickness = float(at[0][-1] - at[0][0]) / max(
        1, len(at[0]) - 1
    )  # planes read for one that is made
    held = channels * max(len(at[1]) * len(at[2]), plane * thickness)
    planes = max(1, int(_SLAB_VALUES / held))
    for start in range(0, len(at[0]), planes):
        along = at[0][start : start + planes].clamp(min=0)
        first = math.floor(along[0])
        values = read(first, math.floor(along[-1]) + 2)
        slab = interpolate(values, 1, along - first)
        yield start, interpolate(interpolate(slab, 2, at[1]), 3, at[2])


def interpolate(values: Tensor, axis: int, at: Tensor) -> Tensor:
    """Linear interpolation along one axis at fractional indices `at`; beyond the ends the end value
    holds.

    Written as a product with a matrix of two weights per row, which on a CPU is four times faster
    than gathering.
    """
    n = values.shape[axis]
    if len(at) == n and torch.equal(at, torch.arange(n, dtype=at.dtype)):
        return values
    at = at.clamp(0, n - 1)
    below = at.floor().long()
    rows = torch.arange(len(at))
    weights = torch.zeros(len(at), n, dtype=values.dtype)
    weights[rows, below] = (below + 1 - at).to(values.dtype)
    weights[rows, (below + 1).clamp(max=n - 1)] += (at - below).to(values.dtype)
    shape = values.shape
    if axis == values.ndim - 1:
        return values @ weights.T
    planes = values.reshape(*shape[: axis + 1], -1)
    return torch.matmul(weights, planes).reshape(*shape[:axis], len(at), *shape[axis + 1 :])
