"""The run folder: the files of one adaptation."""

from __future__ import annotations

import datetime
import itertools
import json
import re
from pathlib import Path
from typing import Annotated

from pydantic import Field

from sea_peft import atomic, documents
from sea_peft.artefacts.profile import Profile
from sea_peft.artefacts.record import BackboneIdentity, MlflowId
from sea_peft.artefacts.result import Result
from sea_peft.data.augmentation import Augmentation
from sea_peft.data.recipe import Recipe
from sea_peft.data.split import Tests
from sea_peft.documents import (
    Channels,
    Duration,
    Labels,
    Name,
    Patch,
    Record,
    Seed,
    Sha256,
    Text,
)
from sea_peft.errors import UsageError

CONFIG_VERSION = 2
_Path = Annotated[
    str, Field(max_length=4096, pattern=r"^[^\x00]+$")
]  # of data; nothing else is given by path
_Spacing = tuple[
    Annotated[float, Field(ge=0.01, le=100)],
    Annotated[float, Field(ge=0.01, le=100)],
    Annotated[float, Field(ge=0.01, le=100)],
]
_Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d{1,3})?)$")]
_Steps = Annotated[int, Field(ge=1, le=10**9)]


class GivenOptions(Record):
    """The user's options, as given; null stands for the default.

    The network is not among them, since nothing in a file is used as code or as the path of a file.
    """

    shots: Annotated[int, Field(ge=1, le=10**6)] | None
    budget: Name | None
    labels: tuple[str, ...]
    channels: tuple[str, ...]
    policy: Name
    steps: _Steps | None
    cycles: _Steps | None
    patch: Patch | None
    spacing: _Spacing | None
    seed: Seed
    time_limit: Duration | None
    log_images: bool
    mlflow: bool
    test: Tests
    add_labels: tuple[str, ...] = ()
    max_forget: Annotated[float, Field(ge=0, le=100)] | None = None


class RunConfig(Record):
    """`config.json`: every resolved option, what the run was begun with, and versions. It stays in
    the run folder.

    `network`, `profile`, `augmentation` and `options` are null in runs of earlier versions, which
    can be inspected but not resumed. `id`: by which MLflow finds the run. `name`: of the run, for
    others to see. `data`: a path, `phantom:NAME`, or null for the embedded default target. `split`:
    path of a file that names cases. `typed`: the words of the command, only to be shown again.
    `begun_from`: sha256 of the tensors of the adapter that it began with; null if it began without
    one.
    """

    format_version: int = CONFIG_VERSION
    id: MlflowId | None
    name: Name | None
    data: _Path | None
    split: _Path | None
    typed: Annotated[
        dict[Name, Text | int | float | bool | list[Text] | list[float] | None],
        Field(max_length=100),
    ]
    profile: Profile | None
    augmentation: Augmentation | None
    budget: Name
    network: BackboneIdentity | None
    labels: Labels
    channels: Channels
    policy: Name
    shots: Annotated[int, Field(ge=1, le=10**6)]
    steps: _Steps
    cycles: _Steps
    patch: Patch
    recipe: Recipe
    seed: Seed
    device: _Device
    time_limit: Duration | None
    log_images: bool
    mlflow: bool
    layout: Name
    data_digest: Name
    options: GivenOptions | None
    versions: dict[Name, Text]
    begun_from: Sha256 | None = None

    def flat(self) -> dict[str, object]:
        """The options by name, as tables and MLflow show them."""
        found = self.model_dump(
            mode="json", exclude={"format_version", "network", "options", "profile", "typed"}
        )
        if self.profile is not None:
            found["profile"] = self.profile.name
        if self.network is not None:
            network = self.network
            found |= {
                "backbone": network.architecture,
                "weights": network.weights,
                "backbone_sha256": network.sha256,
            }
        return {
            key: value
            for key, value in found.items()
            if value is not None or key not in ("id", "name")
        }


def _of_version_1(config: dict[str, object]) -> dict[str, object]:
    """A config of version 1 in today's form. Its network and options are left out: both held
    paths.
    """
    gone = ("backbone", "weights", "backbone_sha256", "spacing", "out", "runs", "test", "augment")
    kept = {"id": None, "name": None, "split": None} | {
        key: value for key, value in config.items() if key not in gone
    }
    return {
        **kept,
        "typed": config["options"],
        "profile": None,
        "augmentation": None,
        "network": None,
        "options": None,
    }


