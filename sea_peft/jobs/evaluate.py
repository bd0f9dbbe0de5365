"""`seapeft evaluate`: predicts labelled cases in memory and scores them on their own grids."""

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sea_peft import documents
from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.artefacts.trace import read_trace
from sea_peft.atomic import make_folder, write_bytes, write_text
from sea_peft.backbones.typed import NOTHING, Typed
from sea_peft.data.cases import Case, Dataset
from sea_peft.data.grids import require_same_grid
from sea_peft.data.metrics import DEFAULT_TOLERANCE_MM, Scores, mean, score_labels
from sea_peft.data.prepare import label_indices
from sea_peft.data.progress import Progress, unwatched, within
from sea_peft.data.select import select
from sea_peft.data.wording import count
from sea_peft.errors import UsageError
from sea_peft.jobs.adding import drawn_in
from sea_peft.jobs.boxplot import boxplot_png
from sea_peft.jobs.ensemble import predictor_of
from sea_peft.jobs.inputs import matching_channels
from sea_peft.jobs.keeping import Keep, keep_parts
from sea_peft.jobs.model import adapter_folder
from sea_peft.jobs.predictor import Predictor, reason
from sea_peft.jobs.target import DEFAULT_TARGET, open_data
from sea_peft.loop.events import RunStarted

