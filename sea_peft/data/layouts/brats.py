"""BraTS: one folder per case, one file per sequence, named by the sequence. Case folders may lie in
folders of cohorts.

Until 2021 files end in `_flair`, `_t1`, `_t1ce`, `_t2` and `_seg`; from 2023 on, and in
BraTS-Africa, in `-t2f`, `-t1n`, `-t1c`, `-t2w` and `-seg`. Sequences are told apart by these names,
never by position. Sources: https://www.med.upenn.edu/cbica/brats2021;
https://www.synapse.org/brats2023; https://doi.org/10.7937/v8h6-8x67 (BraTS-Africa).
"""

import re
from collections.abc import Iterator
from pathlib import Path

from sea_peft.data.cases import Dataset, FileCase, ImageFile, safe_name
from sea_peft.data.layouts.reading import case_id, unique_ids, volumes_in
from sea_peft.data.volumes import volume_stem
from sea_peft.errors import DataError

CHANNELS = ("FLAIR", "T1", "T1c", "T2")
_UNTIL_2021 = {"flair": "FLAIR", "t1": "T1", "t1ce": "T1c", "t1gd": "T1c", "t2": "T2"}
_SINCE_2023 = {"t2f": "FLAIR", "t1n": "T1", "t1c": "T1c", "t2w": "T2"}
_SEQUENCE = re.compile(r"^.+[-_](?P<sequence>[a-z0-9]+)$", re.IGNORECASE)

_DEPTH = 3  # root / release / cohort / case

LABELS_UNTIL_2021 = {"necrosis": (1,), "edema": (2,), "enhancing": (4,)}
LABELS_SINCE_2023 = {"necrosis": (1,), "edema": (2,), "enhancing": (3,)}


def read(root: Path) -> Dataset | None:
    """The data set at `root`, or None when its subfolders hold no BraTS files."""
    if not root.is_dir():
        return None
    cases: list[FileCase] = []
    namings: dict[bool, str] = {}  # whether since 2023 → a file with such a name
    for folder in _folders(root):
        found = [(_meaning(path), path) for path in volumes_in(folder)]
        files = [(meaning, path) for meaning, path in found if meaning is not None]
        by_meaning = dict(files)
        # FLAIR or a segmentation, because TotalSegmentator's masks end in _T1 and _T2 too
        # (vertebrae)
        if not {"FLAIR", "seg"} & by_meaning.keys() or by_meaning.keys() == {"seg"}:
            continue
        unique_ids(folder.name, [meaning for meaning, _ in files])
        images = {
            channel: ImageFile(by_meaning[channel]) for channel in CHANNELS if channel in by_meaning
        }
        namings |= {
            _sequence(path) in _SINCE_2023: path.name for meaning, path in files if meaning != "seg"
        }
        cases.append(
            FileCase(id=case_id(folder.name), images=images, label_file=by_meaning.get("seg"))
        )
    if not cases:
        return None
    if len(namings) > 1:
        raise DataError(
            f"{root.name} mixes BraTS until 2021 ({namings[False]}, where code 4 is the enhancing"
            f" tumour) with BraTS since 2023 ({namings[True]}, where it is code 3); give one of"
            " the two"
        )
    unique_ids(root.name, [case.id for case in cases])
    cases.sort(key=lambda case: case.id)
    return Dataset(
        name=safe_name(root.resolve().name),
        layout="brats",
        channels=tuple(
            channel for channel in CHANNELS if any(channel in case.images for case in cases)
        ),
        labels=LABELS_SINCE_2023 if True in namings else LABELS_UNTIL_2021,
        cases=tuple(case for case in cases if case.labelled),
        unlabelled=tuple(case for case in cases if not case.labelled),
        # 3 was the non-enhancing core until 2016, 4 the enhancing one until 2021 and the cavity
        # since 2024
        codes=frozenset({1, 2, 3, 4}),
    )


def _folders(root: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """The folders in `root` and in their subfolders (BraTS 2019: HGG and LGG; BraTS-Africa:
    95_Glioma, 51_OtherNeoplasms).

    Links are followed, unless they lead to where the folder itself lies.
    """
    for child in sorted(root.iterdir()):
        if not child.is_dir() or child.name.startswith("."):
            continue
        if child.is_symlink() and child.resolve() in (root.resolve(), *root.resolve().parents):
            continue
        yield child
        if depth > 1:
            yield from _folders(child, depth - 1)


def _sequence(path: Path) -> str:
    match = _SEQUENCE.match(volume_stem(path))
    return match["sequence"].lower() if match else ""


def _meaning(path: Path) -> str | None:
    """The channel of a file, `seg`, or None for a file that is neither."""
    sequence = _sequence(path)
    return "seg" if sequence == "seg" else _UNTIL_2021.get(sequence) or _SINCE_2023.get(sequence)
