"""Whether two volumes lie on one grid, and whether a volume holds numbers only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sea_peft.data.nifti import GRID_TOLERANCE_MM
from sea_peft.data.volumes import Volume
from sea_peft.errors import DataError


def require_finite(case_id: str, field: str, volume: Volume) -> None:
    """Refuse NaN and infinity, naming how many voxels hold them."""
    bad = count_not_finite(volume.array)
    if bad:
        raise DataError(
            f"case {case_id}: channel {field} has {bad} of {volume.array.size} voxels that are NaN or "
            "infinite; export the scan again or take the case out"
        )


def count_not_finite(array: np.ndarray) -> int:
    """Voxels that are NaN or infinite."""
    return 0 if array.dtype.kind != "f" else int(array.size - np.count_nonzero(np.isfinite(array)))


def require_same_grid(case_id: str, name: str, volume: Volume, other_name: str, other: Volume) -> None:
    """Refuse two volumes of one case that do not lie on one grid, naming both values."""
    difference = grid_difference(volume, other)
    if difference is not None:
        what, mine, its = difference
        raise DataError(
            f"case {case_id}: {name} has {what} {mine}, {other_name} has {what} {its}; "
            f"resample one onto the other's grid or take the case out"
        )


def grid_difference(volume: Volume, other: Volume) -> tuple[str, str, str] | None:
    """What sets two grids apart: the property and both values, or None.

    Grids are the same when the shapes are equal and no corner lies more than 0.1 mm from its counterpart.
    """
    if volume.shape != other.shape:
        return "shape", "×".join(map(str, volume.shape)), "×".join(map(str, other.shape))
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=np.float64)
    corners[:, :3] *= np.asarray(volume.shape) - 1
    apart = corners @ (volume.affine - other.affine).T
    if np.abs(apart[:, :3]).max() <= GRID_TOLERANCE_MM:
        return None
    if not np.allclose(volume.spacing, other.spacing, rtol=0, atol=5e-5):
        return "voxel size", f"{_numbers(volume.spacing)} mm", f"{_numbers(other.spacing)} mm"
    mine, its = (v.affine[:3, :3] / np.asarray(v.spacing) for v in (volume, other))
    if not np.allclose(mine, its, rtol=0, atol=5e-5):
        return "direction", _numbers(mine.ravel()), _numbers(its.ravel())
    return "origin", f"{_numbers(volume.affine[:3, 3])} mm", f"{_numbers(other.affine[:3, 3])} mm"


def skewness(affine: np.ndarray) -> float:
    """Degrees by which the two axes that are furthest from a right angle miss it; a tilted gantry makes such grids."""
    axes = affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    cosines = np.abs(axes.T @ axes - np.eye(3))
    return float(np.degrees(np.arcsin(min(1.0, cosines.max()))))


def _numbers(values: Sequence[float] | np.ndarray) -> str:
    return "(" + ", ".join(f"{v:.6g}" for v in values) + ")"
