"""Shared parts of the layout readers: listing volumes, reading JSON, and finding labels that
nobody declared.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from sea_peft.data.cases import FileCase
from sea_peft.data.codes import MOST_CODE, code_counts
from sea_peft.data.volumes import volume_stem, volume_suffix
from sea_peft.errors import DataError

CHANNEL_SUFFIX = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")  # nnU-Net's `case_0000`
LABEL_FOLDERS = ("labels", "labelsTr", "label", "masks", "segmentations")
# `X_image` and `X_label`, and 3D Slicer's `X.seg`
ROLE = re.compile(
    r"^(?P<case>.+?)[._-](?P<role>image|img|label|labels|seg|mask|segmentation)$", re.IGNORECASE
)
_IGNORE = "ignore"  # nnU-Net: voxels that nobody labelled
_CASES_READ_FOR_LABELS = 20
_MOST_LABELS = 2000  # atlases have hundreds; an MR scan mistaken for a label map has more


def volumes_in(folder: Path) -> list[Path]:
    """The volume files directly in `folder`, sorted by name, without hidden files."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if volume_suffix(p) and not p.name.startswith("."))


def child_folder(root: Path, names: Iterable[str]) -> Path | None:
    """The folder in `root` with one of these names, in either case; earlier names first."""
    by_lower = {child.name.lower(): child for child in root.iterdir() if child.is_dir()}
    return next((by_lower[name.lower()] for name in names if name.lower() in by_lower), None)


def label_folder(root: Path) -> Path | None:
    """The folder of labels in `root`."""
    return child_folder(root, LABEL_FOLDERS)


def case_of_label(path: Path) -> str:
    """The case in a file's name, without suffix and role (`X_label.nii.gz`, `X.seg.nrrd`)."""
    match = ROLE.match(volume_stem(path))
    return match["case"] if match else volume_stem(path)


def read_json(path: Path) -> dict[str, object]:
    """A JSON object. Raises `DataError` naming the line where it breaks."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not valid JSON (line {error.lineno}: {error.msg}); correct it"
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} is not a JSON text file; write it again") from error
    except ValueError as error:  # a number too long to read
        raise DataError(
            f"{path} holds a value that cannot be read ({str(error)[:80]}); correct it"
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path} must hold a JSON object {{…}}, not a {type(content).__name__}; correct it"
        )
    return content


def unknown_keys(where: str, keys: Iterable[str], known: Sequence[str]) -> list[str]:
    """One sentence for each unknown key, with the known key that it resembles."""
    return [
        f"{where}: key {key!r} is not known and is ignored{did_you_mean(key, known)}"
        for key in keys
        if key not in known
    ]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` if a known name resembles `name`, otherwise nothing."""
    by_lower = {str(k).lower(): str(k) for k in known}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.6)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def parse_labels(where: str, labels: object) -> dict[str, tuple[int, ...]]:
    """The `labels` entry of nnU-Net (`name: code` or `name: [codes]`) or MSD (`"code": name`),
    without the background.

    nnU-Net's `ignore` label is dropped too: its voxels are unlabelled, not a structure (see
    `ignored_codes`).
    """
    parsed: dict[str, tuple[int, ...]] = {}
    for name, numbers in _named_codes(where, labels):
        if name.lower() in ("background", _IGNORE) or numbers == (0,):
            continue
        if min(numbers) < 0 or max(numbers) > MOST_CODE:
            raise DataError(
                f"{where}: label {name!r} has the codes {list(numbers)}; they must lie in"
                f" 0..{MOST_CODE}"
            )
        if name in parsed:
            raise DataError(f"{where}: label {name!r} is declared twice; give each label one name")
        parsed[name] = numbers
    if not parsed:
        raise DataError(f"{where}: labels declares nothing but background; add the structures")
    return parsed


def ignored_codes(where: str, labels: object) -> frozenset[int]:
    """The codes that a `labels` entry calls `ignore`. 0 is always the background."""
    found = (numbers for name, numbers in _named_codes(where, labels) if name.lower() == _IGNORE)
    return frozenset(code for numbers in found for code in numbers) - {0}


def _named_codes(where: str, labels: object) -> Iterator[tuple[str, tuple[int, ...]]]:
    if not isinstance(labels, Mapping) or not labels:
        raise DataError(
            f'{where}: labels must map names to codes, for instance {{"background": 0, "liver": 1}}'
        )
    for key, value in labels.items():
        name, codes = (
            (value, key) if isinstance(value, str) and not _is_code(value) else (key, value)
        )
        if isinstance(name, str) and _is_code(codes):
            numbers: tuple[int, ...] = (int(codes),)
        elif isinstance(codes, list) and codes and all(_is_code(c) for c in codes):
            numbers = tuple(dict.fromkeys(int(c) for c in codes))
        else:
            raise DataError(
                f"{where}: label {key!r} has the code {value!r}; a whole number or a list of them"
                " is needed"
            )
        yield str(name), numbers


