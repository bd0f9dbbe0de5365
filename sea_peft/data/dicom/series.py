"""An image series of single slices as one volume, sorted by the slices' positions, whatever files
and numbers say.
"""

from __future__ import annotations

import filecmp
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sea_peft.data.dicom.files import headers
from sea_peft.data.dicom.pixels import stored_values
from sea_peft.data.stored import require_holdable
from sea_peft.data.volumes import Volume
from sea_peft.data.wording import shown, times
from sea_peft.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SAME_DIRECTION = 1e-3
_MOST_SLICE_BYTES = 1 << 27  # of a compressed slice; mammograms have a third of it
_UNEVEN_MM, _UNEVEN_SHARE = 0.1, 0.1  # scanners round positions to 0.1 mm


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One file of a series: the content of its header, in LPS and mm."""

    path: Path
    instance: str
    rows: int
    columns: int
    spacing: tuple[float, float]  # between rows, between columns
    position: tuple[float, float, float]  # of the first voxel's centre
    direction: tuple[float, ...]  # along a row (three numbers), along a column
    slope: float
    intercept: float


@dataclass(frozen=True, kw_only=True)
class Series:
    """One series.

    `number`: as the scanner counts within a study. `slices`: in no order. `frame`: of reference,
    within which positions can be compared.
    """

    uid: str
    modality: str
    number: int | None
    slices: tuple[Slice, ...]
    frame: str = ""

    @property
    def folder(self) -> Path:
        """The folder of its first file."""
        return self.slices[0].path.parent


def grouped(described: Sequence[tuple[Path, Dataset]]) -> tuple[list[Series], list[str]]:
    """The image series among files and their headers, and sentences about copies and about series
    that are no volume.

    Localizers and files that are no images are skipped. Copies of a file are taken once.

    Raises:
        DataError: some images of a series are damaged or no slices, or two files claim to be one
            image and differ.
    """
    slices: dict[str, list[Slice]] = defaultdict(list)
    problems: dict[str, DataError] = {}
    about: dict[str, Dataset] = {}
    for path, header in described:
        if (
            "Rows" not in header
            or "SegmentSequence" in header
            or "LOCALIZER" in (header.get("ImageType") or ())
        ):
            continue
        uid = str(header.get("SeriesInstanceUID", ""))
        about[uid] = header
        try:
            slices[uid].append(_slice(path, header))
        except DataError as error:
            problems.setdefault(uid, error)
        except Exception as error:  # pydicom finds a damaged value only when it is used
            problems[uid] = DataError(
                f"{shown(path)} has a header that makes no sense ({type(error).__name__}); export"
                " the series again or take it out"
            )
    said = [str(error) for uid, error in problems.items() if not slices[uid]]
    found = []
    for uid, parts in slices.items():
        if not parts:
            continue
        if uid in problems:
            raise problems[uid]
        single, copies = _each_once(parts)
        if copies:
            twice = "one of its images twice" if copies == 1 else f"{copies} copies of its images"
            said.append(f"{shown(parts[0].path.parent)} holds {twice}, taken once")
        header = about[uid]
        modality, number = (
            str(header.get("Modality") or "image"),
            _whole(header.get("SeriesNumber")),
        )
        frame = str(header.get("FrameOfReferenceUID") or "")
        found.append(
            Series(uid=uid, modality=modality, number=number, slices=tuple(single), frame=frame)
        )
    return found, said


def _each_once(parts: Sequence[Slice]) -> tuple[list[Slice], int]:
    """The slices without copies of them, and the number of copies."""
    first: dict[str, Slice] = {}
    for part in parts:
        twin = first.setdefault(part.instance or str(part.path), part)
        if twin is not part and not filecmp.cmp(twin.path, part.path, shallow=False):
            raise DataError(
                f"{shown(part.path)} and {twin.path.name} have the same SOP instance number but"
                " differ; take one of them out"
            )
    return list(first.values()), len(parts) - len(first)


def read_series(paths: Sequence[Path]) -> Volume:
    """Read the slices of one series as a volume in the scanner's units (rescale slope and intercept
    applied).

    Args:
        paths: its files, in any order.

    Returns:
        `[columns, rows, slices]`, with the slices in order of position. If the gantry was tilted,
            the affine is sheared, so that every voxel keeps its place.

    Raises:
        DataError: slices are missing, unevenly spaced, at one place, or differ in size, voxel size
            or direction; or a file is damaged or its compression unknown.
    """
    ordered = in_order(one_series(paths))
    affine = series_affine(ordered)
    shape = (ordered[0].columns, ordered[0].rows, len(ordered))
    whole = all(part.slope == 1 and part.intercept == int(part.intercept) for part in ordered)
    kind = np.dtype(np.int32 if whole else np.float32)
    require_holdable(ordered[0].path.parent, shape, math.prod(shape) * kind.itemsize)
    array = np.empty(shape, dtype=kind, order="F")
    for k, part in enumerate(ordered):
        stored = stored_values(part.path).T
        array[:, :, k] = (
            stored + int(part.intercept) if whole else stored * part.slope + part.intercept
        )
    small = np.iinfo(np.int16)
    if whole and small.min <= array.min() and array.max() <= small.max:
        array = array.astype(np.int16)
    return Volume(array, affine)


def series_grid(paths: Sequence[Path]) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Shape and voxel size in mm of one series, from its headers alone. Raises `DataError` as
    `read_series` does.
    """
    ordered = in_order(one_series(paths))
    shape = (ordered[0].columns, ordered[0].rows, len(ordered))
    return shape, Volume(np.empty((0, 0, 0)), series_affine(ordered)).spacing


