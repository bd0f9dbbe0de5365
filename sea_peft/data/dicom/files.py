"""Finds DICOM files in folders, and reads their headers without voxels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from sea_peft.data.volumes import volume_suffix
from sea_peft.data.wording import shown
from sea_peft.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

INSTALL = "pip install 'sea_peft[dicom]'"
_PREAMBLE, _MAGIC = 128, b"DICM"
# Free text and names of people stay unread
_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "SeriesNumber",
    "Modality",
    "ImageType",
    "Rows",
    "Columns",
    "BitsAllocated",
    "SamplesPerPixel",
    "NumberOfFrames",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "RescaleSlope",
    "RescaleIntercept",
    "SegmentSequence",
    "ReferencedSeriesSequence",
]


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do. False for an unreadable file."""
    if volume_suffix(path) is not None or path.name.startswith("."):
        return False
    try:
        if not path.is_file():  # reading a pipe would wait for ever
            return False
        with path.open("rb") as file:
            return file.read(_PREAMBLE + len(_MAGIC))[_PREAMBLE:] == _MAGIC
    except OSError:
        return False


def dicom_files(root: Path) -> Iterator[Path]:
    """The DICOM files in a folder and its subfolders, sorted. Follows links to folders that
    have not been seen.
    """
    seen = {os.path.realpath(root)}
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders.sort()
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".") and _new(Path(folder) / name, seen)
        ]
        yield from (path for name in sorted(names) if is_dicom(path := Path(folder) / name))


def _new(folder: Path, seen: set[str]) -> bool:
    real = os.path.realpath(folder)
    if real in seen:
        return False
    seen.add(real)
    return True


def headers(paths: Iterable[Path]) -> Iterator[tuple[Path, Dataset]]:
    """Each file with the geometry and identity from its header.

    Raises:
        DataError: pydicom is not installed, or a header is damaged.
    """
    pydicom = required("pydicom", paths)
    for path in paths:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they quote values, which may name a patient
                syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
                # pydicom inflates such a file whole, whatever it grows to
                deflated = syntax == pydicom.uid.DeflatedExplicitVRLittleEndian
                header = (
                    None
                    if deflated
                    else pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
                )
        # Parsers meet damaged bytes in ways that no list of exception types covers
        except Exception as error:
            raise DataError(
                f"{shown(path)} cannot be read as DICOM ({type(error).__name__}); export the series"
                " again or take it out"
            ) from error
        if header is None:
            raise DataError(
                f"{shown(path)} is a deflated DICOM file, which is not read; export the series"
                " uncompressed"
            )
        yield path, header


def required(name: str, paths: Iterable[Path] = ()) -> ModuleType:
    """A module of the extra `dicom`. Raises `DataError` with the command that installs it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        first = next(iter(paths), None)
        what = f"{shown(first)} is DICOM, and reading it" if first is not None else "writing DICOM"
        raise DataError(f"{what} needs {name}; install it with {INSTALL}") from None
