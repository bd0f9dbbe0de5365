"""DICOM: a folder of slices, or of folders of them, one case a series; labels are the DICOM-SEG files that refer to a series.

Codes 1, 2, … follow the segments' labels in alphabetical order. Structure sets (RTSTRUCT) are not read.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from sea_peft.data.cases import Dataset, DicomCase, ImageFile, safe_name
from sea_peft.data.dicom.files import dicom_files, headers
from sea_peft.data.dicom.segmentation import referenced_series, segment_names
from sea_peft.data.dicom.series import Series, grouped
from sea_peft.data.layouts.files import case_id, unique_ids
from sea_peft.errors import DataError


def read(root: Path) -> Dataset | None:
    """The data set at `root`, or None when there is no DICOM series in it."""
    if not root.is_dir():
        return None
    files = list(dicom_files(root))
    if not files:
        return None
    described = list(headers(files))
    every = grouped(described)
    if not every:
        return None
    single = [series for series in every if len(series.slices) == 1]
    stacks = [series for series in every if len(series.slices) > 1] or every
    warnings = [
        f"{_name(series, every, root)} is ignored: it is a single slice" for series in single if stacks is not every
    ]
    drawn: dict[str, tuple[Path, dict[int, str]]] = {}
    known = {series.uid for series in stacks}
    for path, header in described:
        if "SegmentSequence" not in header:
            continue
        uid = referenced_series(header)
        if uid not in known:
            warnings.append(f"{path.relative_to(root)} is ignored: the series that it was drawn on is not there")
        elif uid in drawn:
            raise DataError(
                f"{path.relative_to(root)} and {drawn[uid][0].relative_to(root)} are both segmentations of one series; take one out"
            )
        else:
            drawn[uid] = (path, segment_names(header))
    names = sorted({name for _, segments in drawn.values() for name in segments.values()})
    codes = {name: code for code, name in enumerate(names, start=1)}
    cases = [_case(series, every, root, drawn.get(series.uid), codes) for series in stacks]
    unique_ids(root.name, [case.id for case in cases])
    cases.sort(key=lambda case: case.id)
    return Dataset(
        name=safe_name(root.resolve().name),
        layout="dicom",
        channels=tuple(sorted({series.modality for series in stacks})),
        labels={name: (code,) for name, code in codes.items()},
        cases=tuple(case for case in cases if case.labelled),
        unlabelled=tuple(case for case in cases if not case.labelled),
        codes=frozenset(codes.values()),
        warnings=tuple(warnings),
    )


def _case(
    series: Series, every: list[Series], root: Path, drawn: tuple[Path, dict[int, str]] | None, codes: dict[str, int]
) -> DicomCase:
    path, segments = drawn if drawn is not None else (None, {})
    numbers: dict[int, tuple[int, ...]] = {}
    for number, name in segments.items():
        numbers[codes[name]] = (*numbers.get(codes[name], ()), number)
    files = tuple(part.path for part in series.slices)
    return DicomCase(
        case_id(_name(series, every, root)), {series.modality: ImageFile(series.folder, slices=files)},
        segmentation=path, segments=numbers,
    )  # fmt: skip


def _name(series: Series, every: list[Series], root: Path) -> str:
    """Its folder below `root`, and its number where the folder holds several series."""
    parts = series.folder.relative_to(root).parts or (root.resolve().name,)
    in_folder = Counter(other.folder for other in every)[series.folder]
    return "_".join(parts) + (f"_{series.number}" if in_folder > 1 else "")
