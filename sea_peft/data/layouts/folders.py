"""Plain folders of scans and labels.

They are `images/` and `labels/` (or `imagesTr/` and `labelsTr/`, as in FLARE22), pairs
`X_image.nrrd` + `X_label.nrrd` side by side, or 3D Slicer's `X.nrrd` + `X.seg.nrrd`. Files match by
name; `_0000` marks a channel if the labels have no such number. Segmentations of 3D Slicer bring
the names of their segments.
"""

from pathlib import Path

from sea_peft.data.cases import Dataset, FileCase, ImageFile, SlicerCase, safe_name
from sea_peft.data.layouts import reading
from sea_peft.data.layouts.slicer import segments_of
from sea_peft.data.volumes import volume_stem

IMAGE_FOLDERS = ("images", "imagesTr", "image", "scans")
_IMAGE_ROLES = ("image", "img")

# https://flare22.grand-challenge.org: codes 1 to 13
FLARE22_LABELS = (
    "liver",
    "right_kidney",
    "spleen",
    "pancreas",
    "aorta",
    "inferior_vena_cava",
    "right_adrenal_gland",
    "left_adrenal_gland",
    "gallbladder",
    "esophagus",
    "stomach",
    "duodenum",
    "left_kidney",
)


def read(root: Path) -> Dataset | None:
    """The data set at `root`, or None if it has neither the two folders nor pairs."""
    if not root.is_dir():
        return None
    image_folder = reading.child_folder(root, IMAGE_FOLDERS)
    labels_in = reading.label_folder(root)
    if image_folder is not None and labels_in is not None:
        labels = [(reading.case_of_label(p), p) for p in reading.volumes_in(labels_in)]
        labelled = {case for case, _ in labels}
        found = reading.by_case(
            reading.volumes_in(image_folder), lambda name: _without_role(name) in labelled
        )
        images = [(_without_role(case), channel or 0, p) for case, channel, p in found]
    else:
        volumes = reading.volumes_in(root)
        roles = [
            (m["case"], m["role"].lower(), p)
            for p in volumes
            if (m := reading.ROLE.match(volume_stem(p)))
        ]
        labels = [(case, p) for case, role, p in roles if role not in _IMAGE_ROLES]
        labelled = {case for case, _ in labels}
        images = [(case, 0, p) for case, role, p in roles if role in _IMAGE_ROLES]
        images += [(stem, 0, p) for p in volumes if (stem := volume_stem(p)) in labelled]
    if not images or not labels:
        return None
    return _dataset(root, images, labels)


def _dataset(
    root: Path, images: list[tuple[str, int, Path]], labels: list[tuple[str, Path]]
) -> Dataset:
    reading.unique_ids(root.name, [case for case, _ in labels])
    label_files = dict(labels)
    files: dict[str, dict[str, ImageFile]] = {}
    flare = all(case.lower().startswith("flare22") for case, _, _ in images)
    numbers = sorted({channel for _, channel, _ in images})
    reading.unique_ids(root.name, [f"{case} (channel {channel})" for case, channel, _ in images])
    names = ("CT",) if flare and numbers == [0] else reading.unnamed_channels(numbers)
    for case, channel, path in images:
        files.setdefault(case, {})[names[numbers.index(channel)]] = ImageFile(path)
    segments = {case: held for case, path in label_files.items() if (held := segments_of(path))}
    if len(segments) < len(label_files.keys() & files.keys()):
        segments = {}  # some are plain label maps, whose codes have no names
    structures = sorted({name for held in segments.values() for name in held})
    codes = {name: code for code, name in enumerate(structures, start=1)}
    cases: list[FileCase] = []
    for case, found in sorted(files.items()):
        channels = {name: found[name] for name in names if name in found}
        label = label_files.get(case)
        if case in segments:
            parts = {codes[name]: values for name, values in segments[case].items()}
            named = {code: name for name, code in codes.items()}
            layers = 1 + max(layer for values in parts.values() for layer, _ in values)
            cases.append(
                SlicerCase(
                    reading.case_id(case),
                    channels,
                    label_file=label,
                    segments=parts,
                    layers=layers,
                    names=named,
                )
            )
        else:
            cases.append(FileCase(id=reading.case_id(case), images=channels, label_file=label))
    labelled = [case for case in cases if case.labelled]
    declared = (
        {name: (code,) for code, name in enumerate(FLARE22_LABELS, start=1)} if flare else None
    )
    if segments:
        declared = {name: (code,) for name, code in codes.items()}
    strays = sorted(set(label_files) - set(files))
    return Dataset(
        name=safe_name(root.resolve().name),
        layout="folders",
        channels=names,
        labels=declared or reading.found_labels(labelled),
        cases=tuple(labelled),
        unlabelled=tuple(case for case in cases if not case.labelled),
        codes=(
            frozenset(code for group in declared.values() for code in group) if declared else None
        ),
        warnings=tuple(_stray(label_files[case], files) for case in strays),
    )


def _stray(label: Path, files: dict[str, dict[str, ImageFile]]) -> str:
    one = next(iter(files[min(files)].values())).path.name
    return (
        f"label {label.name} is ignored: it has no image of its name (images are called like {one})"
    )


def _without_role(stem: str) -> str:
    match = reading.ROLE.match(stem)
    return match["case"] if match else stem
