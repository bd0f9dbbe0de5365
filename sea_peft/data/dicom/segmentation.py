"""DICOM segmentation objects (DICOM-SEG) through highdicom: matched to their series by reference, never by name or place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sea_peft import __version__
from sea_peft.data.dicom.files import headers, required
from sea_peft.data.dicom.series import grouped, in_order, series_affine
from sea_peft.data.volumes import Volume
from sea_peft.data.wording import shown
from sea_peft.errors import DataError

_SCHEME = "99SEAPEFT"  # private coding scheme: the labels' own names, which no standard vocabulary lists
_SERIES_NUMBER = 900


def segment_names(header: Any) -> dict[int, str]:
    """Segment number → label of a DICOM-SEG header."""
    return {int(item.SegmentNumber): str(item.SegmentLabel) for item in header.SegmentSequence}


def referenced_series(header: Any) -> str | None:
    """The series that a DICOM-SEG was drawn on."""
    for item in header.get("ReferencedSeriesSequence") or ():
        return str(item.SeriesInstanceUID)
    return None


def read_segmentation(path: Path, series: Sequence[Path], codes: Mapping[int, Sequence[int]]) -> Volume:
    """Read a DICOM-SEG as a label map on its series' grid.

    Args:
        path: The DICOM-SEG file.
        series: The files of the series it refers to, in any order.
        codes: Label code → segment numbers. Where segments overlap, the smaller code wins.

    Returns:
        uint16 codes `[columns, rows, slices]` on the series' grid. Slices without a frame are background.

    Raises:
        DataError: highdicom is not installed, the file is damaged, or its frames do not refer to the series' slices.
    """
    highdicom = required("highdicom", [path])
    (found,) = grouped(list(headers(series)))
    ordered = in_order(found)
    shape = (ordered[0].columns, ordered[0].rows, len(ordered))
    labels = np.zeros(shape, dtype=np.uint16)
    try:
        segmentation = highdicom.seg.segread(path)
        drawn_on = referenced_series(segmentation)
        if drawn_on != found.uid:
            raise ValueError("it was drawn on another series")
        for code in sorted(codes, reverse=True):
            for segment in codes[code]:
                frames = segmentation.get_pixels_by_source_instance(
                    [part.instance for part in ordered],
                    segment_numbers=[segment],
                    ignore_spatial_locations=True,
                    assert_missing_frames_are_empty=True,
                )
                labels[np.asarray(frames[..., 0]).transpose(2, 1, 0) > 0.5] = code
    except Exception as error:  # highdicom and pydicom raise many kinds for damaged or foreign files
        raise DataError(
            f"{shown(path)} cannot be laid over its series ({_first_line(error)}); export it again with the series as its source"
        ) from error
    return Volume(labels, series_affine(ordered))


def segmentation_bytes(mask: np.ndarray, series: Sequence[Path], values: Mapping[str, int]) -> bytes:
    """A DICOM-SEG of a mask, as the content of a `.dcm` file.

    It carries the patient and study of its series, as the standard wants.

    Args:
        mask: Values `[columns, rows, slices]` on the series' grid as `read_series` gives it.
        series: The series' files.
        values: Label name → value in the mask.

    Raises:
        DataError: highdicom is not installed, or a file of the series cannot be read.
    """
    import io

    highdicom, pydicom = required("highdicom"), required("pydicom")
    from highdicom.sr.coding import CodedConcept
    from pydicom.sr.codedict import codes

    (found,) = grouped(list(headers(series)))
    sources = [pydicom.dcmread(part.path, stop_before_pixels=True) for part in in_order(found)]
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="sea_peft", version=__version__, family=codes.DCM.ArtificialIntelligence
    )
    present = {name: value for name, value in values.items() if (mask == value).any()} or dict(values)
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


def _first_line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text[:120].rstrip(".")
