"""`adapt --for FILE`: reads the file of runs, and shows their progress and results."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sea_peft import documents
from sea_peft.console import parse, torchrun
from sea_peft.console import runs as shown
from sea_peft.console.output import Output
from sea_peft.console.progress import RunProgress
from sea_peft.console.tables import cell, table
from sea_peft.console.verb import Interrupted, outcome
from sea_peft.data.wording import count
from sea_peft.errors import PartialFailure, UsageError, first_line

if TYPE_CHECKING:
    from rich.table import Table

    from sea_peft.jobs.launching import Launch
    from sea_peft.jobs.many import Member
    from sea_peft.jobs.options import AdaptOptions
    from sea_peft.loop.events import Event

_NAME = re.compile(r"\w[\w-]{0,59}")


def _number(value: object) -> int:
    if type(value) is not int:
        raise typer.BadParameter(f"{value!r} is not a whole number.")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise typer.BadParameter(f"{value!r} is not a text; write it in quotes.")
    return str(value)


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(_text, value)) if isinstance(value, list) else (_text(value),)


def _name_only(value: object) -> str:
    name = _text(value)
    if ":" in name:
        raise typer.BadParameter(
            f"{name!r} is code, and no file names code; type --backbone in the command."
        )
    return name


def _typed(reader: Callable[[str], object]) -> Callable[[object], object]:
    return lambda value: reader(_text(value))


# flag of `adapt` → its option, and the reader of its value
_FLAGS: dict[str, tuple[str, Callable[[object], object]]] = {
    "data": ("data", _text),
    "label": ("labels", _texts),
    "channel": ("channels", _texts),
    "shots": ("shots", _number),
    "split": ("split", _text),
    "test": ("test", _typed(parse.tests)),
    "budget": ("budget", _text),
    "profile": ("profile", _text),
    "backbone": ("backbone", _name_only),
    "weights": ("weights", _text),
    "policy": ("policy", _text),
    "steps": ("steps", _number),
    "cycles": ("cycles", _number),
    "patch": ("patch", _typed(parse.size)),
    "spacing": ("spacing", _typed(parse.millimetres)),
    "seed": ("seed", _number),
    "augment": ("augment", _text),
    "time-limit": ("time_limit", _typed(parse.duration)),
    "from": ("from_run", _text),
}


def read_runs(file: Path, given: AdaptOptions) -> tuple[dict[str, AdaptOptions], dict[str, object]]:
    """The runs of a file by name, each with its own options on top of the command's; and parameters
    for submitit.

    The file holds one table `[runs.NAME]` per run, whose keys are flags of `adapt` with the values
    that one would type, and perhaps a table `[submitit]`. `given`: the options of the command.

    Raises:
        UsageError: the file cannot be read, or an entry makes no sense.
    """
    try:
        document = documents.load_toml(file)
    except (OSError, documents.Invalid) as error:
        raise UsageError(f"--for {file} cannot be read ({first_line(error)}).") from error
    runs, parameters = document.pop("runs", {}), document.pop("submitit", {})
    if document or not isinstance(runs, dict) or not isinstance(parameters, dict) or not runs:
        odd = f" {next(iter(document))!r} is neither." if document else ""
        raise UsageError(
            f"--for {file} must hold a table [runs.NAME] for each run, and may hold"
            f" [submitit].{odd}"
        )
    return {
        name: _options(f"--for {file}, [runs.{name}]", name, given, own)
        for name, own in runs.items()
    }, parameters


def _options(where: str, name: str, given: AdaptOptions, own: object) -> AdaptOptions:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{where}: the name of a run is 1 to 60 letters, digits, _ and -, since its folder is"
            " called so."
        )
    if not isinstance(own, dict):
        raise UsageError(f"{where}: {own!r} is no table; write [runs.{name}], and its flags below.")
    changes: dict[str, Any] = {"name": name}
    for key, value in own.items():
        if key not in _FLAGS:
            raise UsageError(
                f"{where}: {key!r} is no flag that a run can have of its own ({', '.join(_FLAGS)})."
            )
        option, reader = _FLAGS[key]
        try:
            changes[option] = reader(value)
        except typer.BadParameter as error:
            raise UsageError(f"{where}, {key}: {error.message}") from error
    return dataclasses.replace(given, **changes)


def many(
    output: Output,
    file: Path,
    given: AdaptOptions,
    jobs: int | None,
    cluster: str | None,
    dry_run: bool,
) -> None:
    """Run the unfinished runs of a file, and show the table of all. Raises PartialFailure if
    some have failed.
    """
    from sea_peft.jobs.cluster import Cluster
    from sea_peft.jobs.launching import on_cluster, side_by_side
    from sea_peft.jobs.many import SUMMARY, check, failed, opened
    from sea_peft.jobs.many import many as job

    torchrun.refuse_unless(False, "adapt --for")
    if given.name is not None:
        raise UsageError(
            "--name names one run, and --for many, which are called as in the file; leave it out."
        )
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs {jobs} is not a number of runs side by side; ask for 1 or more.")
    asked, parameters = read_runs(file, given)
    root = Path(given.out) if given.out is not None else Path(given.runs) / file.stem
    members = opened(root, asked)
    if dry_run:
        _plans(output, members)
        return
    launch: Launch
    if cluster is not None:
        there = Cluster(cluster, root / ".jobs", jobs, parameters)
        there.executor()  # refused before anything is looked at
        launch = functools.partial(on_cluster, cluster=there)
    else:
        launch = functools.partial(side_by_side, jobs=jobs or 1, told=_Told(output))
    with output.progress("check the runs") as progress:
        check(members, output.say, progress, None if cluster else jobs or 1)
    try:
        with output.progress("runs") as progress:

            def ended(member: Member) -> None:
                if member.error is not None:
                    output.warn(f"{member.name}: {outcome(member.error)[0]}")
                progress(sum(m.status in ("done", "failed") for m in members), len(members))

            job(root, members, launch, output.warn, ended, given.mlflow)
    except KeyboardInterrupt:
        raise Interrupted(
            "Interrupted; finished runs are kept, the others go on from where they stand with the"
            " same command."
        ) from None
    bad = failed(members)
    document = {
        "status": "failed" if bad else "done",
        "summary": str(root / SUMMARY),
        "runs": {
            member.name: {
                "status": member.status,
                "error": None if member.error is None else outcome(member.error)[0],
                "exit_code": 0 if member.error is None else outcome(member.error)[1],
                "result": None if member.result is None else member.result.model_dump(mode="json"),
            }
            for member in members
        },
    }
    output.result(
        document,
        summary_table(members),
        cell(f"The table is in {root / SUMMARY}, and each run in {root}/<run>."),
    )
    if bad:
        raise PartialFailure(
            f"{bad} failed; the reasons stand above, and the same command tries them again."
        )


class _Told:
    """Shows the events of several runs, each line with the run's name."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._of: dict[str, RunProgress] = {}

    def __call__(self, name: str, event: Event) -> None:
        self._of.setdefault(name, RunProgress(self._output, name))(event)


