"""NIfTI files through nibabel."""

from __future__ import annotations

import contextlib
import functools
import gzip
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from sea_peft.data.stored import DEFLATE_MAX_RATIO, require_holdable, surplus_note
from sea_peft.data.wording import in_plain_words, shown, times
from sea_peft.errors import DataError

GRID_TOLERANCE_MM = 0.1  # how far two places may lie apart and still be one
_GZIP_MAGIC = b"\x1f\x8b"
_LONGEST_HEADER = 540  # NIfTI-2; NIfTI-1's are 348 bytes long
_GEOMETRY_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Voxels of any number of axes, RAS+ affine, and what had to be assumed of it. The header is read first, and then no more than it
    promises. Raises whatever nibabel and zlib raise for damaged files."""
    from nibabel.volumeutils import apply_read_scaling

    _quiet_nibabel()
    size = path.stat().st_size
    with _opened(path) as (stream, packed):
        start = stream.read(_LONGEST_HEADER)
        kind = _kind(path, start)
        raw = start[: kind.header_class.sizeof_hdr]
        as_it_is = kind.header_class(raw, check=False)  # nothing mended
        header = kind.header_class(raw)
        shape, dtype, offset = header.get_data_shape(), header.get_data_dtype(), int(header.get_data_offset())
        if len(shape) < 3:
            raise DataError(f"{shown(path)} {in_plain_words(shape)}")
        if dtype.kind not in "buif":
            raise DataError(f"{shown(path)} stores {dtype} voxels; real numbers are needed (one grey value per voxel)")
        promised = math.prod(shape) * dtype.itemsize
        require_holdable(path, shape, max(0, offset) + promised, DEFLATE_MAX_RATIO * size if packed else size)
        content = start + stream.read(offset + promised - len(start))
        if len(content) < offset + promised:
            raise DataError(
                f"{shown(path)} is cut short: its header promises {offset + promised} bytes of voxels ({times(shape)}), the file holds "
                f"{len(content)}; export the scan again"
            )
        # the end of a gzip stream holds its checksum, so it is read too
        surplus = len(content) > offset + promised or stream.read(1) != b""
    if as_it_is["sform_code"] == 0 and not (as_it_is["pixdim"][1:4] > 0).all():
        pixdim = ", ".join(f"{p:g}" for p in as_it_is["pixdim"][1:4])
        raise DataError(f"{shown(path)} has a voxel size of {pixdim} mm; all three must be positive: export it again")
    array = np.frombuffer(content, dtype, math.prod(shape), offset).reshape(shape, order="F")
    slope, intercept = header.get_slope_inter()
    if slope is not None and (slope != 1 or intercept != 0):
        array = apply_read_scaling(array, slope, intercept)
        array = array.astype(np.float32)  # scaled integers come as float64: twice the memory, no information
    notes = [surplus_note(None)] if surplus else []
    return array, np.asarray(header.get_best_affine(), dtype=np.float64), (*notes, *_assumed(header))


def _assumed(header: Any) -> Iterator[str]:
    """What the header leaves open about orientation, and what is assumed."""
    qform, sform = (int(header[f"{kind}_code"]) for kind in ("qform", "sform"))
    if qform == 0 and sform == 0:
        yield (
            "states no orientation (qform and sform are unset): its axes are taken to run to the left, to the front and "
            "up; make sure that left and right are not swapped"
        )
    elif qform > 0 and sform > 0:
        ends = np.diag([*(n - 1.0 for n in header.get_data_shape()[:3]), 1.0])
        ends[3] = 1
        apart = float(np.abs((header.get_qform() - header.get_sform()) @ ends).max())
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
    with _opened(path) as (stream, _):
        raw = stream.read(_LONGEST_HEADER)
    kind = _kind(path, raw)
    return kind, kind.header_class(raw[: kind.header_class.sizeof_hdr])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """The file, unpacked as it is read, and whether it is packed."""
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        if not packed:
            yield file, False
            return
        with gzip.GzipFile(fileobj=file) as stream:
            yield cast(BinaryIO, stream), True


def _kind(path: Path, raw: bytes) -> Any:
    """nibabel's image class for NIfTI-1 or NIfTI-2, told by the header size that the file starts with."""
    import nibabel

    kinds = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}
    sizes = (int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big"))
    size = next((size for size in sizes if size in kinds), None)
    if size is None or len(raw) < size:
        raise DataError(f"{shown(path)} is not a NIfTI file (wrong magic bytes); export the scan again or rename it")
    return kinds[size]


@functools.cache
def _quiet_nibabel() -> None:
    """Keep nibabel from printing header contents, which may name a patient."""
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