def one_series(paths: Sequence[Path]) -> Series:
    """The series of these files. Raises `DataError` if they are none, or several."""
    found, said = grouped(list(headers(paths)))
    if not found and said:
        raise DataError(said[0])
    if len(found) != 1:
        raise DataError(
            f"{shown(paths[0].parent)} holds {len(found)} series where one was; export it again"
        )
    return found[0]


def in_order(series: Series) -> list[Slice]:
    """Its slices from one end to the other. Raises `DataError` if they make no volume (see
    `read_series`).
    """
    first, where = series.slices[0], shown(series.folder)
    for other in series.slices[1:]:
        for what, mine, its in (
            ("rows × columns", (first.rows, first.columns), (other.rows, other.columns)),
            ("voxel size", first.spacing, other.spacing),
            ("direction", first.direction, other.direction),
        ):
            if not np.allclose(mine, its, rtol=0, atol=_SAME_DIRECTION):
                raise DataError(
                    f"{where} mixes slices of {what} {_numbers(mine)} ({first.path.name}) and"
                    f" {_numbers(its)} ({other.path.name}) in one series; export them as two series"
                )
    if len(series.slices) < 2:
        raise DataError(
            f"{where} holds a single slice; a volume is needed: export the whole series"
        )
    normal = np.cross(first.direction[:3], first.direction[3:])
    ordered = sorted(series.slices, key=lambda part: float(np.dot(part.position, normal)))
    at = np.array([np.dot(part.position, normal) for part in ordered])
    gaps = np.diff(at)
    usual = float(np.median(gaps))
    if gaps.min() < 1e-3:
        twice = int(gaps.argmin())
        raise DataError(
            f"{where} has two slices at one place ({ordered[twice].path.name} and"
            f" {ordered[twice + 1].path.name}); it holds several acquisitions: export each as its"
            " own series"
        )
    if gaps.max() > 1.5 * usual:
        wide = int(gaps.argmax())
        raise DataError(
            f"{where}: slices are missing between {ordered[wide].path.name} and"
            f" {ordered[wide + 1].path.name}, which lie {gaps[wide]:.4g} mm apart where others lie"
            f" {usual:.4g} mm apart; export the series again, complete"
        )
    even = np.linspace(at[0], at[-1], len(at))
    if np.abs(at - even).max() > max(_UNEVEN_MM, _UNEVEN_SHARE * usual):
        raise DataError(
            f"{where}: slices lie {gaps.min():.4g} to {gaps.max():.4g} mm apart; an even spacing is"
            " needed: resample the series"
        )
    return ordered


def series_affine(ordered: Sequence[Slice]) -> np.ndarray:
    """Voxel `[column, row, slice]` → mm, RAS+, 4×4."""
    first, last = ordered[0], ordered[-1]
    lps = np.eye(4)
    lps[:3, 0] = np.multiply(first.direction[:3], first.spacing[1])
    lps[:3, 1] = np.multiply(first.direction[3:], first.spacing[0])
    lps[:3, 2] = np.subtract(last.position, first.position) / (len(ordered) - 1)
    lps[:3, 3] = first.position
    return _LPS_TO_RAS @ lps


def _slice(path: Path, header: Dataset) -> Slice:
    frames, colours = (
        int(header.get("NumberOfFrames") or 1),
        int(header.get("SamplesPerPixel") or 1),
    )
    if frames > 1:
        raise DataError(
            f"{shown(path)} holds {frames} frames in one file (enhanced DICOM); export one file per"
            " slice, or convert it to NIfTI"
        )
    if colours > 1:
        raise DataError(f"{shown(path)} is a colour picture, not a scan; take it out")
    _require_holdable(path, header)
    try:
        spacing = tuple(float(v) for v in header.PixelSpacing)
        position = tuple(float(v) for v in header.ImagePositionPatient)
        direction = tuple(float(v) for v in header.ImageOrientationPatient)
        if (len(spacing), len(position), len(direction)) != (2, 3, 6) or not min(spacing) > 0:
            raise ValueError
    except (AttributeError, TypeError, ValueError):
        raise DataError(
            f"{shown(path)} does not say where its slice lies (position, orientation or pixel"
            " spacing); export the series again"
        ) from None
    x, y, z = position
    return Slice(
        path=path,
        instance=str(header.get("SOPInstanceUID", "")),
        rows=int(header.Rows),
        columns=int(header.Columns),
        spacing=(spacing[0], spacing[1]),
        position=(x, y, z),
        direction=direction,
        slope=float(header.get("RescaleSlope") or 1),
        intercept=float(header.get("RescaleIntercept") or 0),
    )


def _require_holdable(path: Path, header: Dataset) -> None:
    """Refuse a slice of more voxels than its file, or a decoder's memory, can hold."""
    rows, columns = int(header.Rows), int(header.Columns)
    needed = rows * columns * (int(header.get("BitsAllocated") or 16) // 8)
    syntax = header.file_meta.get("TransferSyntaxUID")
    packed = syntax is not None and syntax.is_transfer_syntax and syntax.is_compressed
    stored = _MOST_SLICE_BYTES if packed else min(_MOST_SLICE_BYTES, path.stat().st_size)
    if not 0 < needed <= stored:
        raise DataError(
            f"{shown(path)} is cut short: its header promises {rows}×{columns} voxels, which the"
            " file cannot hold; export the series again"
        )


def _whole(value: Any) -> int | None:
    return int(value) if value not in (None, "") else None


def _numbers(values: Sequence[float]) -> str:
    return (
        times(f"{v:.6g}" for v in values)
        if len(values) == 2
        else "(" + ", ".join(f"{v:.4g}" for v in values) + ")"
    )
