"""Structure sets (RTSTRUCT): the masks of a series as contours in its slices, for radiotherapy.

Source: DICOM PS3.3, A.19.3 and C.8.8.5 to C.8.8.8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sea_peft import __version__
from sea_peft.data.contours import outlines
from sea_peft.data.dicom.files import required
from sea_peft.data.dicom.series import Slice, in_order, one_series
from sea_peft.data.wording import shown
from sea_peft.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

_STUDY_CLASS = (  # Detached Study Management, retired: what the standard asks for here
    "1.2.840.10008.3.1.2.3.1"
)
_SERIES_NUMBER = 901


def structure_set_bytes(
    mask: np.ndarray, series: Sequence[Path], values: Mapping[str, int], colours: Mapping[str, str]
) -> bytes:
    """A structure set of a mask, as the content of a `.dcm` file.

    Each label is a region (ROI) with a closed planar contour for each of its parts in each slice. A
    part with holes is one contour with keyholes (`contours.outlines`), which every reader takes;
    contours of the type CLOSED_PLANARXOR are newer than many. It carries the patient and study of
    its series, as the standard requires, and is marked as not approved.

    Args:
        mask: values `[columns, rows, slices]` on the series' grid as `read_series` gives it.
        series: the series' files.
        values: label name → value in the mask. Labels that the mask lacks are left out, unless it
            is empty.
        colours: label name → `#rrggbb`.

    Raises:
        DataError: highdicom is not installed, a file of the series cannot be read, or the series
            has no frame of reference.
    """
    import io

    highdicom, pydicom = required("highdicom"), required("pydicom")
    found = one_series(series)
    if not found.frame:
        raise DataError(
            f"{shown(found.folder)} names no frame of reference, which contours need; export the"
            " series again"
        )
    ordered = in_order(found)
    source = pydicom.dcmread(ordered[0].path, stop_before_pixels=True)
    made = highdicom.SOPClass(
        study_instance_uid=source.StudyInstanceUID,
        series_instance_uid=highdicom.UID(),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=highdicom.UID(),
        sop_class_uid=pydicom.uid.RTStructureSetStorage,
        instance_number=1,
        modality="RTSTRUCT",
        manufacturer="sea_peft",
        # explicit value representations hold 64 KiB, and a contour may be longer
        transfer_syntax_uid=pydicom.uid.ImplicitVRLittleEndian,
        manufacturer_model_name="seapeft predict",
        software_versions=__version__,
        device_serial_number="0",
        specific_character_set="ISO_IR 192",
    )
    made.copy_patient_and_study_information(source)
    made.OperatorsName = ""
    made.FrameOfReferenceUID, made.PositionReferenceIndicator = found.frame, ""
    made.StructureSetLabel = "sea_peft"
    made.StructureSetDescription = "Automatic, not for diagnosis"
    made.StructureSetDate, made.StructureSetTime = (
        made.InstanceCreationDate,
        made.InstanceCreationTime,
    )
    made.ApprovalStatus = "UNAPPROVED"
    images = {part.instance: _image(str(source.SOPClassUID), part.instance) for part in ordered}
    made.ReferencedFrameOfReferenceSequence = [
        _item(
            FrameOfReferenceUID=found.frame,
            RTReferencedStudySequence=[
                _item(
                    ReferencedSOPClassUID=_STUDY_CLASS,
                    ReferencedSOPInstanceUID=source.StudyInstanceUID,
                    RTReferencedSeriesSequence=[
                        _item(
                            SeriesInstanceUID=found.uid, ContourImageSequence=list(images.values())
                        )
                    ],
                )
            ],
        )
    ]
    present = {name: value for name, value in values.items() if (mask == value).any()} or dict(
        values
    )
    made.StructureSetROISequence = [
        _item(
            ROINumber=number,
            ReferencedFrameOfReferenceUID=found.frame,
            ROIName=name[:64],
            ROIGenerationAlgorithm="AUTOMATIC",
        )
        for number, name in enumerate(present, start=1)
    ]
    made.ROIContourSequence = [
        _item(
            ROIDisplayColor=[int(colours[name][i : i + 2], 16) for i in (1, 3, 5)],
            ReferencedROINumber=number,
            **_contours(mask == value, ordered, images),
        )
        for number, (name, value) in enumerate(present.items(), start=1)
    ]
    made.RTROIObservationsSequence = [
        _item(
            ObservationNumber=number,
            ReferencedROINumber=number,
            RTROIInterpretedType="",
            ROIInterpreter="",
        )
        for number in range(1, 1 + len(present))
    ]
    content = io.BytesIO()
    made.save_as(content)
    return content.getvalue()


def _contours(
    label: np.ndarray, ordered: Sequence[Slice], images: Mapping[str, Dataset]
) -> dict[str, list[Dataset]]:
    """The contours of one label, in the order of the slices; nothing if it is in none."""
    contours: list[Dataset] = []
    for k in np.flatnonzero(label.any(axis=(0, 1))).tolist():
        part = ordered[k]
        steps = np.reshape(part.direction, (2, 3)) * [[part.spacing[1]], [part.spacing[0]]]
        for corners in outlines(label[:, :, k].T):
            points = np.array(part.position) + corners @ steps
            contours.append(
                _item(
                    ContourNumber=1 + len(contours),
                    ContourImageSequence=[images[part.instance]],
                    ContourGeometricType="CLOSED_PLANAR",
                    NumberOfContourPoints=len(points),
                    ContourData=[
                        f"{v:.4f}" for v in points.ravel()
                    ],  # mm; decimal strings hold 16 characters
                )
            )
    return {"ContourSequence": contours} if contours else {}


def _image(kind: str, instance: str) -> Dataset:
    return _item(ReferencedSOPClassUID=kind, ReferencedSOPInstanceUID=instance)


def _item(**elements: object) -> Dataset:
    """An item of a sequence with these elements."""
    from pydicom import Dataset

    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item