def _plans(output: Output, members: list[Member]) -> None:
    """Show what would be done, and how long each run would take here."""
    from sea_peft.jobs.plan import plan

    plans: dict[str, Mapping[str, Any]] = {}
    with output.progress("check the runs") as progress:
        for done, member in enumerate(members):
            progress(done, len(members))
            plans[member.name] = (
                {"was": member.was}
                if member.was == "done"
                else {"was": member.was, **plan(member.options, _unsaid)}
            )
        progress(len(members), len(members))
    rows = [
        (name, found["was"], *((None,) * 4 if found["was"] == "done" else _planned(found)))
        for name, found in plans.items()
    ]
    columns = ("run", "now", "labels", "shots", "test", "time, about")
    output.result(
        {"status": "planned", "runs": plans},
        table(
            "Nothing was trained; this is what would be",
            columns,
            rows,
            right=("labels", "shots", "test"),
        ),
    )


def _unsaid(sentence: str) -> None:
    """Drop the sentence: the table of a plan is enough."""


def _planned(plan: Mapping[str, Any]) -> tuple[object, ...]:
    data = plan["data"]
    return (
        len(data["labels"]),
        data["support"] + data["audit"],
        data["test"],
        shown.roughly(plan["seconds"]["total"]),
    )


def summary_table(members: list[Member]) -> Table:
    """One line per run: Dice of the three arms, the network that predictions use, the time."""
    rows: list[tuple[object, ...]] = []
    for member in members:
        result = member.result
        if result is None:
            rows.append((member.name, member.status, *(None,) * 5))
            continue
        scores = result.held_out if result.test == "none" else result.dice
        on = {
            "cases": count(result.test_cases, "test case"),
            "cv": "each shot",
            "none": "held out",
        }[result.test]
        dice = (
            (None,) * 3 if scores is None else (scores.unadapted, scores.head_only, scores.adapted)
        )
        use = None if result.recommended is None else result.recommended.network
        rows.append((member.name, on, *dice, use, shown.clock(result.seconds.total)))
    columns = ("run", "Dice on", "unadapted", "head only", "adapted", "use", "time")
    return table(
        f"{count(len(members), 'run')}", columns, rows, right=("unadapted", "head only", "adapted")
    )
