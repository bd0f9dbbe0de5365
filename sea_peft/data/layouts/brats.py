"""BraTS: one folder per case, one file per sequence, named by the sequence.

Until 2021 files end in `_flair`, `_t1`, `_t1ce`, `_t2` and `_seg`; from 2023 on, and in BraTS-Africa, in
`-t2f`, `-t1n`, `-t1c`, `-t2w` and `-seg`. Sequences are told apart by these names, never by position.
Sources: https://www.med.upenn.edu/cbica/brats2021; https://www.synapse.org/brats2023;
https://doi.org/10.7937/v8h6-8x67 (BraTS-Africa).
"""

from __future__ import annotations

import re
from pathlib import Path

from sea_peft.data.cases import Dataset, FileCase, ImageFile, safe_name
from sea_peft.data.layouts.files import case_id, unique_ids, volumes_in
from sea_peft.data.volumes import volume_stem

CHANNELS = ("FLAIR", "T1", "T1c", "T2")
_UNTIL_2021 = {"flair": "FLAIR", "t1": "T1", "t1ce": "T1c", "t1gd": "T1c", "t2": "T2"}
_SINCE_2023 = {"t2f": "FLAIR", "t1n": "T1", "t1c": "T1c", "t2w": "T2"}
_SEQUENCE = re.compile(r"^.+[-_](?P<sequence>[a-z0-9]+)$", re.IGNORECASE)

LABELS_UNTIL_2021 = {"necrosis": (1,), "edema": (2,), "enhancing": (4,)}
LABELS_SINCE_2023 = {"necrosis": (1,), "edema": (2,), "enhancing": (3,)}


def read(root: Path) -> Dataset | None:
    """The data set at `root`, or None when its subfolders hold no BraTS files."""
    if not root.is_dir():
        return None
    cases: list[FileCase] = []
    recent = False
    for folder in sorted(child for child in root.iterdir() if child.is_dir()):
        found = [(_meaning(path), path) for path in volumes_in(folder)]
        files = [(meaning, path) for meaning, path in found if meaning is not None]
        unique_ids(folder.name, [meaning for meaning, _ in files])
        by_meaning = dict(files)
        images = {channel: ImageFile(by_meaning[channel]) for channel in CHANNELS if channel in by_meaning}
        recent = recent or any(_sequence(path) in _SINCE_2023 for _, path in files)
        if images:
            cases.append(FileCase(case_id(folder.name), images, by_meaning.get("seg")))
    labelled = [case for case in cases if case.labelled]
    if not labelled:
        return None
    return Dataset(
        name=safe_name(root.resolve().name),
        layout="brats",
        channels=tuple(channel for channel in CHANNELS if any(channel in case.images for case in cases)),
        labels=LABELS_SINCE_2023 if recent else LABELS_UNTIL_2021,
        cases=tuple(labelled),
        unlabelled=tuple(case for case in cases if not case.labelled),
        # 3 was the non-enhancing core until 2016, 4 the enhancing one until 2021 and the cavity since 2024
        codes=frozenset({1, 2, 3, 4}),
    )


def _sequence(path: Path) -> str:
    match = _SEQUENCE.match(volume_stem(path))
    return match["sequence"].lower() if match else ""


def _meaning(path: Path) -> str | None:
    """The channel that a file holds, `seg`, or None for a file that is neither."""
    sequence = _sequence(path)
    return "seg" if sequence == "seg" else _UNTIL_2021.get(sequence) or _SINCE_2023.get(sequence)
