"""Plain folders: `images/` and `labels/` (or `imagesTr/` and `labelsTr/`, as FLARE22 ships them), or pairs
`X_image.nrrd` + `X_label.nrrd` side by side. Files match by name; `_0000` marks a channel where the labels go without it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from sea_peft.data.cases import Dataset, FileCase, ImageFile, safe_name
from sea_peft.data.layouts.files import (
    by_case,
    case_id,
    found_labels,
    unique_ids,
    volumes_in,
)
from sea_peft.data.volumes import volume_stem

IMAGE_FOLDERS = ("images", "imagesTr", "image", "scans")
LABEL_FOLDERS = ("labels", "labelsTr", "label", "masks", "segmentations")
_PAIR = re.compile(r"^(?P<case>.+?)[_-](?P<role>image|img|label|seg|mask)$", re.IGNORECASE)

# https://flare22.grand-challenge.org: codes 1 to 13
FLARE22_LABELS = (
    "liver", "right_kidney", "spleen", "pancreas", "aorta", "inferior_vena_cava", "right_adrenal_gland",
    "left_adrenal_gland", "gallbladder", "esophagus", "stomach", "duodenum", "left_kidney",
)  # fmt: skip


def read(root: Path) -> Dataset | None:
    """The data set at `root`, or None when it has neither the two folders nor pairs."""
    if not root.is_dir():
        return None
    image_folder = _child(root, IMAGE_FOLDERS)
    label_folder = _child(root, LABEL_FOLDERS)
    if image_folder is not None and label_folder is not None:
        labels = [(_without_role(volume_stem(p)), p) for p in volumes_in(label_folder)]
        labelled = {case for case, _ in labels}
        found = by_case(volumes_in(image_folder), lambda name: _without_role(name) in labelled)
        images = [(_without_role(case), channel or 0, p) for case, channel, p in found]
    else:
        roles = [(m["case"], m["role"].lower(), p) for p in volumes_in(root) if (m := _PAIR.match(volume_stem(p)))]
        images = [(case, 0, p) for case, role, p in roles if role in ("image", "img")]
        labels = [(case, p) for case, role, p in roles if role not in ("image", "img")]
    if not images or not labels:
        return None
    return _dataset(root, images, labels)


def _dataset(root: Path, images: list[tuple[str, int, Path]], labels: list[tuple[str, Path]]) -> Dataset:
    unique_ids(root.name, [case for case, _ in labels])
    label_files = dict(labels)
    files: dict[str, dict[str, ImageFile]] = {}
    flare = all(case.lower().startswith("flare22") for case, _, _ in images)
    numbers = sorted({channel for _, channel, _ in images})
    unique_ids(root.name, [f"{case} (channel {channel})" for case, channel, _ in images])
    names = ("CT",) if flare and numbers == [0] else _names(numbers)
    for case, channel, path in images:
        files.setdefault(case, {})[names[numbers.index(channel)]] = ImageFile(path)
    cases = [
        FileCase(case_id(case), {n: found[n] for n in names if n in found}, label_files.get(case))
        for case, found in sorted(files.items())
    ]
    labelled = [case for case in cases if case.labelled]
    declared = {name: (code,) for code, name in enumerate(FLARE22_LABELS, start=1)} if flare else None
    strays = sorted(set(label_files) - set(files))
    return Dataset(
        name=safe_name(root.resolve().name),
        layout="folders",
        channels=names,
        labels=declared or found_labels(labelled),
        cases=tuple(labelled),
        unlabelled=tuple(case for case in cases if not case.labelled),
        codes=frozenset(range(1, len(FLARE22_LABELS) + 1)) if flare else None,
        warnings=tuple(f"label {label_files[case].name} is ignored: it has no image" for case in strays),
    )


def _child(root: Path, names: Iterable[str]) -> Path | None:
    by_lower = {child.name.lower(): child for child in root.iterdir() if child.is_dir()}
    return next((by_lower[name.lower()] for name in names if name.lower() in by_lower), None)


def _without_role(stem: str) -> str:
    match = _PAIR.match(stem)
    return match["case"] if match else stem


def _names(numbers: list[int]) -> tuple[str, ...]:
    return ("image",) if len(numbers) == 1 else tuple(f"channel_{n}" for n in numbers)
