"""nnU-Net raw data sets: `dataset.json`, `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`.

Reads both generations of dataset.json: v2 (`channel_names`, labels as name → code or list of codes,
`file_ending`) and v1 (`modality`, labels as code → name). Images of `imagesTs` are test cases if
`labelsTs` labels them. Source: https://github.com/MIC-DKFZ/nnUNet, documentation/dataset_format.md.
"""

from pathlib import Path

from sea_peft.data.cases import Dataset, FileCase, ImageFile, safe_name
from sea_peft.data.layouts import reading
from sea_peft.data.volumes import SUFFIXES, volume_stem, volume_suffix
from sea_peft.errors import DataError

# several published data sets spell it "relase"
KNOWN_KEYS = (
    "channel_names",
    "modality",
    "labels",
    "file_ending",
    "numTraining",
    "numTest",
    "name",
    "description",
    "reference",
    "licence",
    "license",
    "release",
    "relase",
    "tensorImageSize",
    "training",
    "test",
    "regions_class_order",
    "dataset",
    "citation",
    "overwrite_image_reader_writer",
    "converted_by",
    "dataset_name",
    "dim",
)


def read(root: Path) -> Dataset | None:
    """The data set at `root`, or None when it is not an nnU-Net raw folder."""
    description = root / "dataset.json"
    if not root.is_dir() or not description.is_file():
        return None
    content = reading.read_json(description)
    listed = "dataset" in content and "training" not in content
    if not listed and not (root / "imagesTr").is_dir():
        return None
    if not listed and not numbered(root, content):
        return None  # Decathlon: the same folders, but files without channel numbers
    where = f"{root.name}/dataset.json"
    channels = reading.parse_channels(where, _entry(where, content, "channel_names", "modality"))
    labels = reading.parse_labels(where, _entry(where, content, "labels"))
    ignored = reading.ignored_codes(where, content["labels"])
    warnings = reading.unknown_keys(where, content, KNOWN_KEYS)
    ending = str(content.get("file_ending", "")).lower()
    labelled, unlabelled, strays = _cases(root, "imagesTr", "labelsTr", channels, ending, ignored)
    if listed:
        labelled = _listed_cases(where, root, content["dataset"], channels, ignored)
    test, unlabelled_test, more_strays = _cases(
        root, "imagesTs", "labelsTs", channels, ending, ignored
    )
    if not labelled and not unlabelled:
        if ending and ending not in SUFFIXES and not listed:
            raise DataError(
                f"{where}: file_ending is {ending!r}, a format that is not read; convert images and"
                f" labels to one of {', '.join(SUFFIXES)}, with their voxel size"
            )
        if _of_ending(root / "imagesTr", ending):
            raise DataError(
                f"{root.name}/{strays[0]}; rename the images, or list them as 'training' in"
                " dataset.json"
            )
        raise DataError(
            f"{root.name}/imagesTr holds no {ending or 'volume'} files; check file_ending in"
            " dataset.json"
        )
    promised = content.get("numTraining")
    if isinstance(promised, int) and promised != len(labelled):
        warnings.append(
            f"{where}: numTraining is {promised}, but {len(labelled)} labelled cases were found"
        )
    return Dataset(
        name=safe_name(root.resolve().name),
        layout="nnunet_raw",
        channels=channels,
        labels=labels,
        cases=tuple(labelled),
        test_cases=tuple(test),
        unlabelled=tuple(unlabelled + unlabelled_test),
        codes=frozenset(code for codes in labels.values() for code in codes) | ignored,
        warnings=(*warnings, *strays, *more_strays),
    )


def _entry(where: str, content: dict[str, object], *names: str) -> object:
    for name in names:
        if name in content:
            return content[name]
    raise DataError(f"{where} has no {names[0]!r}{_nearest(names[0], content)}; add it")


def _nearest(name: str, content: dict[str, object]) -> str:
    strangers = [key for key in content if key not in KNOWN_KEYS]
    hint = reading.did_you_mean(name, strangers)
    return f" (is {hint.split(chr(39))[1]!r} a misspelling of it?)" if hint else ""


def numbered(root: Path, content: dict[str, object]) -> bool:
    """Whether images of imagesTr end in channel numbers.

    `content` of dataset.json tells it or, if that lists the files or is of nnU-Net v1, their names.
    Numbers that belong to the cases' names, as in AMOS22, do not count.
    """
    if "channel_names" in content and "training" not in content:
        return True
    labels = {volume_stem(path) for path in reading.volumes_in(root / "labelsTr")}
    return any(
        channel is not None
        for _, channel, _ in reading.by_case(
            reading.volumes_in(root / "imagesTr"), labels.__contains__
        )
    )


def _cases(
    root: Path,
    image_folder: str,
    label_folder: str,
    channels: tuple[str, ...],
    ending: str,
    ignored: frozenset[int],
) -> tuple[list[FileCase], list[FileCase], list[str]]:
    """Labelled cases, unlabelled cases, and sentences about files that belong to none."""
    warnings: list[str] = []
    labels = {volume_stem(path): path for path in _of_ending(root / label_folder, ending)}
    images: dict[str, dict[str, ImageFile]] = {}
    for path in _of_ending(root / image_folder, ending):
        match = reading.CHANNEL_SUFFIX.match(volume_stem(path))
        of_the_name = (
            match is not None and match["case"] not in labels and volume_stem(path) in labels
        )
        if match is None or of_the_name or int(match["channel"]) >= len(channels):
            warnings.append(
                f"{image_folder}/{path.name} is ignored: its name must end in a channel number"
                f" _0000 to _{len(channels) - 1:04d}"
            )
            continue
        images.setdefault(match["case"], {})[channels[int(match["channel"])]] = ImageFile(path)
    warnings += [
        f"{label_folder}/{labels[c].name} is ignored: there is no image"
        f" {image_folder}/{c}_0000{volume_suffix(labels[c])}"
        for c in sorted(set(labels) - set(images))
    ]
    cases = []
    for name, files in sorted(images.items()):
        present = {c: files[c] for c in channels if c in files}
        case = FileCase(
            id=reading.case_id(name), images=present, label_file=labels.get(name), ignored=ignored
        )
        cases.append(case)
    return [c for c in cases if c.labelled], [c for c in cases if not c.labelled], warnings


def _listed_cases(
    where: str, root: Path, listed: object, channels: tuple[str, ...], ignored: frozenset[int]
) -> list[FileCase]:
    """Cases that dataset.json lists by file (`dataset: {CASE: {images: [...], label: ...}}`)."""
    if not isinstance(listed, dict):
        raise DataError(f"{where}: dataset must map case names to files; correct it")
    cases = []
    for name, entry in listed.items():
        images = entry.get("images") if isinstance(entry, dict) else None
        paths = [*images, entry.get("label")] if isinstance(images, list) else []
        if len(paths) != len(channels) + 1 or not all(
            isinstance(p, str) and "\0" not in p for p in paths
        ):
            raise DataError(
                f"{where}: case {name!r} of dataset must list {len(channels)} images and have a"
                " label"
            )
        files = [root / path for path in paths]
        sources = {
            channel: ImageFile(file) for channel, file in zip(channels, files[:-1], strict=True)
        }
        cases.append(
            FileCase(
                id=reading.case_id(name), images=sources, label_file=files[-1], ignored=ignored
            )
        )
    return sorted(cases, key=lambda case: case.id)


def _of_ending(folder: Path, ending: str) -> list[Path]:
    return [
        path for path in reading.volumes_in(folder) if not ending or volume_suffix(path) == ending
    ]
