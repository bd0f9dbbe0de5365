"""DICOM series written slice by slice with pydicom, as scanners do, segmentations written with
highdicom, and a reader of structure sets.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_series(
    folder: Path,
    array: np.ndarray,
    affine: np.ndarray,
    *,
    modality: str = "CT",
    slope: float = 1.0,
    intercept: float = -1024.0,
    number: int = 3,
    left_out: tuple[int, ...] = (),
    tilt: float = 0.0,
    names: str = "IM{:04d}",
    **tags: object,
) -> list[Path]:
    """Write `[columns, rows, slices]` values (already in Hounsfield units) with a RAS+ affine as
    one file a slice.

    File names run against the order of the slices and instance numbers are shuffled, so that only
    the positions tell it. `tilt`: mm that each slice is moved along the rows' direction, as under a
    tilted gantry.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lps = LPS @ affine
    lengths = np.sqrt((lps[:3, :3] ** 2).sum(axis=0))
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    stored = np.rint((array - intercept) / slope).astype(np.int16)
    count, written = array.shape[2], []
    for k in range(count):
        if k in left_out:
            continue
        uid = generate_uid()
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
        meta.MediaStorageSOPInstanceUID = uid
        path = folder / names.format(count - k)
        file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, uid
        file.StudyInstanceUID, file.SeriesInstanceUID, file.FrameOfReferenceUID = (
            study,
            series,
            frame,
        )
        file.PatientName, file.PatientID, file.PatientBirthDate, file.PatientSex = (
            "DOE^JANE",
            "4711",
            "",
            "F",
        )
        file.StudyDate, file.StudyTime, file.StudyID, file.AccessionNumber = (
            "20200101",
            "120000",
            "1",
            "9",
        )
        file.ReferringPhysicianName, file.Manufacturer, file.ContentDate, file.ContentTime = (
            "",
            "ACME",
            "20200101",
            "120000",
        )
        file.Modality, file.SeriesNumber, file.InstanceNumber = modality, number, (7 * k) % 101
        file.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        file.Columns, file.Rows = array.shape[:2]
        file.PixelSpacing = [float(lengths[1]), float(lengths[0])]
        file.SliceThickness = float(lengths[2])
        file.ImageOrientationPatient = [*(lps[:3, 0] / lengths[0]), *(lps[:3, 1] / lengths[1])]
        position = lps[:3, 3] + k * lps[:3, 2] + k * tilt * lps[:3, 1] / lengths[1]
        file.ImagePositionPatient = [float(v) for v in position]
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 1
        file.RescaleSlope, file.RescaleIntercept = slope, intercept
        file.PixelData = np.ascontiguousarray(stored[:, :, k].T).tobytes()
        for tag, value in tags.items():
            setattr(file, tag, value)
        file.save_as(path, enforce_file_format=True)
        written.append(path)
    return written


def write_seg(path: Path, series: list[Path], masks: dict[str, np.ndarray]) -> None:
    """Write masks `[columns, rows, slices]`, slices in the order of `series`, as one DICOM-SEG,
    straight with highdicom.
    """
    import highdicom
    from pydicom.sr.codedict import codes

    sources = [pydicom.dcmread(file) for file in series]
    described = [
        highdicom.seg.SegmentDescription(number, name, codes.SCT.Organ, codes.SCT.Liver, "MANUAL")
        for number, name in enumerate(masks, start=1)
    ]
    stacked = np.stack([mask.transpose(2, 1, 0) for mask in masks.values()], axis=-1).astype(
        np.uint8
    )
    highdicom.seg.Segmentation(
        sources,
        stacked,
        "BINARY",
        described,
        highdicom.UID(),
        7,
        highdicom.UID(),
        1,
        "ACME",
        "tool",
        "1",
        "0",
    ).save_as(path)


def rasterised(path: Path, series: list[Path]) -> dict[str, np.ndarray]:
    """The regions of an RTSTRUCT as masks `[columns, rows, slices]`, by the slices that its
    contours name.

    Even-odd rule at the centres of voxels, after the standard alone: nothing here is shared with
    the writer.
    """
    from matplotlib.path import Path as Polygon

    slices = [pydicom.dcmread(file, stop_before_pixels=True) for file in series]
    normal = np.cross(slices[0].ImageOrientationPatient[:3], slices[0].ImageOrientationPatient[3:])
    slices.sort(key=lambda one: float(np.dot(one.ImagePositionPatient, normal)))
    place = {one.SOPInstanceUID: k for k, one in enumerate(slices)}
    shape = (int(slices[0].Columns), int(slices[0].Rows), len(slices))
    centres = np.stack(
        np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij"), axis=-1
    ).reshape(-1, 2)
    found = pydicom.dcmread(path)
    names = {int(item.ROINumber): str(item.ROIName) for item in found.StructureSetROISequence}
    masks = {
        names[int(item.ReferencedROINumber)]: np.zeros(shape, dtype=bool)
        for item in found.ROIContourSequence
    }
    for item in found.ROIContourSequence:
        for contour in item.get("ContourSequence") or ():
            assert contour.ContourGeometricType == "CLOSED_PLANAR"
            k = place[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            one = slices[k]
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3) - np.array(
                one.ImagePositionPatient
            )
            assert len(points) == contour.NumberOfContourPoints
            np.testing.assert_allclose(points @ normal, 0, atol=1e-3)  # it lies in its slice
            turn = np.array(one.ImageOrientationPatient, dtype=float).reshape(2, 3)
            corners = points @ turn.T / [float(one.PixelSpacing[1]), float(one.PixelSpacing[0])]
            inside = (
                Polygon(np.vstack([corners, corners[:1]]))
                .contains_points(centres)
                .reshape(shape[:2])
            )
            masks[names[int(item.ReferencedROINumber)]][:, :, k] ^= inside
    return masks
