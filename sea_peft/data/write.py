"""Writes data sets: a datalist for a folder that has none, and nnU-Net raw folders from any
cases.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sea_peft import atomic
from sea_peft.data.cases import Case, Dataset, FileCase, SlicerCase
from sea_peft.data.layouts import open_dataset
from sea_peft.data.progress import Progress, unwatched
from sea_peft.data.volumes import Volume, write_volume
from sea_peft.errors import DataError

DATALIST_NAME = "datalist.json"
ENDING = ".nii.gz"


def write_datalist(folder: Path | str) -> Path:
    """Write `datalist.json` into a folder of scans, with paths relative to it, for a person to
    correct.

    Returns:
        The file written.

    Raises:
        DataError: the folder has a datalist already, its layout is not recognised, or it holds
            DICOM, one mask file per structure or segments of 3D Slicer, which a datalist cannot
            describe.
        DiskError: the folder is not writable or the disk is full.
    """
    folder = Path(folder)
    target = folder / DATALIST_NAME
    for name in (DATALIST_NAME, "dataset.json"):
        if (folder / name).exists():
            raise DataError(
                f"{folder / name} exists already; edit it, or take it away to write a new one"
            )
    dataset = open_dataset(folder)
    content = {
        "name": dataset.name,
        "channel_names": {str(number): channel for number, channel in enumerate(dataset.channels)},
        "labels": {"background": 0} | _codes(dataset),
        "training": [_entry(case, dataset, folder) for case in dataset.cases],
        "test": [
            _entry(case, dataset, folder) for case in (*dataset.test_cases, *dataset.unlabelled)
        ],
    }
    _write_json(target, content)
    return target


def write_nnunet_raw(dataset: Dataset, out: Path | str, progress: Progress = unwatched) -> Path:
    """Write a data set as an nnU-Net v2 raw folder; it appears whole or not at all.

    Labelled cases go to imagesTr and labelsTr, test cases to imagesTs and labelsTs, all as
    `.nii.gz`.

    Args:
        dataset: cases of any kind, in files or in memory.
        out: the folder to make.
        progress: called after each case.

    Raises:
        DataError: `out` exists and is not empty, or a case cannot be read or written.
        DiskError: the disk is full.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists already and is not empty; choose another folder")
    with atomic.writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=out.parent))
    try:
        parts = [("Tr", case) for case in dataset.cases] + [
            ("Ts", case) for case in dataset.test_cases
        ]
        for done, (part, case) in enumerate(parts, start=1):
            _write_case(partial, part, case, dataset)
            progress(done, len(parts))
        content = {
            "name": dataset.name,
            "channel_names": {
                str(number): channel for number, channel in enumerate(dataset.channels)
            },
            "labels": {"background": 0} | _codes(dataset),
            "numTraining": len(dataset.cases),
            "file_ending": ENDING,
        }
        with atomic.writing(out):
            _write_json(partial / "dataset.json", content)
            partial.chmod(0o755)
            partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _codes(dataset: Dataset) -> dict[str, object]:
    return {
        name: codes[0] if len(codes) == 1 else list(codes) for name, codes in dataset.labels.items()
    }


def _entry(case: Case, dataset: Dataset, folder: Path) -> dict[str, object]:
    # segments have different values in each file
    if (
        not isinstance(case, FileCase)
        or isinstance(case, SlicerCase)
        or case.masks
        or case.in_slices
    ):
        raise DataError(
            f"case {case.id} lies in DICOM slices, in one mask file per structure or in segments of"
            " 3D Slicer, which a datalist cannot say; leave the folder as it is: it is read"
            " without one"
        )
    missing = [channel for channel in dataset.channels if channel not in case.images]
    if missing:
        raise DataError(
            f"case {case.id}: channel {missing[0]} is missing; add the file or take the case out"
        )
    files = [
        case.images[channel].path.relative_to(folder).as_posix() for channel in dataset.channels
    ]
    entry: dict[str, object] = {"id": case.id, "image": files[0] if len(files) == 1 else files}
    if case.label_file is not None:
        entry["label"] = case.label_file.relative_to(folder).as_posix()
    return entry


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    atomic.write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _write_case(root: Path, part: str, case: Case, dataset: Dataset) -> None:
    images, labels = root / f"images{part}", root / f"labels{part}"
    images.mkdir(exist_ok=True)
    labels.mkdir(exist_ok=True)
    for number, channel in enumerate(dataset.channels):
        write_volume(images / f"{case.id}_{number:04d}{ENDING}", case.image(channel))
    label = case.label()
    if label is None:
        raise DataError(f"case {case.id} has no label; only labelled cases can be written")
    codes = np.rint(label.array)
    kind = np.uint8 if codes.max() <= np.iinfo(np.uint8).max else np.uint16
    write_volume(labels / f"{case.id}{ENDING}", Volume(codes.astype(kind), label.affine))