MEASURES = tuple(field.name for field in dataclasses.fields(Scores))
CASES = ("all", "test")
SHOTS = ("support", "audit")  # roles of the cases that an adapter was trained on
_UNNAMED = re.compile(r"label_\d+")  # readers' names for labels in a layout without names
_UNITS = {
    "hd95": "hd95_mm",
    "volume_difference": "volume_difference_ml",
    "reference_volume": "reference_volume_ml",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores by case and label.

    Attributes:
        data: the data set.
        labels: the labels scored.
        cases: case → label → scores.
        roles: case → support, audit or test, for cases known to be from the run that made the
            adapter.
        failed: case → why it could not be scored.
        warnings: sentences for the user.
        network: "adapted" or "unadapted".
        choice: why this network was used, in a sentence.
    """

    data: str
    labels: tuple[str, ...]
    cases: Mapping[str, Mapping[str, Scores]]
    roles: Mapping[str, str]
    failed: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    network: str = "adapted"
    choice: str = ""

    @property
    def shots(self) -> list[str]:
        """The scored cases that the adapter was trained on."""
        return [case for case in self.cases if self.roles.get(case) in SHOTS]

    def mean(self, label: str, measure: str) -> float:
        """Mean over cases; leaves out NaN (an empty label)."""
        return mean(getattr(scores[label], measure) for scores in self.cases.values())

    def overall(self, measure: str) -> float:
        """Mean over labels of the mean over cases, as in a run's `result.json`."""
        return mean(self.mean(label, measure) for label in self.labels)

    def document(self) -> dict[str, object]:
        """Everything as JSON types; undefined values are null."""
        return documents.as_json(
            {
                "data": self.data,
                "network": self.network,
                "dice": self.overall("dice"),
                "mean": {measure: self.overall(measure) for measure in MEASURES},
                "per_label": {
                    label: {m: self.mean(label, m) for m in MEASURES} for label in self.labels
                },
                "per_case": self.cases,
                "roles": self.roles,
                "failed": self.failed,
                "warnings": self.warnings,
            }
        )


def evaluate(
    adapter: Path,
    data: str,
    *,
    typed: Typed = NOTHING,
    device: str = "auto",
    labels: Sequence[str] = (),
    channels: Sequence[str] = (),
    cases: str = "all",
    tolerance: float = DEFAULT_TOLERANCE_MM,
    use: str | None = None,
    keep: Sequence[str] = (),
    ensemble: Sequence[Path] = (),
    progress: Progress = unwatched,
) -> Evaluation:
    """Score an adapter on the labelled cases of a data set.

    Args:
        adapter: an adapter folder or a run folder.
        data: a path, or `phantom:NAME`.
        typed: the backbone or its weights, if they are not installed under the name in the adapter.
        device: as on the command line.
        labels: as for `select`, if the data set's names or codes are not the adapter's. By default,
            labels match the adapter's by name if they can, otherwise by its codes. If the adapter
            added labels to its network's, those that the data set has are scored.
        channels: the data set's names of the adapter's channels, if names do not match.
        cases: "all" labelled ones, or "test": the test cases of the adapter's run or, without
            those, of the data set itself.
        tolerance: of the NSD, in mm.
        use: "adapted" or "unadapted"; None for the network that the adapter's run recommends.
        keep: as for `predict`.
        ensemble: further adapters, as for `predict`. A case is a test case if it is one of every
            run that knows it.
        progress: called with (cases done, of); the current case counts by its windows.

    Raises:
        DataError: there is no such data, or its labels or channels do not fit the adapter.
        UsageError: the tolerance is no distance, labels are not those of the adapter, or no case is
            a test case.
    """
    if not 0 <= tolerance <= 1000:
        raise UsageError(
            f"--tolerance {tolerance:g} is no distance in mm; choose one from 0 to 1000."
        )
    predictor = predictor_of(adapter, ensemble, typed, device, use, "evaluate")
    keeping = predictor.keeping(keep)
    opened = open_data(data)
    widened = not all(predictor.labels.values())
    asked = _there(opened, predictor.labels) if widened else predictor.labels
    specs = labels or [_wanted(opened, name, codes) for name, codes in asked.items()]
    chosen = select(opened, specs, channels)
    unscored = predictor.labels.keys() - chosen.labels.keys()
    if chosen.labels.keys() - predictor.labels.keys() or (unscored and not widened):
        raise UsageError(
            f"The adapter predicts {', '.join(predictor.labels)}, not {', '.join(chosen.labels)};"
            " name those with --label."
        )
    ours = {name: chosen.labels[name] for name in predictor.labels if name in chosen.labels}
    theirs = chosen.channels if channels else matching_channels(opened, predictor.channels)
    if len(theirs) != len(predictor.channels):
        raise UsageError(
            f"The adapter takes {count(len(predictor.channels), 'channel')}"
            f" ({', '.join(predictor.channels)}), not {len(theirs)}; name as many with --channel."
        )
    roles: dict[str, str] = {}
    warnings = []
    try:
        for path in (adapter, *ensemble):
            shots = {name: role for name, role in roles.items() if role in SHOTS}
            roles |= _roles(path, data) | shots
    except UsageError as error:
        warnings.append(
            f"{str(error).rstrip('.')}, so shots of the run cannot be told apart from new cases."
        )
    if not (
        labels or roles
    ):  # labels are not named, and these are not the data that the adapter was made with
        warnings += _other_names(
            opened, {name: codes for name, codes in predictor.labels.items() if name in ours}
        )
    if unscored and not labels:
        warnings.append(
            f"Not scored, since {chosen.name} has no label of that name:"
            f" {', '.join(name for name in predictor.labels if name in unscored)}; where it has one"
            " under another name, give each label with --label NAME=CODE."
        )
    picked = _picked(chosen, cases, roles)
    scored: dict[str, dict[str, Scores]] = {}
    failed: dict[str, str] = {}
    for done, case in enumerate(picked, start=1):
        # a data set's own test case may have the name of a training case
        name = f"{case.id} (test)" if case.id in scored or case.id in failed else case.id
        try:
            watched = within(progress, done - 1, len(picked))
            scored[name] = _score(predictor, keeping, case, theirs, ours, tolerance, watched)
        except Exception as error:
            failed[name] = reason(error)
        progress(done, len(picked))
    present = {case: role for case, role in roles.items() if case in scored}
    return Evaluation(
        data=chosen.name,
        labels=tuple(ours),
        cases=scored,
        roles=present,
        failed=failed,
        warnings=tuple(warnings),
        network=predictor.network,
        choice=predictor.choice()
        + (
            f" Kept of masks: {', '.join(f'{k} {v}' for k, v in keeping.items())}."
            if keeping
            else ""
        ),
    )


def write_evaluation(evaluation: Evaluation, out: Path) -> tuple[Path, Path, Path]:
    """Write `scores.csv` (one row per case and label), `scores.json` and the box plot `scores.png`
    into `out`. Raises DiskError.
    """
    make_folder(out)
    table, document, picture = (out / f"scores.{suffix}" for suffix in ("csv", "json", "png"))
    write_text(table, _csv(evaluation))
    write_text(document, json.dumps(evaluation.document(), indent=2, ensure_ascii=False) + "\n")
    by_measure = {
        measure: {
            label: [getattr(scores[label], measure) for scores in evaluation.cases.values()]
            for label in evaluation.labels
        }
        for measure in MEASURES
    }
    about = (
        f"{evaluation.data}: {count(len(evaluation.cases), 'case')}, in brackets those where a"
        " score is defined"
    )
    write_bytes(picture, boxplot_png(by_measure, evaluation.labels, about))
    return table, document, picture


def _score(
    predictor: Predictor,
    keeping: Mapping[str, Keep],
    case: Case,
    channels: tuple[str, ...],
    labels: Mapping[str, tuple[int, ...]],
    tolerance: float,
    progress: Progress,
) -> dict[str, Scores]:
    stored = case.label()
    assert stored is not None, "only labelled cases are picked"
    require_same_grid(case.id, "label", stored, "image", case.image(channels[0]))
    predicted = predictor.label_map(case, channels, progress)
    rules = {
        index: keeping[name]
        for index, name in enumerate(predictor.labels, start=1)
        if name in keeping
    }
    predicted = keep_parts(predicted, rules, math.prod(stored.spacing) / 1000)
    reference = label_indices(np.asarray(stored.array), labels)
    scored = np.array(
        [0, *(1 + list(labels).index(name) if name in labels else 0 for name in predictor.labels)]
    )
    return score_labels(scored[predicted], reference, tuple(labels), stored.spacing, tolerance)


def _wanted(dataset: Dataset, name: str, codes: Sequence[int]) -> str:
    """The adapter's label as `select` takes it: by name if the data set declares it, else by
    its codes.
    """
    declared = {known.lower(): known for known in dataset.labels}
    if name.lower() in declared:
        return f"{name}={','.join(map(str, dataset.labels[declared[name.lower()]]))}"
    return f"{name}={','.join(map(str, codes))}"


def _there(dataset: Dataset, labels: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The adapter's labels that the data set has: by name, or by codes that belong to no other of
    them.
    """
    named = drawn_in(dataset, dict.fromkeys(labels, ()))
    taken = {code for codes in named.values() for code in codes}
    found = {}
    for label, codes in labels.items():
        declared = dataset.codes is None or dataset.codes.issuperset(codes)
        if of := named[label] or (codes if declared and not taken.intersection(codes) else ()):
            found[label] = of
    return found


def _other_names(dataset: Dataset, labels: Mapping[str, Sequence[int]]) -> list[str]:
    """One sentence for each of the adapter's labels that is found by codes for which the data set
    has other names.
    """
    declared = {name.lower() for name in dataset.labels}
    names = {
        code: name
        for name, codes in dataset.labels.items()
        for code in codes
        if not _UNNAMED.fullmatch(name)
    }
    sentences = []
    for label, codes in labels.items():
        others = [code for code in codes if code in names]
        if others and label.lower() not in declared and not _UNNAMED.fullmatch(label):
            these = f"code{'' if len(others) == 1 else 's'} {', '.join(map(str, others))}"
            sentences.append(
                f"{label} is scored against {these}, which this data set calls"
                f" {', '.join(names[code] for code in others)}; if that is another structure, name"
                " the right one with --label."
            )
    return sentences


def _roles(adapter: Path, data: str) -> dict[str, str]:
    """Case name → its role in the run that made the adapter, if the run folder exists and had the
    same data.

    Raises:
        UsageError: the run folder does not say what its cases are called.
    """
    path = adapter_folder(adapter).resolve().parent
    folder = RunFolder(path)
    if not (folder.trace.is_file() and folder.config.is_file()):
        return {}
    if (folder.read_config().data or f"phantom:{DEFAULT_TARGET}") not in (
        data,
        str(Path(data).resolve()),
    ):
        return {}
    started = read_trace(folder.trace)[0]
    assert isinstance(started, RunStarted), "a trace begins with it"
    by_hash = folder.read_case_names()
    return {
        by_hash[hashed]: role
        for role, ids in started.split.items()
        for hashed in ids
        if hashed in by_hash
    }


def _picked(dataset: Dataset, cases: str, roles: Mapping[str, str]) -> list[Case]:
    everything = [*dataset.cases, *dataset.test_cases]
    if cases == "all":
        return everything
    if cases != "test":
        raise UsageError(f"--cases {cases} is not known; there are {' and '.join(CASES)}.")
    tests = [case for case in everything if roles.get(case.id) == "test"] or list(
        dataset.test_cases
    )
    if not tests:
        raise UsageError(
            f"{dataset.name} marks no case as test, and the adapter's run kept none for that, had"
            " other data or does not name its cases; leave --cases out."
        )
    return tests


def _csv(evaluation: Evaluation) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(
        ["case", "label", *(_UNITS.get(measure, measure) for measure in MEASURES), "role"]
    )
    for case, by_label in evaluation.cases.items():
        for label, scores in by_label.items():
            values = [getattr(scores, measure) for measure in MEASURES]
            cells = ["" if math.isnan(value) else f"{value:.6g}" for value in values]
            rows.writerow([case, label, *cells, evaluation.roles.get(case, "")])
    return text.getvalue()
