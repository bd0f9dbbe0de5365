"""`seapeft predict`: masks on each input's own grid, whole or not at all, and a status for every case."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sea_peft import __version__, documents
from sea_peft.artefacts.palette import family_colours
from sea_peft.atomic import make_folder, sync_folder, unfinished, write_bytes, write_text, writing
from sea_peft.backbones.typed import NOTHING, Typed
from sea_peft.data.case_check import image_findings
from sea_peft.data.cases import FileCase
from sea_peft.data.dicom.files import required
from sea_peft.data.dicom.segmentation import segmentation_bytes
from sea_peft.data.grids import require_finite
from sea_peft.data.prepare import restore, restore_probability
from sea_peft.data.progress import Progress, unwatched, within
from sea_peft.data.slicer import write_segments
from sea_peft.data.volumes import Volume, volume_suffix, write_volume
from sea_peft.data.wording import count
from sea_peft.errors import DataError, UsageError
from sea_peft.jobs.inputs import find_cases
from sea_peft.jobs.keeping import Keep, keep_parts, keeps
from sea_peft.jobs.memory import needed
from sea_peft.jobs.predictor import Predictor, reason
from sea_peft.jobs.preview import preview_png
from sea_peft.jobs.statistics import confidences, digest_of, earlier, measured, require_ours, write_table

_MAKER = "sea_peft"
_LONGEST_NAME = 255 - 20  # bytes on every file system in use, without what marks an unfinished one
_WRITTEN_AS = {".nhdr": ".nrrd", ".mhd": ".mha"}


@dataclass(frozen=True, kw_only=True)
class CaseStatus:
    """What became of one case. `mask`: file name in the output folder, None where it failed; `volumes`: millilitres of each label;
    `error`: why it failed; `warnings`: what had to be assumed of the scan; `network`: the adapted one or the unadapted."""

    case: str
    status: str
    mask: str | None
    volumes: Mapping[str, float]
    seconds: float
    error: str | None
    warnings: tuple[str, ...] = ()
    network: str = "adapted"


@dataclass(frozen=True, kw_only=True)
class _Files:
    """Where one case's results go. Names come from the case; folders in a case's name do not."""

    mask: Path
    sidecar: Path
    preview: Path | None
    segmentation: Path | None
    slicer: Path | None
    probabilities: Mapping[str, Path]

    @classmethod
    def of(
        cls,
        case: FileCase,
        out: Path,
        labels: Sequence[str],
        probabilities: bool,
        preview: bool,
        dicom_seg: bool,
        seg_nrrd: bool,
    ) -> _Files:
        suffix = volume_suffix(_source(case)) or ".nii.gz"
        suffix = _WRITTEN_AS.get(suffix, suffix)
        name = re.sub(r"[/\\\0]", "_", case.id)
        wanted = labels if probabilities else ()
        return cls(
            mask=out / f"{name}{suffix}",
            sidecar=out / f"{name}.json",
            preview=out / f"{name}.png" if preview else None,
            segmentation=out / f"{name}.dcm" if dicom_seg else None,
            slicer=out / f"{name}.seg.nrrd" if seg_nrrd else None,
            probabilities={
                label: out / f"{name}_probability_{part}{suffix}" for label, part in _file_parts(wanted).items()
            },
        )

    @property
    def all(self) -> list[Path]:
        asked = [path for path in (self.preview, self.segmentation, self.slicer) if path is not None]
        return [self.mask, self.sidecar, *asked, *self.probabilities.values()]


def _file_parts(labels: Sequence[str]) -> dict[str, str]:
    """Label → what a file name says of it: letters of any script, and a number where two would be one."""
    parts: dict[str, str] = {}
    for label in labels:
        plain = re.sub(r"[^\w.-]+", "_", label).strip("._-")[:40] or "label"
        taken = {part.casefold() for part in parts.values()}
        names = (plain if count == 1 else f"{plain}_{count}" for count in itertools.count(1))
        parts[label] = next(name for name in names if name.casefold() not in taken)
    return parts


def predict(
    adapter: Path,
    inputs: Sequence[Path],
    out: Path,
    *,
    typed: Typed = NOTHING,
    device: str = "auto",
    overwrite: bool = False,
    probabilities: bool = False,
    preview: bool = False,
    dicom_seg: bool = False,
    seg_nrrd: bool = False,
    use: str | None = None,
    channels: Sequence[str] = (),
    statistics: Path | None = None,
    keep: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
    progress: Progress = unwatched,
) -> list[CaseStatus]:
    """Predict every case in `inputs` into `out`: a mask, a sidecar `<case>.json` with the label names, and what else is asked for.

    Args:
        adapter: an adapter folder or a run folder.
        inputs: scans, folders of scans, or data sets.
        out: made if it is missing.
        typed: the backbone or its weights as the user typed them, when the weights are not installed by the name in the adapter.
        device: as on the command line.
        overwrite: replace results of earlier predictions; without it nothing is done when there are any. Other files are
            never replaced.
        probabilities: also one float32 volume a label.
        preview: also a PNG with three planes.
        dicom_seg: also a DICOM segmentation object; every input must be a DICOM series then. It names the patient, as its series does.
        seg_nrrd: also a segmentation for 3D Slicer, with the labels' names and colours.
        use: "adapted" or "unadapted"; None for the network that the adapter's run recommends.
        channels: what the inputs call the adapter's channels, in the adapter's order, when they cannot be matched by name: a name of their
            data set, or the number in their file names.
        statistics: a CSV with a row for every case and label, complete after every case. Cases that have a mask by the same adapter, made
            for such a table from the same files, are not predicted again: an interrupted cohort goes on.
        keep: which connected parts of masks are kept, rules as for `keeping.keeps`; the others become background.
        say: gets sentences for the user: which network is used and why, and the memory that will be needed.
        progress: called with (cases done, of), the case at hand by its windows.

    Returns:
        A status for every case. A case that cannot be predicted does not stop the others, and leaves no mask.

    Raises:
        DataError: an input does not exist or holds no scan, or is no DICOM series where a DICOM-SEG is asked for.
        UsageError: results exist, or would replace an input or a file that is no result.
        WeightsError, DeviceError: the adapter or the device is refused; the output folder cannot be made.
    """
    predictor = Predictor(adapter, typed, device, use)
    cases = find_cases(inputs, predictor.channels, channels)
    labels = tuple(predictor.labels)
    keeping = keeps(keep, labels)
    targets = {case.id: _Files.of(case, out, labels, probabilities, preview, dicom_seg, seg_nrrd) for case in cases}
    before: dict[str, dict[str, Any]] = {}
    if statistics is not None:
        require_ours(statistics, predictor.channels)
        before = {} if overwrite else _before(predictor, cases, targets, keeping)
    left = [case for case in cases if case.id not in before]
    _refuse_to_replace(left, {case.id: targets[case.id] for case in left}, overwrite)
    if dicom_seg:
        _require_series(cases)
    if say is not None:
        say(predictor.choice())
        if keeping:
            say("Kept of masks: " + ", ".join(f"{label} {rule}" for label, rule in keeping.items()) + ".")
        if before:
            say(
                f"{count(len(before), 'case')} of {len(cases)} predicted before, and kept as is; --overwrite predicts all again."
            )
        if left:
            say(needed(predictor.estimate(left)))
    make_folder(out)
    if statistics is not None:
        make_folder(statistics.parent)
    statuses, sidecars = [], {}
    for done, case in enumerate(cases, start=1):
        if case.id in before:
            sidecars[case.id] = before[case.id]
            statuses.append(_kept(case, before[case.id]))
        else:
            status, sidecar = _predict_case(
                predictor,
                case,
                targets[case.id],
                keeping,
                statistics is not None,
                within(progress, done - 1, len(cases)),
            )
            statuses.append(status)
            if sidecar is not None:
                sidecars[case.id] = sidecar
        if statistics is not None and (case.id not in before or done == len(cases)):
            write_table(statistics, predictor.channels, sidecars)
        progress(done, len(cases))
    return statuses


def _before(
    predictor: Predictor, cases: Sequence[FileCase], targets: Mapping[str, _Files], keeping: Mapping[str, Keep]
) -> dict[str, dict[str, Any]]:
    """Case → the sidecar of an earlier prediction that is what would be made now."""
    found = {}
    for case in cases:
        files = targets[case.id]
        if not all(path.is_file() for path in files.all):
            continue
        wanted = {
            "adapter": _adapter(predictor), "network": predictor.network, "channels": list(predictor.channels),
            "kept": {label: str(rule) for label, rule in keeping.items()}, "input_sha256": digest_of(case),
        }  # fmt: skip
        if (sidecar := earlier(files.sidecar, files.mask, wanted)) is not None:
            found[case.id] = sidecar
    return found


def _kept(case: FileCase, sidecar: Mapping[str, Any]) -> CaseStatus:
    return CaseStatus(
        case=case.id, status="done", mask=sidecar["mask"], volumes=sidecar["volumes_ml"], seconds=0.0, error=None,
        network=sidecar["network"],
    )  # fmt: skip


def mask_values(labels: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The value of each label in a mask: its own code where every label has exactly one, else 1..L in the order of the labels."""
    if all(len(codes) == 1 for codes in labels.values()):
        return {name: codes[0] for name, codes in labels.items()}
    return {name: index for index, name in enumerate(labels, start=1)}


