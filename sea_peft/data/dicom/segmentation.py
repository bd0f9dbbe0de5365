"""DICOM segmentation objects (DICOM-SEG) through highdicom, matched to their series by reference
and to its slices by position.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sea_peft import __version__
from sea_peft.data.dicom.files import required
from sea_peft.data.dicom.series import Series, Slice, in_order, one_series, series_affine
from sea_peft.data.nifti import GRID_TOLERANCE_MM
from sea_peft.data.overlaps import LabelMap
from sea_peft.data.volumes import Volume
from sea_peft.data.wording import shown
from sea_peft.errors import DataError, first_line

if TYPE_CHECKING:
    from pydicom import Dataset

_SCHEME = (  # private coding scheme for the labels' own names, which are in no standard vocabulary
    "99SEAPEFT"
)
_SERIES_NUMBER = 900


def segment_names(header: Dataset) -> dict[int, str]:
    """Segment number → label of a DICOM-SEG header."""
    return {int(item.SegmentNumber): str(item.SegmentLabel) for item in header.SegmentSequence}


def referenced_series(header: Dataset, series: Sequence[Series]) -> Series | None:
    """The series among these that a DICOM-SEG was drawn on; without a reference, the only one of
    its frame of reference; None if there is none.
    """
    for item in header.get("ReferencedSeriesSequence") or ():
        return next((one for one in series if one.uid == str(item.SeriesInstanceUID)), None)
    frame = str(header.get("FrameOfReferenceUID") or "")
    same = [one for one in series if frame and one.frame == frame]
    return same[0] if len(same) == 1 else None


def read_segmentation(
    path: Path,
    series: Sequence[Path],
    codes: Mapping[int, Sequence[int]],
    names: Mapping[int, str] | None = None,
) -> Volume:
    """Read a DICOM-SEG as a label map on its series' grid. Each frame goes to the slice at its
    position.

    Args:
        path: the DICOM-SEG file.
        series: the files of the series that it refers to, in any order.
        codes: label code → segment numbers. Where segments overlap, the smaller one wins.
        names: label code → name, for sentences.

    Returns:
        uint16 codes `[columns, rows, slices]` on the series' grid. Slices without a frame are
            background.

    Raises:
        DataError: highdicom is not installed, the file is damaged, a frame lies where the series
            has no slice, or on another slice than the one that it refers to.
    """
    highdicom = required("highdicom", [path])
    found = one_series(series)
    ordered = in_order(found)
    shape = (ordered[0].columns, ordered[0].rows, len(ordered))
    labels = LabelMap(shape, {code: (names or {}).get(code, f"label {code}") for code in codes})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote values, which may name a patient
            segmentation = highdicom.seg.segread(path)
        drawn_on = referenced_series(segmentation, [found])
        if drawn_on is None:
            raise ValueError("it was drawn on another series")
        frames = _frames(segmentation, found, ordered)
        threshold = _threshold(segmentation)
        for code in sorted(codes):
            mask = np.zeros(shape, dtype=bool)
            for frame in frames:
                if frame.segment is not None and frame.segment not in codes[code]:
                    continue
                stored = frame.turned(segmentation.get_stored_frame(frame.number))
                drawn = (
                    np.isin(stored, list(codes[code]))
                    if frame.segment is None
                    else stored > threshold
                )
                mask[:, :, frame.slice] |= drawn.T
            labels.paint(code, mask)
        array, notes = labels.finished()
    except (
        Exception
    ) as error:  # highdicom and pydicom raise many kinds for damaged or foreign files
        raise DataError(
            f"{shown(path)} cannot be laid over its series ({first_line(error)[:200]});"
            " export it again with the series as its source"
        ) from error
    return Volume(array, series_affine(ordered), notes)


@dataclass(frozen=True)
class _Frame:
    """A frame of a DICOM-SEG.

    `number` counts from 1. `slice` is the slice that it lies on. `segment` is None if its values
    are the segments' numbers. `mirrored`: whether its columns and rows run against those of the
    slice.
    """

    number: int
    slice: int
    segment: int | None
    mirrored: tuple[bool, bool]

    def turned(self, values: np.ndarray) -> np.ndarray:
        """The frame `[rows, columns]`, with rows and columns as in the slice."""
        columns, rows = self.mirrored
        return values[:: -1 if rows else 1, :: -1 if columns else 1]


def _threshold(segmentation: Dataset) -> float:
    fractional = str(segmentation.SegmentationType) == "FRACTIONAL"
    return 0.5 * float(segmentation.get("MaximumFractionalValue") or 1) if fractional else 0.5


def _frames(segmentation: Dataset, series: Series, ordered: Sequence[Slice]) -> list[_Frame]:
    """Each frame with the slice that it lies on. Raises ValueError with a part of a sentence."""
    first = ordered[0]
    if (int(segmentation.Rows), int(segmentation.Columns)) != (first.rows, first.columns):
        raise ValueError(
            f"its frames have {segmentation.Rows}×{segmentation.Columns} voxels, the slices"
            f" {first.rows}×{first.columns}"
        )
    shared = (segmentation.get("SharedFunctionalGroupsSequence") or [{}])[0]
    comparable = (
        not segmentation.get("FrameOfReferenceUID")
        or str(segmentation.FrameOfReferenceUID) == series.frame
    )
    by_instance = {part.instance: k for k, part in enumerate(ordered)}
    labelmap = str(segmentation.SegmentationType) == "LABELMAP"
    frames: list[_Frame] = []
    nowhere = contradicting = 0
    groups = segmentation.PerFrameFunctionalGroupsSequence
    for number, group in enumerate(groups, start=1):
        said = by_instance.get(_source(group) or "")
        place = _item(group, shared, "PlanePositionSequence")
        mirrored, at = (False, False), said
        if place is not None and (comparable or said is not None):
            mirrored, at = _lies_on(_plane(group, shared, place, first), ordered)
        if at is None:
            nowhere += 1
        elif said is not None and said != at:
            contradicting += 1
        else:
            segment = (
                None
                if labelmap
                else int(
                    _item(group, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber
                )
            )
            frames.append(_Frame(number, at, segment, mirrored))
    if nowhere:
        raise ValueError(
            f"{nowhere} of its {len(groups)} frames lie where the series has no slice, so slices"
            " are missing or it was drawn on others"
        )
    if contradicting:
        raise ValueError(
            f"{contradicting} of its {len(groups)} frames lie on another slice than the one that"
            " they say they were drawn on"
        )
    return frames


def _item(group: Dataset, shared: Dataset, name: str) -> Any:
    """The one item of a functional group: the frame's own, else that of all frames, else None."""
    for holder in (group, shared):
        items = holder.get(name)
        if items:
            return items[0]
    return None


