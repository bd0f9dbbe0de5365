"""NIfTI files through nibabel."""

from __future__ import annotations

import gzip
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sea_peft.data.wording import shown, times
from sea_peft.errors import DataError

GRID_TOLERANCE_MM = 0.1  # how far two places may lie apart and still be one
_GZIP_MAGIC = b"\x1f\x8b"
_GEOMETRY_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Voxels of any number of axes, RAS+ affine, and what had to be assumed of it. Raises whatever nibabel raises for damaged
    files."""
    _quiet_nibabel()
    raw = path.read_bytes()
    if raw.startswith(_GZIP_MAGIC):
        raw = gzip.decompress(raw)  # the whole stream, so that its checksum is verified
    kind = _kind(path, raw)
    image = kind.from_bytes(raw)
    header = kind.header_class(raw[: kind.header_class.sizeof_hdr], check=False)  # as it is, nothing mended
    needed = math.prod(image.shape) * header.get_data_dtype().itemsize + image.dataobj.offset
    if needed > len(raw):
        raise DataError(
            f"{shown(path)} is cut short: its header promises {needed} bytes of voxels "
            f"({times(image.shape)}), the file holds {len(raw)}; export the scan again"
        )
    if header["sform_code"] == 0 and not (header["pixdim"][1:4] > 0).all():
        pixdim = ", ".join(f"{p:g}" for p in header["pixdim"][1:4])
        raise DataError(f"{shown(path)} has a voxel size of {pixdim} mm; all three must be positive: export it again")
    array = np.asanyarray(image.dataobj)
    if image.dataobj.slope != 1 or image.dataobj.inter != 0:
        array = array.astype(np.float32)  # scaled integers come as float64: twice the memory, no information
    return array, np.asarray(image.affine, dtype=np.float64), tuple(_assumed(image))


def _assumed(image: Any) -> Iterator[str]:
    """What the header leaves open about orientation, and what is assumed."""
    qform, sform = (int(image.header[f"{kind}_code"]) for kind in ("qform", "sform"))
    if qform == 0 and sform == 0:
        yield (
            "states no orientation (qform and sform are unset): its axes are taken to run to the left, to the front and "
            "up; make sure that left and right are not swapped"
        )
    elif qform > 0 and sform > 0:
        ends = np.diag([*(n - 1.0 for n in image.shape[:3]), 1.0])
        ends[3] = 1
        apart = float(np.abs((image.get_qform() - image.get_sform()) @ ends).max())
        if apart > GRID_TOLERANCE_MM:
            yield f"has a qform and an sform that lie {apart:.3g} mm apart; the sform is used"


def nifti_grid(path: Path) -> tuple[Sequence[int], Sequence[float]]:
    """Shape and voxel size in mm, without reading the voxels."""
    _, header = _header(path)
    return header.get_data_shape(), header.get_zooms()


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray, like: Path | None) -> None:
    """Write voxels with the affine, or with the geometry fields of the file `like`, digit by digit."""
    import nibabel

    kind, source = (nibabel.Nifti1Image, None) if like is None else _header(like)
    image = kind(array, affine)
    image.set_qform(affine, code=1, strip_shears=True)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    if source is not None:
        for field in _GEOMETRY_FIELDS:
            image.header[field] = source[field]
        image.header["pixdim"][:4] = source["pixdim"][:4]
    nibabel.save(image, path)


def _header(path: Path) -> tuple[Any, Any]:
    """The image class and header of a NIfTI file, without reading its voxels."""
    _quiet_nibabel()
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP_MAGIC
    with gzip.open(path) if packed else path.open("rb") as stream:
        raw = stream.read(540)
    kind = _kind(path, raw)
    return kind, kind.header_class(raw[: kind.header_class.sizeof_hdr])


def _kind(path: Path, raw: bytes) -> Any:
    """nibabel's image class for NIfTI-1 or NIfTI-2, told by the header size that the file starts with."""
    import nibabel

    kinds = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}
    sizes = (int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big"))
    size = next((size for size in sizes if size in kinds), None)
    if size is None or len(raw) < size:
        raise DataError(f"{shown(path)} is not a NIfTI file (wrong magic bytes); export the scan again or rename it")
    return kinds[size]


def _quiet_nibabel() -> None:
    """Keep nibabel from printing header contents, which may name a patient."""
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
