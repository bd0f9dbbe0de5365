"""Datalists: the `dataset.json` of the Medical Segmentation Decathlon and the datalist of MONAI's
Auto3DSeg.

`{"training": [{"image": …, "label": …, "fold": 0}], "validation": […], "testing" or "test": […]}`,
with paths relative to the JSON file. `image` is one path (of a 3D file, or of a 4D file with the
channels) or a list of paths, one per channel. All labelled entries of `training` and `validation`
are candidates. Folds are not used, because shots are drawn by seed. Sources:
http://medicaldecathlon.com; https://github.com/Project-MONAI/tutorials/tree/main/auto3dseg.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sea_peft.data.cases import Dataset, FileCase, ImageFile, safe_name
from sea_peft.data.layouts import reading
from sea_peft.data.volumes import volume_stem
from sea_peft.data.wording import count
from sea_peft.errors import DataError

KNOWN_KEYS = (
    "training",
    "validation",
    "test",
    "testing",
    "labels",
    "modality",
    "channel_names",
    "name",
    "description",
    "reference",
    "licence",
    "license",
    "release",
    "relase",
    "tensorImageSize",
    "numTraining",
    "numValidation",
    "numTest",
    "citation",
)
KNOWN_ENTRY_KEYS = ("image", "label", "fold", "id")
_GENERIC_STEMS = ("image", "img", "label", "seg", "mask", "segmentation", "ct", "mri", "labels")
_FILE_NAMES = ("dataset.json", "datalist.json")


def read(path: Path) -> Dataset | None:
    """The data set of a datalist file, or of the folder that holds one; None when there is none."""
    files = [path / name for name in _FILE_NAMES] if path.is_dir() else [path]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        return None
    content = reading.read_json(found)
    where = found.name
    if "training" not in content:
        hint = reading.did_you_mean("training", [key for key in content if key not in KNOWN_KEYS])
        raise DataError(
            f"{where} has no list 'training'{hint and f' (it has {_quoted(hint)})'}; add it"
        )
    warnings = reading.unknown_keys(where, content, KNOWN_KEYS)
    declared = content.get("channel_names", content.get("modality"))
    channels = reading.parse_channels(where, declared) if declared is not None else None
    labels = reading.parse_labels(where, content["labels"]) if "labels" in content else None
    ignored = (
        reading.ignored_codes(where, content["labels"]) if "labels" in content else frozenset()
    )
    root = found.parent
    candidates, width = [], len(channels) if channels else 0
    for section in ("training", "validation"):
        candidates += _entries(where, section, content.get(section, []), root, channels, ignored)
    tests = _entries(
        where, "test", content.get("test", content.get("testing", [])), root, channels, ignored
    )
    warnings += sorted({w for _, _, odd in candidates + tests for w in odd})
    width = max([width, *(len(case.images) for case, _, _ in candidates)])
    reading.unique_ids(where, [case.id for case, _, _ in candidates])
    labelled = sorted(
        (case for case, has_label, _ in candidates if has_label), key=lambda case: case.id
    )
    return Dataset(
        name=safe_name(root.resolve().name if found.name in _FILE_NAMES else found.stem),
        layout="datalist",
        channels=channels or reading.unnamed_channels(range(width)),
        labels=labels if labels is not None else reading.found_labels(labelled),
        cases=tuple(labelled),
        test_cases=tuple(case for case, has_label, _ in tests if has_label),
        unlabelled=tuple(case for case, has_label, _ in candidates + tests if not has_label),
        codes=(
            frozenset(c for codes in labels.values() for c in codes) | ignored
            if labels is not None
            else None
        ),
        warnings=tuple(warnings),
    )


def _quoted(hint: str) -> str:
    return hint.split("'")[1] + ", a misspelling?"


def _entries(
    where: str,
    section: str,
    entries: object,
    root: Path,
    channels: Sequence[str] | None,
    ignored: frozenset[int],
) -> list[tuple[FileCase, bool, list[str]]]:
    """Each entry's case, whether it has a label, and sentences about its unknown keys."""
    if not isinstance(entries, list):
        raise DataError(
            f"{where}: {section} must be a list of entries, not a {type(entries).__name__};"
            " correct it"
        )
    cases = []
    for number, entry in enumerate(entries):
        entry = {"image": entry} if isinstance(entry, str) else entry
        spot = f"{where}: entry {number} of {section}"
        if not isinstance(entry, dict) or "image" not in entry:
            hint = reading.did_you_mean("image", entry) if isinstance(entry, dict) else ""
            raise DataError(
                f"{spot} has no 'image'{hint and f' (it has {_quoted(hint)})'}; add its path"
            )
        images = _paths(spot, "image", entry["image"], root)
        label = entry.get("label")
        label_file = _paths(spot, "label", label, root)[0] if label else None
        odd = reading.unknown_keys(f"{where}: {section}", entry, KNOWN_ENTRY_KEYS)
        named = (
            reading.case_id(str(entry["id"]))
            if entry.get("id")
            else _named_by(label_file or images[0])
        )
        case = FileCase(
            id=named,
            images=_channel_files(spot, images, channels),
            label_file=label_file,
            ignored=ignored,
        )
        cases.append((case, label_file is not None, odd))
    return cases


def _named_by(path: Path) -> str:
    """The file's own name, or its folder's if the file has the same name in every folder."""
    stem = volume_stem(path)
    return reading.case_id(
        path.parent.name if stem.lower() in _GENERIC_STEMS and path.parent.name else stem
    )


def _paths(spot: str, key: str, value: Any, root: Path) -> list[Path]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(v, str) and v.strip() and "\0" not in v for v in values):
        raise DataError(f"{spot}: {key} is {value!r:.80}; a file path is needed")
    return [root / v for v in values]


def _channel_files(
    spot: str, images: list[Path], channels: Sequence[str] | None
) -> dict[str, ImageFile]:
    if channels is None:
        return dict(
            zip(reading.unnamed_channels(range(len(images))), map(ImageFile, images), strict=True)
        )
    if len(images) == 1 and len(channels) > 1:  # the Decathlon's 4D files
        return {
            name: ImageFile(images[0], component, len(channels))
            for component, name in enumerate(channels)
        }
    if len(images) != len(channels):
        raise DataError(
            f"{spot} lists {count(len(images), 'image')}, but {len(channels)} channels are declared"
            f" ({', '.join(channels)}); list one image per channel"
        )
    return dict(zip(channels, map(ImageFile, images), strict=True))