def _predict_case(
    predictor: Predictor,
    case: FileCase,
    files: _Files,
    keeping: Mapping[str, Keep],
    statistics: bool,
    progress: Progress,
) -> tuple[CaseStatus, dict[str, Any] | None]:
    """What became of the case, and its sidecar where it was predicted."""
    began, error, sidecar = time.monotonic(), None, None
    volumes: dict[str, float] = {}
    notes: tuple[str, ...] = ()
    try:
        sidecar, notes = _write_case(predictor, case, files, keeping, statistics, progress)
        volumes = sidecar["volumes_ml"]
    except Exception as unforeseen:
        error = reason(unforeseen)
    status = CaseStatus(
        case=case.id, status="failed" if error else "done", mask=None if error else files.mask.name, volumes=volumes,
        seconds=round(time.monotonic() - began, 3), error=error, warnings=notes, network=predictor.network,
    )  # fmt: skip
    return status, sidecar


def _write_case(
    predictor: Predictor,
    case: FileCase,
    files: _Files,
    keeping: Mapping[str, Keep],
    statistics: bool,
    progress: Progress,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Everything of one case: made in a folder beside its place and moved when all of it is there, so that a case that fails leaves nothing, and
    what an earlier prediction left is kept. The sidecar comes first, by which the rest is known for ours, and the mask last: what has a mask is
    whole and of one prediction, and what has none is nothing. Returns the sidecar's content and the scan's notes."""
    out, name = files.mask.parent, files.sidecar.stem
    if too_long := next(filter(_too_long, files.all), None):
        raise DataError(
            f"a result would be called {too_long.name}, which is too long for a file name; give the scan a shorter one"
        )
    with writing(out):
        building = unfinished(out / name)
        building.mkdir()
    try:
        written = _make_case(predictor, case, files, keeping, statistics, building, progress)
        with writing(out):
            files.mask.unlink(missing_ok=True)
            for path in reversed(files.all):
                os.replace(building / path.name, path)
            sync_folder(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return written


def _make_case(
    predictor: Predictor,
    case: FileCase,
    files: _Files,
    keeping: Mapping[str, Keep],
    statistics: bool,
    building: Path,
    progress: Progress,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    notes = _input_notes(case)
    output, scan = predictor.probabilities(case, folder=building, progress=progress)
    affine, like = scan.geometry.affine, _source(case)
    indices = restore(output, scan.geometry)
    values = mask_values(predictor.labels)
    millilitres = abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0
    numbers = list(values)
    indices = keep_parts(indices, {1 + numbers.index(label): rule for label, rule in keeping.items()}, millilitres)
    kind = np.uint8 if max(values.values()) <= np.iinfo(np.uint8).max else np.uint16
    mask = np.array([0, *values.values()], dtype=kind)[indices]
    volumes = {
        name: round(np.count_nonzero(indices == index) * millilitres, 3) for index, name in enumerate(values, start=1)
    }
    sidecar = _sidecar(predictor, files, values, volumes, keeping)
    if statistics:
        grey = {channel: np.asarray(case.image(channel).array) for channel in predictor.channels}
        found, trust = measured(indices, numbers, grey, millilitres), confidences(output, numbers)
        sidecar["statistics"] = {label: {**of, "confidence": trust[label]} for label, of in found.items()}
        sidecar["input_sha256"] = digest_of(case)
    write_text(building / files.sidecar.name, json.dumps(sidecar, indent=2, ensure_ascii=False) + "\n")
    for label, path in files.probabilities.items():
        index = 1 + numbers.index(label)
        write_volume(building / path.name, Volume(restore_probability(output, index, scan.geometry), affine), like=like)
    if files.preview is not None:
        image = case.image(predictor.channels[0])
        write_bytes(
            building / files.preview.name, preview_png(image, {"": indices}, list(predictor.labels), scan.geometry)
        )
    if files.segmentation is not None:
        write_bytes(
            building / files.segmentation.name,
            segmentation_bytes(mask, next(iter(case.images.values())).slices, values),
        )
    if files.slicer is not None:
        colours = family_colours(numbers)
        write_segments(building / files.slicer.name, Volume(mask, affine), values, colours, like)
    write_volume(building / files.mask.name, Volume(mask, affine), like=like)
    return sidecar, notes


def _input_notes(case: FileCase) -> tuple[str, ...]:
    """What is odd about the scan, as `data check` says it. Raises `DataError` for what makes it unfit."""
    notes = []
    for channel in case.channels:
        volume = case.image(channel)
        require_finite(case.id, channel, volume)
        for finding in image_findings(case.id, channel, volume):
            if finding.severity == "error":
                raise DataError(finding.sentence)
            notes.append(finding.sentence)
    return tuple(notes)


def _sidecar(
    predictor: Predictor,
    files: _Files,
    values: Mapping[str, int],
    volumes: Mapping[str, float],
    keeping: Mapping[str, Keep],
) -> dict[str, Any]:
    return {
        "mask": files.mask.name,
        "labels": {"background": 0, **values},
        "volumes_ml": dict(volumes),
        "probabilities": {label: path.name for label, path in files.probabilities.items()},
        "dicom_seg": files.segmentation.name if files.segmentation else None,
        "seg_nrrd": files.slicer.name if files.slicer else None,
        "channels": list(predictor.channels),
        "network": predictor.network,
        "recommended": predictor.config.recommended.model_dump(),
        "kept": {label: str(rule) for label, rule in keeping.items()},
        "adapter": _adapter(predictor),
        "made_by": f"{_MAKER} {__version__}",
        "note": "Research software, not a medical device: a qualified person must check every mask.",
    }


def _adapter(predictor: Predictor) -> dict[str, Any]:
    """What made a mask."""
    config = predictor.config
    return {
        "policy": config.policy,
        "units": len(config.units),
        "weights": config.backbone.weights,
        "backbone_sha256": config.backbone.sha256,
        "sha256": predictor.sha256,
    }


def _source(case: FileCase) -> Path:
    """The file whose grid the results take: that of the first channel."""
    return next(iter(case.images.values())).path


def _require_series(cases: Sequence[FileCase]) -> None:
    for name in ("pydicom", "highdicom"):
        required(name)
    others = [case.id for case in cases if not all(image.slices for image in case.images.values())]
    if others:
        raise DataError(
            f"case {others[0]} is no DICOM series, so a DICOM-SEG has nothing to refer to; leave --dicom-seg out or give the series"
        )


def _mask_of(sidecar: Path) -> str | None:
    """The name of the mask that a sidecar of `predict` belongs to; None where it is no such sidecar."""
    try:
        found = documents.load(documents.read_bytes(sidecar))
    except (OSError, ValueError):
        return None
    ours = isinstance(found, dict) and str(found.get("made_by")).startswith(f"{_MAKER} ")
    return str(found.get("mask")) if ours else None


def _too_long(path: Path) -> bool:
    return len(os.fsencode(path.name)) > _LONGEST_NAME


def _refuse_to_replace(cases: Sequence[FileCase], targets: Mapping[str, _Files], overwrite: bool) -> None:
    sources = {path.resolve() for case in cases for image in case.images.values() for path in image.files}
    written: set[Path] = set()
    for files in targets.values():
        mask = _mask_of(files.sidecar)
        left_by_a_killed_process = mask == files.mask.name and not files.mask.exists()
        for path in files.all:
            if _too_long(path):
                continue
            if path.resolve() in sources:
                raise UsageError(f"{path} is an input and would be replaced; choose another --out.")
            if path.exists() and mask is None:
                raise UsageError(
                    f"{path} exists and is no earlier prediction (those have a {files.sidecar.name} beside them), so it is never "
                    "replaced; choose another --out."
                )
            if path.exists() and not overwrite and not left_by_a_killed_process:
                raise UsageError(f"{path} exists already; choose another --out, or replace it with --overwrite.")
            if path in written:
                raise UsageError(f"Two results would be called {path.name}; rename a case or a label.")
            written.add(path)