class RunFolder:
    """The files of one run, by name. Each is written as a whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trace, self.config, self.result = (
            self.path / f for f in ("trace.jsonl", "config.json", "result.json")
        )
        self.report, self.page = (
            self.path / "report.md",
            self.path / "report.html",
        )  # of `adapt`, of `seapeft report`
        self.explanation = self.path / "explain.json"  # the numbers of `seapeft report --explain`
        self.adapter, self.checkpoint = self.path / "adapter", self.path / "checkpoint"
        self.case_names = self.path / "cases.json"  # readable by its owner alone
        self.begun_from = self.path / "begun_from"  # what was taken over from an earlier run

    @classmethod
    def create(cls, root: Path, name: str, *, today: datetime.date | None = None) -> RunFolder:
        """Make `<root>/<date>-<name>-<n>` with the first free n. Two simultaneous runs get two
        folders.

        Args:
            root: the runs root, made if it is missing.
            name: of the run; characters that a file name cannot hold become `-`.
            today: the date in the name, by default the local one.

        Raises:
            DiskError: the folder cannot be made.
        """
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
            DiskError: the folder cannot be made.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            said = (
                f"{path} exists and is not an empty folder: choose another folder, or resume the"
                " run in it."
            )
            raise UsageError(said, "out", "resume")
        atomic.make_folder(path)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The run folder at `path`.

        Raises:
            UsageError: there is none.
        """
        folder = cls(path)
        if not folder.path.is_dir():
            raise UsageError(
                f"There is no run folder {path}: give the path that `seapeft adapt` printed."
            )
        if not folder.config.is_file() and not folder.trace.is_file():
            raise UsageError(
                f"{path} is not a run folder: it has neither config.json nor trace.jsonl."
            )
        return folder

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def title(self) -> str:
        """The run's name for others to see. Runs of earlier versions only have the name of
        their folder.
        """
        return (self.read_config().name if self.config.is_file() else None) or self.name

    @property
    def root(self) -> Path:
        """The runs root, which also holds the MLflow store."""
        return self.path.resolve().parent

    def write_config(self, config: RunConfig) -> None:
        """Write `config.json`, readable by its owner alone: it says where the data are, so that the
        run can be resumed, and paths can name people.
        """
        atomic.write_text(self.config, config.model_dump_json(indent=2) + "\n", mode=atomic.PRIVATE)

    def write_result(self, result: Result) -> None:
        """Write `result.json`, in which the run is `.`, its own folder."""
        here = result.model_copy(update={"run": "."})
        atomic.write_text(self.result, here.model_dump_json(indent=2) + "\n")

    def write_report(self, markdown: str) -> None:
        atomic.write_text(self.report, markdown)

    def write_page(self, html: str) -> None:
        atomic.write_text(self.page, html)

    def write_explanation(self, document: dict[str, object]) -> None:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        atomic.write_text(self.explanation, text + "\n")

    def read_config(self) -> RunConfig:
        """The options of the run, of this or an earlier version.

        Raises:
            UsageError: `config.json` is missing or damaged, or is none that this or an earlier
                version writes.
        """
        try:
            found = documents.load(self._read(self.config))
            upgrades = {1: _of_version_1}
            return documents.check(
                RunConfig, documents.upgraded(found, upgrades, CONFIG_VERSION, first=1)
            )
        except documents.Invalid as error:
            raise UsageError(
                f"{self.config}: {error}; the run folder is damaged, run again."
            ) from error

    def read_result(self) -> Result:
        """The result of the run.

        Raises:
            UsageError: `result.json` is missing (the run did not finish), or is none that this
                version writes.
        """
        try:
            found = documents.check_json(Result, self._read(self.result))
        except documents.Invalid as error:
            raise UsageError(
                f"{self.result}: {error}; it was not written by this sea_peft."
            ) from error
        return found.model_copy(update={"run": str(self.path)})

    def read_case_names(self) -> dict[str, str]:
        """Hashed id → name, from `cases.json`.

        Raises:
            UsageError: it was removed, belongs to somebody else, or is damaged.
        """
        path = self.case_names
        try:
            return documents.check_json(dict[str, str], documents.read_bytes(path))
        except (OSError, documents.Invalid) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise UsageError(
                f"{path}, which says what the run's cases are called, cannot be read ({reason})."
            ) from error

    def _read(self, path: Path) -> bytes:
        try:
            return documents.read_bytes(path)
        except OSError as error:
            if path == self.result:
                said = (
                    f"{self.path} has no readable {path.name}: the run did not finish; resume it."
                )
                raise UsageError(said, "resume") from error
            raise UsageError(f"{self.path} has no readable {path.name}: run again.") from error


def dated(name: str, today: datetime.date | None = None) -> str:
    """`<date>-<name>`, by the local date."""
    return f"{(today or datetime.date.today()).isoformat()}-{name}"
