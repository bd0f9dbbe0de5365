"""Finding DICOM files in folders, and reading what their headers say without their voxels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from sea_peft.data.volumes import volume_suffix
from sea_peft.data.wording import shown
from sea_peft.errors import DataError

INSTALL = "pip install 'sea_peft[dicom]'"
_PREAMBLE, _MAGIC = 128, b"DICM"
# Free text and names of people stay unread
_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SeriesNumber",
    "Modality", "ImageType", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "PixelSpacing",
    "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept", "SegmentSequence",
    "ReferencedSeriesSequence",
]  # fmt: skip


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do. Unreadable files do not."""
    if volume_suffix(path) is not None or path.name.startswith("."):
        return False
    try:
        with path.open("rb") as file:
            return file.read(_PREAMBLE + len(_MAGIC))[_PREAMBLE:] == _MAGIC
    except OSError:
        return False


def dicom_files(root: Path) -> Iterator[Path]:
    """The DICOM files in a folder and the folders in it, sorted; links to folders are not followed."""
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from (path for name in sorted(names) if is_dicom(path := Path(folder) / name))


def headers(paths: Iterable[Path]) -> Iterator[tuple[Path, Any]]:
    """Each file with what its header says of geometry and identity.

    Raises:
        DataError: pydicom is not installed, or a header is damaged.
    """
    pydicom = required("pydicom", paths)
    for path in paths:
        try:
            yield path, pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
        # Parsers meet damaged bytes in ways that no list of exception types covers
        except Exception as error:
            raise DataError(
                f"{shown(path)} cannot be read as DICOM ({type(error).__name__}); export the series again or take it out"
            ) from error


def required(name: str, paths: Iterable[Path] = ()) -> ModuleType:
    """A module of the extra `dicom`. Raises `DataError` with the command that installs it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        first = next(iter(paths), None)
        what = f"{shown(first)} is DICOM, and reading it" if first is not None else "writing DICOM-SEG"
        raise DataError(f"{what} needs {name}; install it with {INSTALL}") from None