def _is_code(value: object) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"\d{1,6}", value.strip()) is not None
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**6


def parse_channels(where: str, channels: object) -> tuple[str, ...]:
    """The channel names of `channel_names` or `modality` (`{"0": "FLAIR", …}`), by number."""
    if not isinstance(channels, Mapping) or not channels:
        raise DataError(
            f'{where}: the channels must map numbers to names, for instance {{"0": "CT"}}'
        )
    numbered: dict[int, str] = {}
    for key, name in channels.items():
        if not _is_code(key) or not isinstance(name, str) or not name.strip():
            raise DataError(
                f'{where}: channel {key!r}: {name!r} must map a number to a name, for instance "0":'
                ' "CT"'
            )
        numbered[int(key)] = name.strip()
    if sorted(numbered) != list(range(len(channels))):
        raise DataError(
            f"{where}: channel numbers are {sorted(numbered)}; they must run from 0 without gaps"
        )
    names = tuple(numbered[i] for i in range(len(numbered)))
    if len({n.lower() for n in names}) != len(names):
        raise DataError(f"{where}: channel names {list(names)} are not unique; name each once")
    return names


def unnamed_channels(numbers: Sequence[int]) -> tuple[str, ...]:
    """Names for channels of these numbers that nobody named: `image` if there is only one."""
    return ("image",) if len(numbers) <= 1 else tuple(f"channel_{n}" for n in numbers)


def found_labels(cases: Sequence[FileCase]) -> dict[str, tuple[int, ...]]:
    """Labels of a layout that declares none: `label_<code>` for every code in at most twenty label
    maps.

    Unreadable label maps are skipped if others can be read; the checks report them.

    Raises:
        DataError: None can be read, or one holds too many values to be a label map.
    """
    codes: set[int] = set()
    unreadable: list[DataError] = []
    read = 0
    for case in cases[:: max(1, len(cases) // _CASES_READ_FOR_LABELS)]:
        try:
            stored = case.label()
            if stored is not None:
                codes.update(code_counts(stored.array, f"case {case.id}: label"))
                read += 1
        except DataError as error:
            unreadable.append(error)
        if len(codes) > _MOST_LABELS:
            raise DataError(
                f"case {case.id}: the label file holds over {_MOST_LABELS} different values, so it"
                " is no label map; were images and labels swapped?"
            )
    if unreadable and not read:
        raise DataError(f"no label map can be read: {unreadable[0]}")
    return {f"label_{code}": (code,) for code in sorted(codes - {0})}


def unique_ids(where: str, ids: Sequence[str]) -> None:
    """Refuse two cases of one name."""
    seen: set[str] = set()
    for case in ids:
        if case in seen:
            raise DataError(f"{where}: two cases are called {case}; rename one")
        seen.add(case)


def case_id(text: str) -> str:
    """A case id that is safe inside a file name: no separators, no control characters, no
    leading dot.
    """
    kept = "".join(c if c.isprintable() and c not in "/\\:" else "_" for c in text.strip())
    return kept.lstrip(".") or "case"


def by_case(
    images: Iterable[Path], labelled: Callable[[str], bool]
) -> list[tuple[str, int | None, Path]]:
    """Each image with its case and its channel number; None if a number at the end is part of the
    case's name, as in `amos_0001`.

    The labels decide between `patient` with the channels 0 to 3 and four cases `patient_0000` to
    `patient_0003`. Files that neither reading labels are read like the labelled ones, and as
    channels only if there is a channel 0.

    Args:
        images: the volumes of one folder.
        labelled: whether there is a label map of this name.
    """
    stems = {path: volume_stem(path) for path in images}
    present = set(stems.values())
    matches = {path: match for path, stem in stems.items() if (match := CHANNEL_SUFFIX.match(stem))}
    whole = {match["case"] for path, match in matches.items() if labelled(stems[path])}
    others = {match["case"] for match in matches.values()} - whole
    apart = {name for name in others if labelled(name)}
    if apart or not any(map(labelled, present)):
        apart |= {name for name in others if f"{name}_0000" in present}
    found: list[tuple[str, int | None, Path]] = []
    for path, stem in stems.items():
        match = matches.get(path)
        if match and match["case"] in apart:
            found.append((match["case"], int(match["channel"]), path))
        else:
            found.append((stem, None, path))
    return found
