"""NIfTI files through nibabel."""

from __future__ import annotations

import contextlib
import functools
import gzip
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from sea_peft.data.stored import DEFLATE_MAX_RATIO, require_holdable, surplus_note
from sea_peft.data.wording import in_plain_words, shown, times
from sea_peft.errors import DataError

if TYPE_CHECKING:
    from nibabel import Nifti1Header, Nifti1Image

GRID_TOLERANCE_MM = 0.1  # positions no further apart than this count as the same
_GZIP_MAGIC = b"\x1f\x8b"
_UNITS = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}  # of xyzt_units, beside mm and unknown
_POSSIBLE_MM = (0.001, 100.0)
_SIZE_TOLERANCE = 0.01
_QUATERNION_TOLERANCE = 0.01
_FLOAT32 = float(np.finfo(np.float32).eps)
_LONGEST_HEADER = 540  # NIfTI-2; NIfTI-1's are 348 bytes long
_GEOMETRY_FIELDS = (
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
    "xyzt_units",
)


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Voxels of any number of axes, RAS+ affine, and notes on what had to be assumed.

    The header is read first, and then no more bytes than it promises. Raises whatever nibabel and
    zlib raise for damaged files.
    """
    from nibabel.volumeutils import apply_read_scaling

    _quiet_nibabel()
    size = path.stat().st_size
    with _opened(path) as (stream, packed):
        start = stream.read(_LONGEST_HEADER)
        kind = _kind(path, start)
        raw = start[: kind.header_class.sizeof_hdr]
        as_it_is = kind.header_class(raw, check=False)  # without repairs
        header = _header_of(kind, raw)
        shape, dtype, offset = (
            header.get_data_shape(),
            header.get_data_dtype(),
            int(header.get_data_offset()),
        )
        if len(shape) < 3:
            raise DataError(f"{shown(path)} {in_plain_words(shape)}")
        if dtype.kind not in "buif":
            raise DataError(
                f"{shown(path)} stores {dtype} voxels; real numbers are needed (one grey value per"
                " voxel)"
            )
        promised = math.prod(shape) * dtype.itemsize
        require_holdable(
            path, shape, max(0, offset) + promised, DEFLATE_MAX_RATIO * size if packed else size
        )
        content = start + stream.read(offset + promised - len(start))
        if len(content) < offset + promised:
            raise DataError(
                f"{shown(path)} is cut short: its header promises {offset + promised} bytes of"
                f" voxels ({times(shape)}), the file holds {len(content)}; export the scan again"
            )
        # the end of a gzip stream holds its checksum, so it is read too
        surplus = len(content) > offset + promised or stream.read(1) != b""
    if as_it_is["sform_code"] == 0 and not (as_it_is["pixdim"][1:4] > 0).all():
        pixdim = ", ".join(f"{p:g}" for p in as_it_is["pixdim"][1:4])
        raise DataError(
            f"{shown(path)} has a voxel size of {pixdim} mm; all three must be positive: export it"
            " again"
        )
    array = np.frombuffer(content, dtype, math.prod(shape), offset).reshape(shape, order="F")
    slope, intercept = header.get_slope_inter()
    if slope is not None and (slope != 1 or intercept != 0):
        array = apply_read_scaling(array, slope, intercept)
        array = array.astype(
            np.float32
        )  # scaled integers come as float64: twice the memory, no information
    affine, notes = _affine(path, header)
    return array, affine, (*([surplus_note(None)] if surplus else []), *notes)


def _affine(path: Path, header: Nifti1Header) -> tuple[np.ndarray, list[str]]:
    """The affine in RAS+ mm, and notes on what the header leaves open or contradicts."""
    qform, sform = (int(header[f"{kind}_code"]) > 0 for kind in ("qform", "sform"))
    bent = math.hypot(*_quaternion(header)) > 1 + _QUATERNION_TOLERANCE
    if bent and qform and not sform:
        raise DataError(
            f"{shown(path)} has a qform that is no rotation, and no sform; export the scan again"
        )
    notes = []
    if not qform and not sform:
        notes.append(
            "states no orientation (qform and sform are unset): its axes are taken to run to the"
            " left, to the front and up; make sure that left and right are not swapped"
        )
    elif bent and qform:
        notes.append("has a qform that is no rotation; the sform is used")
    elif sform:
        notes += _contradictions(header, qform)
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    factor, note = _millimetres(header, affine)
    affine[:3] *= factor
    return affine, [*notes, *([note] if note else [])]


def _contradictions(header: Nifti1Header, qform: bool) -> list[str]:
    """Notes if qform or pixdim differ from the sform, which is used."""
    if qform:
        ends = np.diag([*(n - 1.0 for n in header.get_data_shape()[:3]), 1.0])
        ends[3] = 1
        apart = float(np.abs((header.get_qform() - header.get_sform()) @ ends).max())
        if apart > GRID_TOLERANCE_MM:
            return [f"has a qform and an sform that lie {apart:.3g} mm apart; the sform is used"]
        return []
    pixdim, sform = np.abs(header["pixdim"][1:4]), _lengths(header.get_sform())
    if np.allclose(pixdim, sform, rtol=_SIZE_TOLERANCE):
        return []
    first, second = (" × ".join(f"{size:.4g}" for size in sizes) for sizes in (pixdim, sform))
    return [
        f"has voxels of {first} mm by its pixdim, but of {second} mm by its sform; the sform is"
        " used"
    ]


def _millimetres(header: Nifti1Header, affine: np.ndarray) -> tuple[float, str]:
    """The factor from the header's unit of length to mm, and a note. A unit that makes impossible
    voxel sizes is wrong.
    """
    name, factor = _UNITS.get(int(header["xyzt_units"]) & 7, ("", 1.0))
    if not name:
        return 1.0, ""
    smallest, largest = _POSSIBLE_MM
    stated = _lengths(affine)
    if ((smallest <= stated * factor) & (stated * factor <= largest)).all():
        return factor, f"gives its places in {name}, which are turned into millimetres"
    sizes = " × ".join(f"{size:.4g}" for size in stated)
    return 1.0, f"gives a voxel size of {sizes} {name}, which cannot be; millimetres are taken"


def _lengths(affine: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # a damaged header; such a volume is refused
        return np.sqrt((affine[:3, :3] ** 2).sum(axis=0))


def _quaternion(header: Nifti1Header) -> np.ndarray:
    return np.array([float(header[f"quatern_{axis}"]) for axis in "bcd"])


def _header_of(kind: type[Nifti1Image], raw: bytes) -> Nifti1Header:
    """The header. A quaternion that a rounding error made longer is scaled to unit length: nibabel
    refuses it even if it is not used.
    """
    header = kind.header_class(raw)
    length = math.hypot(*_quaternion(header))
    if 1 < length <= 1 + _QUATERNION_TOLERANCE:
        for axis, part in zip("bcd", _quaternion(header) / length * (1 - _FLOAT32), strict=True):
            header[f"quatern_{axis}"] = part
    return header


def nifti_grid(path: Path) -> tuple[Sequence[int], Sequence[float]]:
    """Shape and voxel size in mm, without reading the voxels."""
    _, header = _header(path)
    if len(header.get_data_shape()) < 3:
        raise DataError(f"{shown(path)} {in_plain_words(header.get_data_shape())}")
    affine, _ = _affine(path, header)
    return header.get_data_shape(), _lengths(affine).tolist()


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray, like: Path | None) -> None:
    """Write voxels with the affine, or with the geometry fields of the file `like`, digit by
    digit.
    """
    import nibabel

    kind, source = (nibabel.Nifti1Image, None) if like is None else _header(like)
    if source is not None:
        affine = source.get_best_affine()  # in the unit of its header, which need not be mm
    image = kind(array, affine)
    image.set_qform(affine, code=1, strip_shears=True)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    if source is not None:
        for field in _GEOMETRY_FIELDS:
            image.header[field] = source[field]
        image.header["pixdim"][:4] = source["pixdim"][:4]
    nibabel.save(image, path)


def _header(path: Path) -> tuple[type[Nifti1Image], Nifti1Header]:
    """The image class and header of a NIfTI file, without reading its voxels."""
    _quiet_nibabel()
    with _opened(path) as (stream, _):
        raw = stream.read(_LONGEST_HEADER)
    kind = _kind(path, raw)
    return kind, _header_of(kind, raw[: kind.header_class.sizeof_hdr])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """The file, uncompressed on the fly, and whether it is compressed."""
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        if not packed:
            yield file, False
            return
        with gzip.GzipFile(fileobj=file) as stream:
            yield cast(BinaryIO, stream), True


def _kind(path: Path, raw: bytes) -> type[Nifti1Image]:
    """nibabel's image class for NIfTI-1 or NIfTI-2, from the header size at the start of the
    file.
    """
    import nibabel

    kinds = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}
    sizes = (int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big"))
    size = next((size for size in sizes if size in kinds), None)
    if size is None or len(raw) < size:
        raise DataError(
            f"{shown(path)} is not a NIfTI file (wrong magic bytes); export the scan again or"
            " rename it"
        )
    return kinds[size]


@functools.cache
def _quiet_nibabel() -> None:
    """Keep nibabel from printing header contents, which may name a patient."""
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
