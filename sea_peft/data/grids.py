"""Whether two volumes lie on one grid, and whether a volume holds numbers only."""

from collections.abc import Sequence

import numpy as np

from sea_peft.data.nifti import GRID_TOLERANCE_MM
from sea_peft.data.volumes import Volume
from sea_peft.errors import DataError

_OFF_GRID_VOXELS = 0.05


def require_finite(case_id: str, field: str, volume: Volume) -> None:
    """Refuse NaN and infinity, with the number of such voxels."""
    bad = count_not_finite(volume.array)
    if bad:
        raise DataError(
            f"case {case_id}: channel {field} has {bad} of {volume.array.size} voxels that are NaN"
            " or infinite; export the scan again or take the case out"
        )


def count_not_finite(array: np.ndarray) -> int:
    """Voxels that are NaN or infinite."""
    return 0 if array.dtype.kind != "f" else int(array.size - np.count_nonzero(np.isfinite(array)))


def require_same_grid(
    case_id: str, name: str, volume: Volume, other_name: str, other: Volume
) -> None:
    """Refuse two volumes of one case that do not lie on one grid, with both values."""
    difference = grid_difference(volume, other)
    if difference is not None:
        what, mine, its = difference
        raise DataError(
            f"case {case_id}: {name} has {what} {mine}, {other_name} has {what} {its}; "
            "resample one onto the other's grid or take the case out"
        )


def grid_difference(volume: Volume, other: Volume) -> tuple[str, str, str] | None:
    """The difference of two grids: the property and both values; None if they are the same.

    Grids are the same if the shapes are equal and no corner lies more than 0.1 mm from its
    counterpart.
    """
    if volume.shape != other.shape:
        return "shape", "×".join(map(str, volume.shape)), "×".join(map(str, other.shape))
    corners = np.array(
        [[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=np.float64
    )
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


def laid_on(label: Volume, shape: tuple[int, int, int], affine: np.ndarray) -> Volume:
    """A label map on an image's grid, if its own is that grid turned, mirrored or cut out;
    unchanged if it is another grid.

    Writers store the axes in an order and direction of their own, and 3D Slicer stores only the
    part that was drawn in.

    Args:
        label: the label map.
        shape: voxels of the image.
        affine: of the image, RAS+ mm.
    """
    turn = np.linalg.solve(affine, label.affine)
    axes = np.abs(turn[:3, :3]).argmax(axis=0)  # the image's axis behind each of the label's
    signs = np.sign(turn[axes, range(3)])
    straight = np.zeros((3, 3))
    straight[axes, range(3)] = signs
    ends = np.asarray(label.shape) - 1
    off = (
        np.abs((turn[:3, :3] - straight) @ np.diag(ends)).sum()
        + np.abs(turn[:3, 3] - np.rint(turn[:3, 3])).max()
    )
    if len(set(axes.tolist())) < 3 or off > _OFF_GRID_VOXELS:
        return label
    corners = np.rint(turn[:3, 3])[:, None] + straight @ np.stack([np.zeros(3), ends], axis=1)
    low, high = corners.min(axis=1).astype(int), corners.max(axis=1).astype(int)
    if (low < 0).any() or (high >= shape).any():
        return label
    array = label.array[
        tuple(slice(None, None, -1 if sign < 0 else 1) for sign in signs)
    ].transpose(np.argsort(axes))
    if array.shape != tuple(shape):
        whole = np.zeros(shape, dtype=array.dtype)
        whole[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = array
        array = whole
    return Volume(array, affine, label.notes)


def skewness(affine: np.ndarray) -> float:
    """The largest deviation of two axes from a right angle, in degrees. A tilted gantry makes
    such grids.
    """
    axes = affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    cosines = np.abs(axes.T @ axes - np.eye(3))
    return float(np.degrees(np.arcsin(min(1.0, cosines.max()))))


def _numbers(values: Sequence[float] | np.ndarray) -> str:
    return "(" + ", ".join(f"{v:.6g}" for v in values) + ")"
