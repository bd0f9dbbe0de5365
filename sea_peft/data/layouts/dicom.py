"""DICOM: a folder of slices, or of folders of them, one case per series. Labels are DICOM-SEG files
that refer to a series, or volumes named like it.

Codes 1, 2, … follow the segments' labels in alphabetical order. Structure sets (RTSTRUCT) are not
read.
"""

from collections import Counter
from pathlib import Path

from sea_peft.data.cases import Dataset, DicomCase, ImageFile, safe_name
from sea_peft.data.dicom.files import dicom_files, headers
from sea_peft.data.dicom.segmentation import referenced_series, segment_names
from sea_peft.data.dicom.series import Series, grouped
from sea_peft.data.layouts.reading import (
    case_id,
    case_of_label,
    found_labels,
    label_folder,
    unique_ids,
    volumes_in,
)
from sea_peft.data.wording import shown
from sea_peft.errors import DataError


def read(root: Path) -> Dataset | None:
    """The data set at `root`, or None when there is no DICOM series in it."""
    if not root.is_dir():
        return None
    files = list(dicom_files(root))
    if not files:
        return None
    described = list(headers(files))
    every, warnings = grouped(described)
    if not every:
        if warnings:
            raise DataError(warnings[0])
        return None
    single = [series for series in every if len(series.slices) == 1]
    stacks = [series for series in every if len(series.slices) > 1] or every
    warnings += [
        f"{_name(series, every, root)} is ignored: it is a single slice"
        for series in single
        if stacks is not every
    ]
    drawn: dict[str, tuple[Path, dict[int, str]]] = {}
    for path, header in described:
        if header.get("Modality") == "RTSTRUCT":
            warnings.append(
                f"{shown(path.relative_to(root))} is a structure set (RTSTRUCT), which is not read;"
                " convert it to DICOM-SEG or NIfTI"
            )
        if "SegmentSequence" not in header:
            continue
        series = referenced_series(header, stacks)
        if series is None:
            warnings.append(
                f"{shown(path.relative_to(root))} is ignored: the series that it was drawn on is"
                " not there, or not named"
            )
        elif series.uid in drawn:
            raise DataError(
                f"{path.relative_to(root)} and {drawn[series.uid][0].relative_to(root)} are both"
                " segmentations of one series; take one out"
            )
        else:
            drawn[series.uid] = (path, segment_names(header))
    beside = (
        {} if drawn else {s.uid: mask for s in stacks if (mask := _mask_beside(s, every, root))}
    )
    names = sorted({name for _, segments in drawn.values() for name in segments.values()})
    codes = {name: code for code, name in enumerate(names, start=1)}
    cases = [_case(s, every, root, drawn.get(s.uid), codes, beside.get(s.uid)) for s in stacks]
    unique_ids(root.name, [case.id for case in cases])
    cases.sort(key=lambda case: case.id)
    labelled = [case for case in cases if case.labelled]
    return Dataset(
        name=safe_name(root.resolve().name),
        layout="dicom",
        channels=tuple(sorted({series.modality for series in stacks})),
        labels=(
            found_labels(labelled) if beside else {name: (code,) for name, code in codes.items()}
        ),
        cases=tuple(labelled),
        unlabelled=tuple(case for case in cases if not case.labelled),
        codes=None if beside else frozenset(codes.values()),
        warnings=tuple(warnings),
    )


def _case(
    series: Series,
    every: list[Series],
    root: Path,
    drawn: tuple[Path, dict[int, str]] | None,
    codes: dict[str, int],
    mask: Path | None,
) -> DicomCase:
    path, segments = drawn if drawn is not None else (None, {})
    numbers: dict[int, tuple[int, ...]] = {}
    for number, name in segments.items():
        numbers[codes[name]] = (*numbers.get(codes[name], ()), number)
    files = tuple(part.path for part in series.slices)
    return DicomCase(
        case_id(_name(series, every, root)),
        {series.modality: ImageFile(series.folder, slices=files)},
        label_file=mask,
        segmentation=path,
        segments=numbers,
        names={code: name for name, code in codes.items()},
    )


def _mask_beside(series: Series, every: list[Series], root: Path) -> Path | None:
    """The one volume named like the series or its folder: beside the folder, in it, or in a
    folder of labels.
    """
    if series.folder == root:
        return None
    names = {_name(series, every, root).lower(), series.folder.name.lower()}
    folders = [series.folder, series.folder.parent, root]
    folders += [labels for labels in (label_folder(root),) if labels is not None]
    found = {
        p for folder in folders for p in volumes_in(folder) if case_of_label(p).lower() in names
    }
    return next(iter(found)) if len(found) == 1 else None


def _name(series: Series, every: list[Series], root: Path) -> str:
    """Its folder below `root`, with its number if the folder holds several series."""
    parts = series.folder.relative_to(root).parts or (root.resolve().name,)
    in_folder = Counter(other.folder for other in every)[series.folder]
    return "_".join(parts) + (f"_{series.number}" if in_folder > 1 else "")