def _source(group: Dataset) -> str | None:
    for derivation in group.get("DerivationImageSequence") or ():
        for image in derivation.get("SourceImageSequence") or ():
            return str(image.ReferencedSOPInstanceUID)
    return None


@dataclass(frozen=True)
class _Plane:
    """The position of a frame, in LPS and mm: its first voxel's centre, and the steps of one voxel
    along a row and along a column.
    """

    position: np.ndarray
    along_row: np.ndarray
    along_column: np.ndarray


def _plane(group: Dataset, shared: Dataset, place: Dataset, default: Slice) -> _Plane:
    """The plane of a frame. Orientation and spacing are those of the series if the file does
    not give them.
    """
    turn, measures = (
        _item(group, shared, "PlaneOrientationSequence"),
        _item(group, shared, "PixelMeasuresSequence"),
    )
    direction = np.array(
        default.direction if turn is None else turn.ImageOrientationPatient, dtype=float
    )
    rows, columns = default.spacing if measures is None else measures.PixelSpacing
    position = np.array(place.ImagePositionPatient, dtype=float)
    return _Plane(position, direction[:3] * float(columns), direction[3:] * float(rows))


def _lies_on(plane: _Plane, ordered: Sequence[Slice]) -> tuple[tuple[bool, bool], int | None]:
    """Whether columns and rows run against those of the slices, and the slice with the plane's
    voxels; None if there is none.
    """
    first = ordered[0]
    own = (
        np.multiply(first.direction[:3], first.spacing[1]),
        np.multiply(first.direction[3:], first.spacing[0]),
    )
    mirrored = (bool(plane.along_row @ own[0] < 0), bool(plane.along_column @ own[1] < 0))
    position = plane.position
    for counted, way, against in (
        (first.columns, plane.along_row, mirrored[0]),
        (first.rows, plane.along_column, mirrored[1]),
    ):
        position = position + way * (counted - 1) * against
    along_row, along_column = (
        way * (-1 if against else 1)
        for way, against in zip((plane.along_row, plane.along_column), mirrored, strict=True)
    )

    def corners(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Of the slice, from its first voxel on, by the ways along a row and a column."""
        return np.array(
            [
                i * (first.columns - 1) * row + j * (first.rows - 1) * column
                for i in (0, 1)
                for j in (0, 1)
            ]
        )

    places = np.array([part.position for part in ordered])
    here = position + corners(along_row, along_column)
    apart = np.linalg.norm(places[:, None, :] + corners(*own) - here, axis=2).max(axis=1)
    nearest = int(apart.argmin())
    return mirrored, nearest if apart[nearest] <= GRID_TOLERANCE_MM else None


def segmentation_bytes(
    mask: np.ndarray, series: Sequence[Path], values: Mapping[str, int]
) -> bytes:
    """A DICOM-SEG of a mask, as the content of a `.dcm` file.

    It carries the patient and study of its series, as the standard requires.

    Args:
        mask: values `[columns, rows, slices]` on the series' grid as `read_series` gives it.
        series: the series' files.
        values: label name → value in the mask.

    Raises:
        DataError: highdicom is not installed, or a file of the series cannot be read.
    """
    import io

    highdicom, pydicom = required("highdicom"), required("pydicom")
    from highdicom.sr.coding import CodedConcept
    from pydicom.sr.codedict import codes

    found = one_series(series)
    sources = [pydicom.dcmread(part.path, stop_before_pixels=True) for part in in_order(found)]
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="sea_peft", version=__version__, family=codes.DCM.ArtificialIntelligence
    )
    present = {name: value for name, value in values.items() if (mask == value).any()} or dict(
        values
    )
    described = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=CodedConcept(name[:16], _SCHEME, name[:64]),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(present, start=1)
    ]
    numbers = np.zeros(mask.shape, dtype=np.uint8 if len(present) < 256 else np.uint16)
    for number, value in enumerate(present.values(), start=1):
        numbers[mask == value] = number
    made = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=np.ascontiguousarray(numbers.transpose(2, 1, 0)),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=highdicom.UID(),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="sea_peft",
        manufacturer_model_name="seapeft predict",
        software_versions=__version__,
        device_serial_number="0",
        content_description="Automatic, not for diagnosis",
        content_label="SEGMENTATION",
    )
    content = io.BytesIO()
    made.save_as(content)
    return content.getvalue()
