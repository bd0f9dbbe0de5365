"""The stored values of one slice.

pydicom reads uncompressed ones. GDCM (in SimpleITK) decodes compressed ones, from a copy that holds
the image alone: it trusts every length in a header, so a damaged one could fill memory.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sea_peft.data.capture_stdout import capture_stdout
from sea_peft.data.dicom.files import required
from sea_peft.data.itk import harmless
from sea_peft.data.wording import shown
from sea_peft.errors import DataError, refusing

if TYPE_CHECKING:
    from pydicom import Dataset

_IMAGE_TAGS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)


def stored_values(path: Path) -> np.ndarray:
    """The integers of a slice `[rows, columns]`, int32, before rescaling.

    Raises:
        DataError: they are damaged, cut short, or compressed in an unknown way.
    """
    pydicom = required("pydicom", [path])
    with (
        refusing(
            DataError,
            lambda _: (
                f"{shown(path.parent)} has slices that cannot be decoded ({path.name}); export the"
                " series again, uncompressed"
            ),
        ),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # they quote values, which may name a patient
        image = pydicom.dcmread(path)
        rows, columns, allocated, bits = (
            int(image[tag].value) for tag in ("Rows", "Columns", "BitsAllocated", "BitsStored")
        )
        signed = bool(int(image.PixelRepresentation))
        if allocated not in (8, 16, 32) or not 1 <= bits <= allocated:
            raise DataError(
                f"{shown(path)} stores {bits} of {allocated} bits a voxel, which is not read;"
                " export the series again"
            )
        syntax = image.file_meta.TransferSyntaxUID
        if syntax.is_compressed:
            raw = _decoded(image, path)
        else:
            order = "<" if syntax.is_little_endian else ">"
            kind = np.dtype(f"{order}u{allocated // 8}")
            raw = np.frombuffer(image.PixelData, kind, rows * columns)
        raw = raw.reshape(rows, columns)
    # Bits above the stored ones are not part of the grey value
    values = raw.astype(np.uint32) << (32 - bits)
    return (
        values.view(np.int32) >> (32 - bits) if signed else (values >> (32 - bits)).view(np.int32)
    )


def _decoded(image: Dataset, path: Path) -> np.ndarray:
    import SimpleITK as sitk

    pydicom = required("pydicom", [path])
    bare = pydicom.Dataset()
    for tag in _IMAGE_TAGS:
        bare[tag] = image[tag]
    bare.file_meta = pydicom.dataset.FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = image.file_meta.TransferSyntaxUID
    bare.PixelData = pydicom.encaps.encapsulate(
        [pydicom.encaps.get_frame(image.PixelData, 0, number_of_frames=1)]
    )
    said: list[str] = []
    with tempfile.TemporaryDirectory(prefix=".seapeft-") as folder:
        copy = Path(folder) / "slice.dcm"
        bare.save_as(copy, enforce_file_format=True)
        with capture_stdout(said):
            decoded = sitk.GetArrayFromImage(sitk.ReadImage(str(copy), imageIO="GDCMImageIO"))
    harmless(path, said)
    return decoded.astype(np.int64).astype(np.uint32)
