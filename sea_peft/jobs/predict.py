"""`seapeft predict`: masks on each input's own grid, whole or not at all, and a status for every case."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sea_peft.artefacts.quality import Quality
from sea_peft.atomic import make_folder, write_text
from sea_peft.backbones.typed import NOTHING, Typed
from sea_peft.data.cases import FileCase
from sea_peft.data.dicom.files import required
from sea_peft.data.progress import Progress, unwatched, within
from sea_peft.data.wording import count
from sea_peft.errors import DataError, UsageError
from sea_peft.jobs.case_results import CaseFiles, CaseWriter, mask_of, too_long
from sea_peft.jobs.inputs import find_cases
from sea_peft.jobs.keeping import keeps
from sea_peft.jobs.memory import needed
from sea_peft.jobs.predictor import Predictor, reason
from sea_peft.jobs.qc_files import qc_page, require_own_table, write_qc
from sea_peft.jobs.quality import Judged
from sea_peft.jobs.statistics import Sidecar, earlier, require_ours, write_table

_QC_TABLE = "qc.csv"


@dataclass(frozen=True, kw_only=True)
class CaseStatus:
    """What became of one case. `mask`: file name in the output folder, None where it failed; `volumes`: millilitres of each label;
    `error`: why it failed; `warnings`: what had to be assumed of the scan; `network`: the adapted one or the unadapted; `qc`: what `--qc` says of
    it, None where it was not asked for."""

    case: str
    status: str
    mask: str | None
    volumes: Mapping[str, float]
    seconds: float
    error: str | None
    warnings: tuple[str, ...] = ()
    network: str = "adapted"
    qc: Judged | None = None


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
    qc: bool = False,
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
        statistics: a CSV with a row for every case and label, written as it grows and at the end, however that comes. Cases that have a mask
            by the same adapter, made for such a table from the same files, are not predicted again: an interrupted cohort goes on.
        keep: which connected parts of masks are kept, rules as for `keeping.keeps`; the others become background.
        qc: also what Dice to expect of each mask, and flags: `qc.csv`, `qc.html` and a preview of each case.
        say: gets sentences for the user: what was passed over among the inputs, which network is used and why, and the memory that will be
            needed.
        progress: called with (cases done, of), the case at hand by its windows.

    Returns:
        A status for every case. A case that cannot be predicted does not stop the others, and leaves no mask.

    Raises:
        DataError: an input does not exist or holds no scan, or is no DICOM series where a DICOM-SEG is asked for.
        UsageError: results exist, or would replace an input or a file that is no result; `qc` of an adapter that does not say what its run saw.
        WeightsError, DeviceError: the adapter or the device is refused; the output folder cannot be made.
    """
    predictor = Predictor(adapter, typed, device, use)
    cases = find_cases(inputs, predictor.channels, channels, say)
    labels = tuple(predictor.labels)
    keeping = keeps(keep, labels)
    writer = CaseWriter(predictor, keeping, statistics is not None, _known(predictor) if qc else None)
    if qc:
        require_own_table(out / _QC_TABLE)
    targets = {
        case.id: CaseFiles.of(case, out, labels, probabilities, preview or qc, dicom_seg, seg_nrrd) for case in cases
    }
    before: dict[str, Sidecar] = {}
    if statistics is not None:
        require_ours(statistics, predictor.channels)
        before = {} if overwrite else _before(writer, cases, targets)
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
    statuses: list[CaseStatus] = []
    sidecars: dict[str, Sidecar] = {}
    due = 0
    try:
        for done, case in enumerate(cases, start=1):
            sidecar = before.get(case.id)
            if sidecar is not None:
                statuses.append(_kept(case, sidecar))
            else:
                watched = within(progress, done - 1, len(cases))
                status, sidecar = _predict_case(writer, case, targets[case.id], watched)
                statuses.append(status)
            if sidecar is not None:
                sidecars[case.id] = sidecar
            if statistics is not None and len(sidecars) > due:
                write_table(statistics, predictor.channels, sidecars)
                due = len(sidecars) + len(sidecars) // 10  # rarer as it grows: all of it is written each time
            progress(done, len(cases))
    finally:
        if statistics is not None:
            write_table(statistics, predictor.channels, sidecars)
        if qc:
            _write_qc(out, statuses, {case: f"{files.sidecar.stem}.png" for case, files in targets.items()})
    return statuses


def _known(predictor: Predictor) -> Quality:
    """What the adapter's run saw."""
    if predictor.config.quality is None:
        raise UsageError(
            "This adapter was made before `--qc`, so it does not say what its run saw; adapt again, or leave --qc out."
        )
    return predictor.config.quality


def _write_qc(out: Path, statuses: Sequence[CaseStatus], pictures: Mapping[str, str]) -> None:
    judged = {status.case: status.qc for status in statuses if status.qc is not None}
    write_qc(out / _QC_TABLE, judged)
    write_text(out / "qc.html", qc_page(judged, pictures))


def _before(writer: CaseWriter, cases: Sequence[FileCase], targets: Mapping[str, CaseFiles]) -> dict[str, Sidecar]:
    """Case → the sidecar of an earlier prediction that is what would be made now."""
    found = {}
    for case in cases:
        files = targets[case.id]
        if all(path.is_file() for path in files.all):
            sidecar = earlier(files.sidecar, files.mask, writer.same(case))
            if sidecar is not None and (writer.qc is None or Judged.from_json(sidecar.get("qc")) is not None):
                found[case.id] = sidecar
    return found


def _kept(case: FileCase, sidecar: Sidecar) -> CaseStatus:
    return CaseStatus(
        case=case.id, status="done", mask=sidecar["mask"], volumes=sidecar["volumes_ml"], seconds=0.0, error=None,
        network=sidecar["network"], qc=Judged.from_json(sidecar.get("qc")),
    )  # fmt: skip


def _predict_case(
    writer: CaseWriter, case: FileCase, files: CaseFiles, progress: Progress
) -> tuple[CaseStatus, Sidecar | None]:
    """What became of the case, and its sidecar where it was predicted."""
    began, error, sidecar = time.monotonic(), None, None
    notes: tuple[str, ...] = ()
    try:
        sidecar, notes = writer.write(case, files, progress)
    except Exception as unforeseen:
        error = reason(unforeseen)
    status = CaseStatus(
        case=case.id, status="failed" if error else "done", mask=None if error else files.mask.name,
        volumes=sidecar["volumes_ml"] if sidecar else {}, seconds=round(time.monotonic() - began, 3), error=error, warnings=notes,
        network=writer.predictor.network, qc=Judged.from_json(sidecar.get("qc")) if sidecar else None,
    )  # fmt: skip
    return status, sidecar


def _require_series(cases: Sequence[FileCase]) -> None:
    for name in ("pydicom", "highdicom"):
        required(name)
    others = [case.id for case in cases if not all(image.slices for image in case.images.values())]
    if others:
        raise DataError(
            f"case {others[0]} is no DICOM series, so a DICOM-SEG has nothing to refer to; leave --dicom-seg out or give the series"
        )


def _refuse_to_replace(cases: Sequence[FileCase], targets: Mapping[str, CaseFiles], overwrite: bool) -> None:
    sources = {path.resolve() for case in cases for image in case.images.values() for path in image.files}
    written: set[Path] = set()
    for files in targets.values():
        mask = mask_of(files.sidecar)
        left_by_a_killed_process = mask == files.mask.name and not files.mask.exists()
        for path in files.all:
            if too_long(path):
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
