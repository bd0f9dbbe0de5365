"""Finds cases in the files and folders given to predict, and matches the adapter's channels by name
if there are names.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from sea_peft.data.cases import Dataset, FileCase, ImageFile
from sea_peft.data.dicom.files import is_dicom
from sea_peft.data.intensity import is_ct_name
from sea_peft.data.layouts import READERS, nnunet
from sea_peft.data.layouts.reading import (
    CHANNEL_SUFFIX,
    case_id,
    parse_channels,
    read_json,
    volumes_in,
)
from sea_peft.data.select import pick_channels
from sea_peft.data.volumes import SUFFIXES, volume_stem, volume_suffix
from sea_peft.data.wording import count
from sea_peft.errors import DataError, UsageError

# Readers' names for channels in a layout without names
_NUMBER = re.compile(r"(channel_|_)?(?P<number>\d{1,4})")
_UNNAMED = re.compile(r"image|channel_\d+")


def find_cases(
    inputs: Iterable[Path],
    channels: Sequence[str],
    named: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
    labelled: bool = True,
) -> list[FileCase]:
    """The cases in files and folders, each with its images under the adapter's channel names,
    sorted by id.

    A folder is a data set in a known layout, or it holds scans. Files whose names differ only in
    `_0000`, `_0001`, … are the channels of one case, in the order of the `dataset.json` above them
    if there is one, else in the adapter's.

    Args:
        inputs: files and folders.
        channels: the adapter's channels.
        named: the inputs' names for them, in the same order: a name of their data set, or a number
            in their file names. Empty if names and order suffice.
        say: receives sentences on what a data set's reader skipped, took only once or left open.
        labelled: whether to take the labelled cases of a data set.

    Raises:
        DataError: a path does not exist, a folder holds no scan, channels do not fit, or two cases
            have one name.
    """
    if named and len(named) != len(channels):
        raise UsageError(
            f"The adapter takes {count(len(channels), 'channel')} ({', '.join(channels)}), not"
            f" {len(named)}; name as many with --channel."
        )
    cases: list[FileCase] = []
    files: list[Path] = []
    for path in inputs:
        if not path.exists():
            raise DataError(f"no such file or folder: {path}; check the path")
        if path.is_dir():
            dataset = next(
                (found for read in READERS.values() if (found := read(path)) is not None), None
            )
            if dataset is not None:
                if say is not None:
                    for warning in dataset.warnings:
                        say(f"{warning}.")
                if not labelled:
                    dataset = _unlabelled(dataset, path, say)
                cases += _from_dataset(dataset, channels, named)
                continue
            scans = volumes_in(path)
            if not scans:
                raise DataError(
                    f"{path} holds no scans ({', '.join(SUFFIXES)}, DICOM) and no data set; check"
                    " the path"
                )
            files += scans
        elif volume_suffix(path) is None:
            hint = (
                "it is one DICOM file: give its folder"
                if is_dicom(path)
                else f"the name must end in one of {', '.join(SUFFIXES)}"
            )
            raise DataError(f"{path} is not a scan; {hint}")
        else:
            files.append(path)
    cases += _grouped(list(dict.fromkeys(files)), channels, named)
    seen: set[str] = set()
    for case in cases:
        if case.id in seen:
            raise DataError(
                f"two inputs are called {case.id}, and results go by that name; rename one, or"
                " leave it out"
            )
        seen.add(case.id)
    return sorted(cases, key=lambda case: case.id)


def matching_channels(dataset: Dataset, wanted: Sequence[str]) -> tuple[str, ...]:
    """The data set's names for the adapter's channels, in the adapter's order.

    Names that a reader made up carry no meaning, so they match by position.

    Raises:
        DataError: a channel is missing.
    """
    unnamed = any(
        all(_UNNAMED.fullmatch(name) for name in names) for names in (dataset.channels, wanted)
    )
    # DICOM says that a series is MR, but not which sequence
    unnamed = unnamed or (
        dataset.layout == "dicom"
        and dataset.channels == ("MR",)
        and not any(map(is_ct_name, wanted))
    )
    if unnamed and len(dataset.channels) == len(wanted):
        return dataset.channels
    return pick_channels(dataset, wanted)


def _unlabelled(dataset: Dataset, path: Path, say: Callable[[str], None] | None) -> Dataset:
    left_out = len(dataset.cases) + len(dataset.test_cases)
    if not dataset.unlabelled:
        raise DataError(
            f"every scan of {path} is labelled; give scans that are not, or a folder of nothing but"
            " scans"
        )
    if left_out and say is not None:
        say(
            f"{path}: {left_out} of {count(left_out + len(dataset.unlabelled), 'scan')} labelled,"
            " and left out."
        )
    return dataset.with_cases((), ())


def _from_dataset(dataset: Dataset, wanted: Sequence[str], named: Sequence[str]) -> list[FileCase]:
    names = pick_channels(dataset, named) if named else matching_channels(dataset, wanted)
    pairs = list(zip(wanted, names, strict=True))
    cases = []
    for case in (*dataset.cases, *dataset.test_cases, *dataset.unlabelled):
        own = case.images if isinstance(case, FileCase) else {}
        images = {ours: own[theirs] for ours, theirs in pairs if theirs in own}
        # a DICOM study has a case for every series, of which only some are of the adapter's kind
        if isinstance(case, FileCase) and (images or dataset.layout != "dicom"):
            cases.append(FileCase(id=case.id, images=images))
    return cases


def _grouped(files: Sequence[Path], wanted: Sequence[str], named: Sequence[str]) -> list[FileCase]:
    groups: dict[tuple[Path, str], dict[int, Path]] = {}
    alone: list[FileCase] = []
    stems = {(path.parent, volume_stem(path)) for path in files}
    for path in files:
        match = CHANNEL_SUFFIX.match(volume_stem(path))
        # without a `_0000` beside it a number is part of the name, as in `patient_0012`
        numbered = match is not None and (
            len(wanted) > 1
            or named
            or (path.parent, f"{match['case']}_0000") in stems
            or _declared(path) is not None
        )
        if match is not None and numbered:
            groups.setdefault((path.parent, match["case"]), {})[int(match["channel"])] = path
        elif len(wanted) > 1:
            raise DataError(
                f"{path.name} has no channel number, but the adapter takes"
                f" {count(len(wanted), 'channel')} ({', '.join(wanted)}); name the files X_0000,"
                " X_0001, … in that order"
            )
        else:
            alone.append(
                FileCase(id=case_id(volume_stem(path)), images={wanted[0]: ImageFile(path)})
            )
    return alone + [
        _case(case_id(case), numbered, wanted, named) for (_, case), numbered in groups.items()
    ]


def _case(
    case: str, numbered: dict[int, Path], wanted: Sequence[str], named: Sequence[str]
) -> FileCase:
    first = next(iter(numbered.values()))
    declared = _declared(first)
    if declared is not None and max(numbered) < len(declared.channels):
        names = pick_channels(declared, named) if named else matching_channels(declared, wanted)
        by_name = {declared.channels[number]: path for number, path in numbered.items()}
        images = {
            ours: ImageFile(by_name[theirs])
            for ours, theirs in zip(wanted, names, strict=True)
            if theirs in by_name
        }
        if not images:
            raise DataError(
                f"{first.name} is {', '.join(by_name)} by its dataset.json, but the adapter takes"
                f" {', '.join(wanted)}; give the files of that channel"
            )
        return FileCase(id=case, images=images)
    numbers = [_NUMBER.fullmatch(name.strip()) for name in named]
    if named and all(numbers):
        picked = [int(match["number"]) for match in numbers if match is not None]
        missing = [number for number in picked if number not in numbered]
        if missing:
            raise DataError(
                f"case {case} has no file _{missing[0]:04d}; give it, or choose another channel"
                " with --channel"
            )
        return FileCase(
            id=case,
            images={
                ours: ImageFile(numbered[number])
                for ours, number in zip(wanted, picked, strict=True)
            },
        )
    if max(numbered) >= len(wanted):
        raise DataError(
            f"case {case} has the channels {', '.join(f'_{n:04d}' for n in sorted(numbered))}, but"
            f" the adapter takes {len(wanted)} ({', '.join(wanted)}); give only the files of those,"
            " or their numbers in that order (--channel 0)"
        )
    return FileCase(
        id=case,
        images={wanted[number]: ImageFile(path) for number, path in sorted(numbered.items())},
    )


def _declared(image: Path) -> Dataset | None:
    """The channels in the nnU-Net `dataset.json` above an image, as a data set without cases; None
    if numbers at the end of names belong to the cases.
    """
    description = image.resolve().parent.parent / "dataset.json"
    if not image.resolve().parent.name.startswith("images") or not description.is_file():
        return None
    content = read_json(description)
    names = content.get("channel_names", content.get("modality"))
    if names is None or not nnunet.numbered(description.parent, content):
        return None
    channels = parse_channels(description.name, names)
    return Dataset(
        name=description.parent.name, layout="nnunet_raw", channels=channels, labels={}, cases=()
    )
