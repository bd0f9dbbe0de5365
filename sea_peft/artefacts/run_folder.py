"""The run folder: where one adaptation leaves its files, and what `result.json` says."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sea_peft.artefacts import atomic
from sea_peft.artefacts.adapter_file import Recommendation
from sea_peft.errors import DeviceError, UsageError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Budget(_Strict):
    """Parameters: what may be trained, what is, the head's share, and `used` over the backbone's
    parameters."""

    limit: int = Field(ge=0)
    used: int = Field(ge=0)
    head: int = Field(ge=0)
    fraction: float = Field(ge=0)
    backbone_parameters: int = Field(ge=1)


class UnitCounts(_Strict):
    """Units in the audit space and units shipped."""

    offered: int = Field(ge=0)
    active: int = Field(ge=0)


class DiceScores(_Strict):
    """Mean Dice of the three arms on the test cases, or by leave-one-out (null: nothing was scored, or the arm
    cannot predict the labels); details of `adapted`."""

    unadapted: float | None
    head_only: float | None
    adapted: float | None
    per_label: dict[str, float]
    per_case: dict[str, dict[str, float]]


class HeldOut(_Strict):
    """Mean Dice of the three arms, as the search had left them, on the scans held out while searching."""

    unadapted: float | None
    head_only: float | None
    adapted: float | None


class Seconds(_Strict):
    """Wall-clock time by what it was spent on."""

    total: float
    train: float
    audit: float
    allocate: float
    data: float
    test: float


class AuditCost(_Strict):
    """Patch forwards spent on audits, and what full passes for every audited unit would have cost."""

    patches: int = Field(ge=0)
    naive_patches: int = Field(ge=0)


class Result(_Strict):
    """`result.json`, and what `seapeft adapt --json` prints. `test`: what `dice` was measured on: test cases, the shots by leave-one-out, or
    nothing. `held_out`: null at one shot, where no scan is held out. `recommended`: null in runs of earlier versions. `sensitivity`,
    `specificity`: by label, mean over scored cases."""

    status: str
    shots: int = Field(ge=0)
    support_cases: int = Field(ge=0)
    audit_cases: int = Field(ge=0)
    test_cases: int = Field(ge=0)
    budget: Budget
    units: UnitCounts
    dice: DiceScores
    test: Literal["cases", "cv", "none"] = "cases"
    held_out: HeldOut | None = None
    recommended: Recommendation | None = None
    sensitivity: dict[str, float] = {}
    specificity: dict[str, float] = {}
    seconds: Seconds
    audit: AuditCost
    peak_memory_bytes: int = Field(ge=0)
    device: str
    seed: int
    policy: str
    run: str
    mlflow_run_id: str | None


class RunFolder:
    """The files of one run, by name; they are written whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, root: Path, name: str, *, today: datetime.date | None = None) -> RunFolder:
        """Make `<root>/<date>-<name>-<n>` with the first n that is free; two runs at once get two folders.

        Args:
            root: the runs root, made if it is missing.
            name: what the run is called; what a file name cannot hold becomes `-`.
            today: the date in the name, by default the local one.

        Raises:
            DeviceError: the folder cannot be made.
        """
        root = Path(root)
        begins = dated(re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.") or "run", today)
        with atomic.writing(root):
            root.mkdir(parents=True, exist_ok=True)
            for n in itertools.count(1):
                path = root / f"{begins}-{n}"
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
                break
        return cls(path)

    @classmethod
    def create_at(cls, path: Path) -> RunFolder:
        """Make exactly `path` (the `--out` of a run).

        Raises:
            UsageError: it exists and is not an empty folder: a run folder is never used twice.
            DeviceError: the folder cannot be made.
        """
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(
                f"{path} exists and is not an empty folder: choose another --out, or go on with --resume {path}."
            )
        with atomic.writing(path):
            path.mkdir(parents=True, exist_ok=True)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The run folder at `path`.

        Raises:
            UsageError: there is none.
        """
        folder = cls(path)
        if not folder.path.is_dir():
            raise UsageError(f"There is no run folder {path}: give the path that `seapeft adapt` printed.")
        if not folder.config.is_file() and not folder.trace.is_file():
            raise UsageError(f"{path} is not a run folder: it has neither config.json nor trace.jsonl.")
        return folder

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def title(self) -> str:
        """What the run is called in front of others; runs of earlier versions have no name but that of their folder."""
        return str(self.read_config().get("name", self.name)) if self.config.is_file() else self.name

    @property
    def root(self) -> Path:
        """The runs root, which also holds the MLflow store."""
        return self.path.resolve().parent

    @property
    def trace(self) -> Path:
        return self.path / "trace.jsonl"

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def report(self) -> Path:
        return self.path / "report.md"

    @property
    def page(self) -> Path:
        """The HTML report of `seapeft report`."""
        return self.path / "report.html"

    @property
    def explanation(self) -> Path:
        """The numbers of `seapeft report --explain`."""
        return self.path / "explain.json"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    def write_config(self, config: dict[str, Any]) -> None:
        """`config.json`, readable by its owner alone: a run that is resumed has to know where the data are, and paths can name people."""
        _write_json(self.config, config, atomic.PRIVATE)

    def write_result(self, result: Result) -> None:
        """`result.json`, in which the run is `.`, the folder that it lies in."""
        here = result.model_copy(update={"run": "."})
        atomic.write_text(self.result, here.model_dump_json(indent=2) + "\n")

    def write_report(self, markdown: str) -> None:
        atomic.write_text(self.report, markdown)

    def write_page(self, html: str) -> None:
        with _beside_the_run(self.page):
            atomic.write_text(self.page, html)

    def write_explanation(self, document: dict[str, Any]) -> None:
        with _beside_the_run(self.explanation):
            _write_json(self.explanation, document)

    def read_config(self) -> dict[str, Any]:
        """The options of the run.

        Raises:
            UsageError: `config.json` is missing or damaged.
        """
        try:
            config = json.loads(self._read(self.config))
        except ValueError as error:
            raise UsageError(f"{self.config} is not JSON ({error}): the run folder is damaged; run again.") from error
        if not isinstance(config, dict):
            raise UsageError(f"{self.config} is not a JSON object: the run folder is damaged; run again.")
        return config

    def read_result(self) -> Result:
        """What the run ended with.

        Raises:
            UsageError: `result.json` is missing (the run did not finish) or not as this version writes it.
        """
        text = self._read(self.result)
        try:
            return Result.model_validate_json(text).model_copy(update={"run": str(self.path)})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "document"
            raise UsageError(f"{self.result}: {field}: {first['msg']}; it was not written by this sea_peft.") from error

    def _read(self, path: Path) -> str:
        try:
            return path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            hint = f"the run did not finish; go on with --resume {self.path}" if path == self.result else "run again"
            raise UsageError(f"{self.path} has no readable {path.name}: {hint}.") from error


@contextlib.contextmanager
def _beside_the_run(path: Path) -> Iterator[None]:
    """What is made of a finished run goes into its folder, and there is no --out to choose another one."""
    try:
        yield
    except DeviceError as error:
        cause = error.__cause__
        reason = cause.strerror if isinstance(cause, OSError) else None
        raise DeviceError(
            f"Cannot write {path} ({reason or error}): make room there and the folder writable, or copy the run folder elsewhere "
            "and report that."
        ) from error


def dated(name: str, today: datetime.date | None = None) -> str:
    """`<date>-<name>`, by the local date."""
    return f"{(today or datetime.date.today()).isoformat()}-{name}"


def _write_json(path: Path, document: dict[str, Any], mode: int = 0o666) -> None:
    atomic.write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n", mode=mode)
