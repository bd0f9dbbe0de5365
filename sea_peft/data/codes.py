"""The codes in a stored label map, and whether they are whole numbers at all."""

from collections.abc import Iterator

import numpy as np

from sea_peft.errors import DataError

MOST_CODE = 65535
# in a prepared label map: the index of voxels that count in no loss and no Dice; labels are 1..254
IGNORED = 255
# label maps stored as scaled or floating-point numbers miss integers by a rounding error
_TOLERANCE = 1e-3
_CHUNK = 1 << 24


def code_counts(array: np.ndarray, where: str) -> dict[int, int]:
    """Code → voxels, background included.

    Args:
        array: a label map of any real dtype.
        where: case and field, for the error sentence.

    Raises:
        DataError: values are not finite, not whole, negative or above 65535.
    """
    counts = np.zeros(1, dtype=np.int64)
    for part in _codes(array, where):
        found = np.bincount(part, minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    return {int(code): int(counts[code]) for code in np.flatnonzero(counts)}


def require_codes(array: np.ndarray, where: str) -> None:
    """Refuse the same label maps as `code_counts`, without counting."""
    for _ in _codes(array, where):
        pass


def _codes(array: np.ndarray, where: str) -> Iterator[np.ndarray]:
    """The codes as uint16, in parts, because counting takes 8 bytes per voxel."""
    if array.dtype.kind == "b":
        array = array.view(np.uint8)
    flat = array.ravel(order="K")
    low, high = flat.min(), flat.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int(flat.size - np.count_nonzero(np.isfinite(flat)))
        raise DataError(
            f"{where} has {bad} of {flat.size} voxels that are NaN or infinite; export the label"
            " again"
        )
    if low < -_TOLERANCE or high > MOST_CODE:
        raise DataError(
            f"{where} runs from {low:.6g} to {high:.6g}; label codes must lie in 0..{MOST_CODE}: "
            "were image and label swapped?"
        )
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        whole = np.rint(part) if part.dtype.kind == "f" else part
        if part.dtype.kind == "f" and (off := np.abs(part - whole) > _TOLERANCE).any():
            raise DataError(
                f"{where} has voxels that are not whole numbers (for instance {part[off][0]:.6g}); "
                "export it as integer codes, without interpolation"
            )
        yield whole.astype(np.uint16, copy=False)
