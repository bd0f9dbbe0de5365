"""TotalSegmentator: a folder per case with `ct.nii.gz` (or `mri.nii.gz`) and a folder
`segmentations` of one binary mask per structure. Codes 1, 2, … follow the masks' names in
alphabetical order.

Sources: https://doi.org/10.5281/zenodo.10047292 (CT), https://doi.org/10.5281/zenodo.14710732 (MR).
"""

from pathlib import Path

from sea_peft.data.cases import Dataset, FileCase, ImageFile, safe_name
from sea_peft.data.layouts.reading import case_id, volumes_in
from sea_peft.data.volumes import volume_stem

_IMAGES = {"ct": "CT", "mri": "MR"}
MASK_FOLDER = "segmentations"


def read(root: Path) -> Dataset | None:
    """The data set at `root`, or None if no subfolder has a scan beside a `segmentations`
    folder.
    """
    if not root.is_dir():
        return None
    scans: list[tuple[str, dict[str, ImageFile], dict[str, Path]]] = []
    for folder in sorted(child for child in root.iterdir() if (child / MASK_FOLDER).is_dir()):
        stems = {volume_stem(path).lower(): path for path in volumes_in(folder)}
        images = {name: ImageFile(stems[stem]) for stem, name in _IMAGES.items() if stem in stems}
        masks = {volume_stem(path): path for path in volumes_in(folder / MASK_FOLDER)}
        if images:
            scans.append((folder.name, images, masks))
    structures = sorted({structure for _, _, masks in scans for structure in masks})
    if not structures:
        return None
    codes = {structure: code for code, structure in enumerate(structures, start=1)}
    cases = [
        FileCase(
            id=case_id(case),
            images=images,
            masks={codes[name]: path for name, path in masks.items()},
        )
        for case, images, masks in scans
    ]
    return Dataset(
        name=safe_name(root.resolve().name),
        layout="totalsegmentator",
        channels=tuple(
            name for name in _IMAGES.values() if any(name in case.images for case in cases)
        ),
        labels={structure: (code,) for structure, code in codes.items()},
        cases=tuple(case for case in cases if case.labelled),
        unlabelled=tuple(case for case in cases if not case.labelled),
        codes=frozenset(codes.values()),
    )
