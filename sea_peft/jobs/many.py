"""`seapeft adapt --for FILE`: one run per label, target or seed, in one folder with one table. The
same command again continues.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sea_peft import documents
from sea_peft.artefacts import store
from sea_peft.artefacts.result import Result
from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.artefacts.tracker import rebuild
from sea_peft.atomic import PRIVATE, make_folder, remove_leftovers, write_text
from sea_peft.data.progress import Progress, within
from sea_peft.data.wording import count
from sea_peft.errors import SeaPeftError, StoreError, UsageError
from sea_peft.jobs.launching import Launch
from sea_peft.jobs.memory import Need, needed
from sea_peft.jobs.model import resolve_device
from sea_peft.jobs.options import AdaptOptions
from sea_peft.jobs.pictures import images_for_mlflow
from sea_peft.jobs.setup import prepare_run

SUMMARY = "summary.csv"
Say = Callable[[str], None]
# Options that may differ between the command that began a run and the one that continues it:
# locations and names
_BESIDE = ("out", "runs", "name", "device", "mlflow", "log_images")
_BEFORE_IT_BEGAN = {"cases.json", "begun_from"}
_ARMS = ("unadapted", "head_only", "adapted")


@dataclasses.dataclass
class Member:
    """One of the runs.

    Attributes:
        name: of the run, of its folder and of its row.
        options: what the user asked for; `out` is its folder.
        was: its state before this command.
        result: its result; None if it has not finished.
        error: why it failed.
    """

    name: str
    options: AdaptOptions
    was: Literal["new", "begun", "done"]
    result: Result | None = None
    error: SeaPeftError | None = None

    @property
    def folder(self) -> RunFolder:
        return RunFolder(Path(str(self.options.out)))

    @property
    def status(self) -> str:
        """`done`, `failed`, `begun` (killed, or at work), or `new`."""
        if self.error is not None:
            return "failed"
        return (
            "done"
            if self.result is not None
            else "begun"
            if self.folder.config.is_file()
            else "new"
        )

    def row(self) -> dict[str, object]:
        """Its row in the table. Only `error` can name a scan or a path."""
        result = self.result
        row: dict[str, object] = {"run": self.name, "status": self.status}
        for on in ("dice", "held_out"):
            scores = None if result is None else getattr(result, on)
            row |= {
                f"{on}_{arm}": None if scores is None else getattr(scores, arm) for arm in _ARMS
            }
        row |= dict.fromkeys(
            (
                "tested_on",
                "test_cases",
                "shots",
                "recommended",
                "used",
                "limit",
                "units",
                "policy",
                "seed",
                "seconds",
            )
        )
        if result is not None:
            recommended = None if result.recommended is None else result.recommended.network
            row |= {
                "tested_on": result.test,
                "test_cases": result.test_cases,
                "shots": result.shots,
                "recommended": recommended,
                "used": result.budget.used,
                "limit": result.budget.limit,
                "units": result.units.active,
                "policy": result.policy,
                "seed": result.seed,
                "seconds": round(result.seconds.total, 1),
            }
        return row | {"error": None if self.error is None else str(self.error)}


def opened(root: Path, asked: Mapping[str, AdaptOptions]) -> list[Member]:
    """The state of each run in `root`, in the folder of its name.

    Raises:
        UsageError: a folder there holds a run with other options, or no run.
    """
    return [
        _opened(name, dataclasses.replace(options, out=root / name))
        for name, options in asked.items()
    ]


def _opened(name: str, options: AdaptOptions) -> Member:
    member = Member(name, options, "new")
    folder = member.folder
    if not folder.config.is_file():
        if _left_in(folder.path) - _BEFORE_IT_BEGAN:
            raise UsageError(
                f"{folder.path} holds something that is no run; remove it, call the run otherwise,"
                " or choose another --out."
            )
        return member
    typed = folder.read_config().typed
    for option, (then, now) in _differences(
        typed, documents.as_json(dataclasses.asdict(options))
    ).items():
        raise UsageError(
            f"{folder.path} was run with {option} {_shown(then)}, and {_shown(now)} is asked for"
            " now; remove that folder, or choose another --out."
        )
    if folder.result.is_file() and not folder.checkpoint.exists():
        return dataclasses.replace(member, was="done", result=folder.read_result())
    return dataclasses.replace(member, was="begun")


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = [name for name in now if name not in _BESIDE]
    return {
        name: (then.get(name), now[name])
        for name in names
        if (then.get(name) or None) != (now[name] or None)
    }


def _shown(value: object) -> str:
    return (
        "nothing"
        if value is None or value == []
        else ",".join(map(str, value if isinstance(value, list) else [value]))
    )


def check(
    members: Sequence[Member], say: Say, progress: Progress, side_by_side: int | None
) -> None:
    """Refuse any new run that would be refused later, before one of them begins. Runs that differ
    in their seed alone are checked once.

    Args:
        members: all runs.
        say: receives the memory that they need.
        progress: called with (runs done, of); the current one counts by its checked cases.
        side_by_side: number of runs at a time on this machine; None: they run elsewhere, so their
            device is not checked here.

    Raises:
        SeaPeftError: of the run's own kind, with the run's name before the sentence.
    """
    new = {m.name: dataclasses.replace(m.options, device="cpu") for m in members if m.was == "new"}
    needs, seen = [Need(0, 0)], set[AdaptOptions]()
    for done, (name, options) in enumerate(new.items()):
        progress(done, len(new))
        alike = dataclasses.replace(options, seed=0, out=None, name=None)
        if alike in seen:
            continue
        try:
            setup = prepare_run(options, lambda sentence: None, within(progress, done, len(new)))
            needs.append(setup.need())
        except SeaPeftError as error:
            raise type(error)(f"{name}: {error}", *error.settings) from error
        seen.add(alike)
        del setup  # with its network
    if side_by_side is not None:
        for device in {m.options.device for m in members}:
            resolve_device(device)
    if new:
        progress(len(new), len(new))
        most = max(needs, key=lambda need: need.memory)
        say(needed("The largest of the runs", most, min(len(new), side_by_side or 1)))


def many(
    root: Path,
    members: Sequence[Member],
    launch: Launch,
    warn: Say,
    finished: Callable[[Member], None],
    mlflow: bool = True,
) -> None:
    """Run what is not done, and rewrite `summary.csv` whenever a run has ended. Only this process
    logs into MLflow, when a run is done.

    Args:
        root: the folder of all runs.
        members: the runs, from `opened`; receives their results and errors.
        launch: runs them.
        warn: receives sentences for the user.
        finished: called with every run that has just ended.
        mlflow: whether to log into MLflow at all; its store lies in `root`.

    Raises:
        SeaPeftError: none can be launched, or the table cannot be written. The failure of a run is
            in its `error`.
    """
    if mlflow:
        store.require()
    make_folder(root)
    by_name = {member.name: member for member in members}
    for member in members:
        if member.was == "new":
            _clear(member.folder.path)
    todo = {
        m.name: dataclasses.replace(m.options, mlflow=False) for m in members if m.was != "done"
    }
    try:
        with contextlib.closing(launch(todo)) as ends:
            for name, ended in ends:
                member = by_name[name]
                for sentence in ended.warnings:
                    warn(f"{name}: {sentence}")
                member.error = ended.error
                member.result = member.folder.read_result() if ended.error is None else None
                finished(member)
                write_summary(root, members)
                if mlflow:
                    _log(member, warn)
    finally:
        write_summary(root, members)
    if mlflow:
        for member in members:
            if (
                member.was == "done"
            ):  # by an earlier command, which may have been ended before it could say so
                _log(member, warn)


def _left_in(folder: Path) -> set[str]:
    """The content of the folder, without hidden files."""
    return (
        {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        if folder.is_dir()
        else set()
    )


def _clear(folder: Path) -> None:
    """Remove the files of a run that was killed before it could be resumed."""
    if folder.is_dir():
        remove_leftovers(folder)
        (folder / "cases.json").unlink(missing_ok=True)
        shutil.rmtree(folder / "begun_from", ignore_errors=True)


def _log(member: Member, warn: Say) -> None:
    """Log a finished run that MLflow does not have yet."""
    result, folder = member.result, member.folder
    if result is None or result.mlflow_run_id is not None:
        return
    try:
        images = images_for_mlflow(folder, warn, member.options.typed, member.options.device)
        member.result = result.model_copy(update={"mlflow_run_id": rebuild(folder, images=images)})
        folder.write_result(member.result)
    except StoreError as error:
        warn(f"{member.name}: {error}")


def write_summary(root: Path, members: Sequence[Member]) -> Path:
    """Write `summary.csv`: one row per run, finished or not. Returns its path."""
    rows = [member.row() for member in members]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(root / SUMMARY, text.getvalue(), mode=PRIVATE)
    return root / SUMMARY


def failed(members: Sequence[Member]) -> str:
    """How many of the runs have failed, in words; empty if none has."""
    bad = sum(member.status == "failed" for member in members)
    return f"{bad} of {count(len(members), 'run')}" if bad else ""
