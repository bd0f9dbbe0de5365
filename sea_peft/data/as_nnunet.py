"""nnU-Net's own preprocessing of a scan (nnunetv2's `DefaultPreprocessor` and
`resample_data_or_seg_to_shape`), for networks trained with it.

Linear interpolation instead gives other masks at a lesion's rim.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# ratio of a voxel's longest to shortest side above which nnU-Net does not interpolate between
# slices
_THICK = 3.0


def body(channels: Sequence[np.ndarray]) -> np.ndarray:
    """The voxels that are not 0 in every channel, with holes filled: bool of the channels'
    shape.
    """
    from scipy import ndimage  # here, since most networks ask for neither function

    return np.asarray(
        ndimage.binary_fill_holes(np.logical_or.reduce([channel != 0 for channel in channels]))
    )


def thick_axis(*spacings: Sequence[float]) -> int | None:
    """The axis along which slices are not interpolated: that of the first spacing with one side
    over three times its shortest.
    """
    for spacing in spacings:
        if max(spacing) / min(spacing) > _THICK:
            return spacing.index(max(spacing)) if list(spacing).count(max(spacing)) == 1 else None
    return None


def resized(values: Tensor, grid: Sequence[int], thick: int | None) -> Tensor:
    """Resample values `[D, H, W]` to a grid of other sizes with the same ends.

    Uses cubic splines within the values' own range, and the nearest slice along the axis `thick`.
    Resampling is linear in the values and separable. So each axis is a product with a matrix: the
    result of `scipy.ndimage.zoom`, which nnU-Net uses, for the identity. The numbers are the same,
    and many times faster.
    """
    axes = [axis for axis in range(3) if axis != thick and values.shape[axis] != grid[axis]]
    if axes:
        # of each slice by itself where slices are thick
        ends = [axis for axis in range(3) if axis != thick]
        low, high = values.amin(ends, keepdim=True), values.amax(ends, keepdim=True)
        for axis in axes:
            weights = torch.from_numpy(_zoomed(values.shape[axis], grid[axis], order=3))
            values = torch.movedim(torch.tensordot(weights, values, dims=([1], [axis])), 0, axis)
        values = values.clamp(low, high)
    if thick is not None and values.shape[thick] != grid[thick]:
        nearest = _zoomed(values.shape[thick], grid[thick], order=0).argmax(axis=1)
        values = values.index_select(thick, torch.from_numpy(nearest))
    return values


def _zoomed(n: int, m: int, order: int) -> np.ndarray:
    """The matrix [m, n] of a spline's resampling from n to m voxels, float32."""
    from scipy import ndimage

    identity = np.eye(n)
    return ndimage.zoom(identity, (m / n, 1), order=order, mode="nearest", grid_mode=True).astype(
        np.float32
    )
