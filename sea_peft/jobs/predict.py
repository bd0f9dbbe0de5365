"""`seapeft predict`: writes masks on each input's own grid, complete or not at all, and a
status for each case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sea_peft.atomic import make_folder, write_text
from sea_peft.backbones.typed import NOTHING, Typed
from sea_peft.data.cases import FileCase
from sea_peft.data.dicom.files import required
from sea_peft.data.progress import Progress, unwatched
from sea_peft.data.wording import count
from sea_peft.errors import DataError, UsageError
from sea_peft.jobs.case_results import CaseFiles
from sea_peft.jobs.cluster import Cluster
from sea_peft.jobs.cohort import CaseStatus, Opening, one_by_one
from sea_peft.jobs.earlier import predicted_before, refuse_to_replace
from sea_peft.jobs.inputs import find_cases
from sea_peft.jobs.memory import needed, read_ahead
from sea_peft.jobs.qc_files import qc_page, require_own_table, write_qc
from sea_peft.jobs.shares import on_cluster
from sea_peft.jobs.statistics import Sidecar, require_ours, write_table
from sea_peft.jobs.workers import side_by_side

_QC_TABLE = "qc.csv"


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
    rtstruct: bool = False,
    seg_nrrd: bool = False,
    use: str | None = None,
    channels: Sequence[str] = (),
    statistics: Path | None = None,
    keep: Sequence[str] = (),
    qc: bool = False,
    jobs: int = 1,
    cluster: Cluster | None = None,
    resume: bool = False,
    ensemble: Sequence[Path] = (),
    say: Callable[[str], None] | None = None,
    progress: Progress = unwatched,
) -> list[CaseStatus]:
    """Predict every case in `inputs` into `out`: a mask, a sidecar `<case>.json` with the label
    names, and optional files.

    Args:
        adapter: an adapter folder or a run folder.
        inputs: scans, folders of scans, or data sets.
        out: made if it is missing.
        typed: the backbone or its weights, if they are not installed under the name in the adapter.
        device: as on the command line.
        overwrite: replace results of earlier predictions; without it, such results are an error.
            Other files are never replaced.
        probabilities: also write one float32 volume per label.
        preview: also write a PNG with three planes.
        dicom_seg: also write a DICOM segmentation object. Every input must then be a DICOM series.
            It names the patient, as its series does.
        rtstruct: also write a DICOM structure set with the contours of the mask in each slice, as
            for `dicom_seg`.
        seg_nrrd: also write a segmentation for 3D Slicer, with the labels' names and colours.
        use: "adapted" or "unadapted"; None for the network that the adapter's run recommends.
        channels: the inputs' names for the adapter's channels, in the adapter's order, if names do
            not match: a name of their data set, or the number in their file names.
        statistics: a CSV with a row for each case and label, updated during the prediction and at
            its end, even after an interruption. An interrupted cohort continues as with `resume`,
            unless `overwrite` is given.
        keep: rules for the connected parts of masks to keep, as for `keeping.keeps`. The others
            become background. By default, the rules that the adapter's run has chosen.
        qc: also estimate the Dice of each mask and flag doubtful ones: `qc.csv`, `qc.html` and a
            preview of each case.
        jobs: processes that predict side by side, each with its own network and its share of the
            cores or GPUs. If one dies, only its current case is lost. In a script, values above 1
            need `if __name__ == "__main__":` around the call.
        cluster: takes the cases in `jobs` jobs, each with its share of them, instead of processes
            here.
        resume: skip cases whose results were made by the same adapter, network and options from the
            same files. With `overwrite`, other results are replaced.
        ensemble: further adapters, whose probabilities are averaged with those of `adapter`; each
            case then also gets a map of where they disagree (`ensemble.Disagreement`). Labels,
            channels, recipe and window must be the same. Connected parts are kept as all runs have
            chosen alike. Not together with `qc`, which is calibrated for one adapter.
        say: receives sentences for the user: inputs that were skipped, the network and why, and the
            memory needed.
        progress: called with (cases done, of); current cases count by their windows.

    Returns:
        A status for each case, in the order of their names. A case that cannot be predicted does
            not stop the others, and leaves no mask.

    Raises:
        DataError: an input does not exist or holds no scan, or is no DICOM series although a
            DICOM-SEG or an RTSTRUCT is asked for.
        UsageError: results exist (with `resume`: outdated ones), or an input or a file that is no
            result would be replaced; or `qc` with an adapter that does not say what its run saw, or
            with an `ensemble`; or its adapters do not fit together.
        WeightsError: the adapter is refused.
        DeviceError: the device is refused.
        DiskError: the output folder cannot be made.
    """
    if jobs < 1:
        raise UsageError(f"--jobs {jobs} is no number of processes; use 1 or more.")
    if qc and ensemble:
        raise UsageError(
            "--qc is calibrated for the masks of one adapter, not for the mean of several; leave it"
            " out: the disagreement of the adapters says which masks to look at."
        )
    opening = Opening(
        adapter=adapter,
        typed=typed,
        device=device,
        use=use,
        keep=tuple(keep),
        statistics=statistics is not None,
        qc=qc,
        ensemble=tuple(ensemble),
    )
    writer = opening.writer()
    predictor, labels = writer.predictor, tuple(writer.predictor.labels)
    cases = find_cases(inputs, predictor.channels, channels, say)
    if qc:
        require_own_table(out / _QC_TABLE)
    targets = {
        case.id: CaseFiles.of(
            case,
            out,
            labels,
            probabilities,
            preview or qc,
            dicom_seg,
            rtstruct,
            seg_nrrd,
            bool(ensemble),
        )
        for case in cases
    }
    if statistics is not None:
        require_ours(statistics, predictor.channels, bool(ensemble))
    goes_on = resume or (statistics is not None and not overwrite)
    before = predicted_before(writer, cases, targets) if goes_on else {}
    left = [case for case in cases if case.id not in before]
    refuse_to_replace(left, targets, overwrite, writer if goes_on else None)
    if dicom_seg:
        _require_series(cases, "a DICOM-SEG", "--dicom-seg")
    if rtstruct:
        _require_series(cases, "an RTSTRUCT", "--rtstruct")
    processes = min(jobs, len(left))
    if cluster is not None:
        cluster.executor()  # refused before anything is written
    ahead = (
        []
        if processes > 1 and cluster is None
        else read_ahead(left[1:], predictor.recipe, len(predictor.channels))
    )
    if say is not None:
        say(predictor.choice())
        if writer.keeping:
            rules = ", ".join(f"{label} {rule}" for label, rule in writer.keeping.items())
            chosen = "all runs have chosen" if ensemble else "the run has chosen"
            say(f"Kept of masks{'' if keep else f', as {chosen} (--keep all overrides)'}: {rules}.")
        if before:
            say(
                f"{count(len(before), 'case')} of {len(cases)} predicted before, and kept as is;"
                " --overwrite alone predicts all again."
            )
        if left:
            need = predictor.estimate(left, ahead)
            say(
                needed("Predicting", need.of_processes(processes))
                if cluster is None
                else needed("Predicting", need, processes)  # a job's own, as a queue asks for it
            )
    make_folder(out)
    if statistics is not None:
        make_folder(statistics.parent)
    results = _Results(cases, predictor.channels, statistics, before, bool(ensemble))
    work = [(case, targets[case.id]) for case in left]

    def told(done: float, _of: int) -> None:
        progress(len(before) + done, len(cases))

    try:
        if cluster is not None and left:
            on_cluster(opening, cluster, processes, predictor.network, work, told, results.add)
        elif processes > 1:
            side_by_side(opening, processes, predictor.network, work, told, results.add)
        elif work:
            one_by_one(writer, work, {case.id for case in ahead}, told, results.add)
        else:
            told(0, 0)
    finally:
        results.write()
        if qc:
            _write_qc(
                out,
                results.statuses,
                {case: f"{files.sidecar.stem}.png" for case, files in targets.items()},
            )
    return results.statuses


class _Results:
    """The status of each case so far. `table`: the CSV of `--statistics`, updated as it grows; None
    if not asked for. `ensemble`: whether masks are of several adapters.
    """

    def __init__(
        self,
        cases: Sequence[FileCase],
        channels: Sequence[str],
        table: Path | None,
        before: Mapping[str, Sidecar],
        ensemble: bool,
    ) -> None:
        self._cases, self._channels, self._table, self._ensemble = cases, channels, table, ensemble
        self._sidecars = dict(before)
        self._statuses = {
            case.id: CaseStatus.done(case, before[case.id]) for case in cases if case.id in before
        }
        self._due = len(before)

    @property
    def statuses(self) -> list[CaseStatus]:
        """The statuses of the cases that are done or have failed, in the order of the cases."""
        return [self._statuses[case.id] for case in self._cases if case.id in self._statuses]

    def add(self, status: CaseStatus, sidecar: Sidecar | None) -> None:
        """Add one case."""
        self._statuses[status.case] = status
        if sidecar is not None:
            self._sidecars[status.case] = sidecar
            if (
                len(self._sidecars) > self._due
            ):  # less often as it grows, since the whole table is written each time
                self.write()
                self._due = len(self._sidecars) + len(self._sidecars) // 10

    def write(self) -> None:
        """Write the table, in the order of the cases. Raises DiskError."""
        if self._table is not None:
            in_order = {
                case.id: self._sidecars[case.id]
                for case in self._cases
                if case.id in self._sidecars
            }
            write_table(self._table, self._channels, in_order, self._ensemble)


def _write_qc(out: Path, statuses: Sequence[CaseStatus], pictures: Mapping[str, str]) -> None:
    judged = {status.case: status.qc for status in statuses if status.qc is not None}
    write_qc(out / _QC_TABLE, judged)
    write_text(out / "qc.html", qc_page(judged, pictures))


def _require_series(cases: Sequence[FileCase], what: str, flag: str) -> None:
    for name in ("pydicom", "highdicom"):
        required(name)
    others = [case.id for case in cases if not all(image.slices for image in case.images.values())]
    if others:
        raise DataError(
            f"case {others[0]} is no DICOM series, so {what} has nothing to refer to; leave {flag}"
            " out or give the series"
        )
