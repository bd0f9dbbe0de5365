"""Folder layouts, one reader per file. `open_dataset` finds out which one a folder has.

A reader is a function `read(path) -> Dataset | None`: None if the folder is not of its layout, a
`DataError` if it is but something in it is wrong.
"""

from collections.abc import Callable
from pathlib import Path

from sea_peft.data.cases import Dataset
from sea_peft.data.layouts import brats, datalist, dicom, folders, nnunet, totalsegmentator
from sea_peft.data.wording import count
from sea_peft.errors import DataError

# The most specific first: an nnU-Net folder also has a JSON file and two folders
READERS: dict[str, Callable[[Path], Dataset | None]] = {
    "nnunet_raw": nnunet.read,
    "datalist": datalist.read,
    "brats": brats.read,
    "totalsegmentator": totalsegmentator.read,
    "folders": folders.read,
    "dicom": dicom.read,
}

_REASONS_GIVEN = 3
_RECOGNISED = (
    "an nnU-Net folder (dataset.json, imagesTr, labelsTr), a datalist JSON (training), case folders"
    " as in BraTS or TotalSegmentator, two folders images and labels, pairs X_image and X_label (or"
    " X.nrrd and X.seg.nrrd), or DICOM series with DICOM-SEG files"
)


def open_dataset(path: Path | str) -> Dataset:
    """Open a folder of scans (or a datalist JSON file) in any known layout.

    Raises:
        DataError: the path does not exist, no layout fits, or the layout's own files are wrong.
            Single scans cannot be opened here.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise DataError(f"no such folder: {path}; check the path")
        if not path.is_dir() and path.suffix.lower() != ".json":
            raise DataError(
                f"{path} is a file; give the folder that holds the scans, or a datalist .json"
            )
        for read in READERS.values():
            dataset = read(path)
            if dataset is not None:
                if not dataset.cases and not dataset.test_cases:
                    raise DataError(
                        f"{path} holds {count(len(dataset.unlabelled), 'scan')} but no labelled"
                        f" one{_reasons(dataset)}"
                    )
                return dataset
    except OSError as error:
        raise DataError(
            f"{path} cannot be opened ({error.strerror}); check the link or the permissions"
        ) from error
    raise DataError(f"the layout of {path} is not recognised; it should be {_RECOGNISED}")


def _reasons(dataset: Dataset) -> str:
    """Why none is labelled, as far as the layout's reader knows."""
    if not dataset.warnings:
        return "; put label maps beside them"
    more = len(dataset.warnings) - _REASONS_GIVEN
    return f": {'; '.join(dataset.warnings[:_REASONS_GIVEN])}" + (
        f"; and {more} more" if more > 0 else ""
    )
