"""MLflow with restraint: one sqlite store under the runs root, nothing sent anywhere, no messages
below a warning.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import sqlite3
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sea_peft.errors import UsageError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_AI_GATEWAY": "false",  # it would forward requests to external services
}
EXPERIMENT = "sea_peft"
# Relative to the runs root: a full path could name people, and would be wrong once the folder was
# moved. MLflow resolves it against its working directory.
ARTIFACTS = "mlartifacts"
_VIEW = "dice"
# The columns of the UI's list of runs behind our link: the three arms' Dice, and their costs
_COLUMNS = [
    *(f"metrics.`dice/{arm}`" for arm in ("unadapted", "head_only", "adapted")),
    *(f"params.`{name}`" for name in ("policy", "shots", "budget_limit")),
]
_RUN_LIST = {f"mlflow.sharedViewState.{_VIEW}": json.dumps({"selectedColumns": _COLUMNS})}
# Words in sqlite's errors about a store that is intact but cannot be used at the moment
_PASSING = ("locked", "full", "readonly", "unable to open", "disk I/O")


class UnusableStore(RuntimeError):
    """The store is damaged and must be replaced."""


def store_path(runs_root: Path) -> Path:
    """The sqlite file of a runs root."""
    return runs_root.resolve() / "mlflow.db"


def store_uri(runs_root: Path) -> str:
    """The SQLAlchemy URI of that file.

    Raises:
        UsageError: the path holds `%` or `?`, which SQLAlchemy's releases read differently in a
            URI.
    """
    path = store_path(runs_root).as_posix()
    if "%" in path or "?" in path:
        raise UsageError(
            f"MLflow cannot keep its store in {path}: choose a runs folder without % and ? in its"
            " path."
        )
    return f"sqlite:///{path}"


def open_store(runs_root: Path) -> MlflowClient:
    """A client of the store of `runs_root`, which is made if it is missing.

    Imports mlflow, with telemetry off, which takes a second or two.

    Raises:
        UnusableStore: MLflow cannot read the store.
        Exception: any of MLflow's, if the store is locked or cannot be written.
    """
    path, uri = store_path(runs_root), store_uri(runs_root)
    import_quietly()
    if not path.exists():
        _make_store(path)
    try:
        return _client(uri)
    except Exception as error:
        said = first_line(error)
        if any(word in said for word in _PASSING):
            raise
        raise UnusableStore(said) from error


def first_line(error: Exception) -> str:
    """The message of an MLflow error, without the SQL below it."""
    return str(error).strip().split("\n")[0].rstrip(".")


def way_out(error: Exception) -> str:
    """How to recover when the store fails with `error`, as a part of a sentence."""
    if isinstance(error, UnusableStore):
        return "move that file away (a run is logged into a new one from its trace)"
    return "free the store or make it writable"


def installed() -> bool:
    """Whether MLflow can be imported; does not import it. Masks are made without it."""
    return importlib.util.find_spec("mlflow") is not None


def require() -> None:
    """Raise UsageError if MLflow is not installed."""
    if not installed():
        raise UsageError(
            "MLflow is not installed, which `seapeft ui` shows and `seapeft adapt` logs into;"
            " install it, or adapt with --no-mlflow."
        )


def import_quietly() -> None:
    """Import mlflow, which from then on sends nothing and logs nothing. Raises UsageError if it is
    not installed.
    """
    require()
    os.environ.update(_QUIET)
    import mlflow  # noqa: F401

    # MLflow logs a traceback for errors that the caller reports in one sentence
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _make_store(path: Path) -> None:
    """Make a store beside `path` and move it there as a whole, unless another run was faster.

    MLflow takes seconds for it and commits in between. After an interruption the file could never
    be used again, and two runs that make one file spoil it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # MLflow keeps its connection to the file, which hinders the removal on Windows
    with tempfile.TemporaryDirectory(
        prefix=f".{path.name}.", suffix=".tmp", dir=path.parent, ignore_cleanup_errors=True
    ) as folder:
        begun, whole = Path(folder) / "begun.db", Path(folder) / "whole.db"
        client = _client(f"sqlite:///{begun.as_posix()}")
        _make_experiment(client)
        _forget_places(begun)
        with contextlib.closing(sqlite3.connect(begun)) as connection:
            connection.execute("VACUUM INTO ?", (str(whole),))
        try:
            os.link(whole, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            if not path.exists():
                whole.rename(path)


def experiment_id(client: MlflowClient, runs_root: Path) -> str:
    """The id of the store's one experiment.

    A store from elsewhere gets one. A store of an earlier version, which recorded its own location,
    is made to forget it.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None or experiment.artifact_location != ARTIFACTS:
        with contextlib.suppress(MlflowException):  # another run made it just now
            if experiment is None:
                _make_experiment(client)
        _forget_places(store_path(runs_root))
        experiment = client.get_experiment_by_name(EXPERIMENT)
    for key, value in _RUN_LIST.items():
        if experiment.tags.get(key) != value:
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return str(experiment.experiment_id)


def artifacts(runs_root: Path, run: Run) -> Path:
    """The folder of a run's artifacts.

    Raises:
        UnusableStore: the store names another place, so somebody must have edited it.
    """
    place = f"{ARTIFACTS}/{run.info.run_id}/artifacts"
    if run.info.artifact_uri != place or not run.info.run_id.isalnum():
        raise UnusableStore(f"it keeps artifacts in {run.info.artifact_uri} instead of {place}")
    return runs_root / place


def _make_experiment(client: MlflowClient) -> None:
    # without the kind, the UI opens on its pages for language models
    client.create_experiment(
        EXPERIMENT, tags={"mlflow.experimentKind": "custom_model_development", **_RUN_LIST}
    )


def _forget_places(path: Path) -> None:
    """Make the locations of artifacts relative. MLflow's own functions cannot: they make every
    location absolute.
    """
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection:
        with connection:
            connection.execute(  # and of the one that MLflow makes by itself
                "UPDATE experiments SET artifact_location = ? WHERE name = ? OR (experiment_id = 0"
                " AND 0 NOT IN (SELECT experiment_id FROM runs))",
                (ARTIFACTS, EXPERIMENT),
            )
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || '/' || run_uuid || '/artifacts' WHERE"
                " experiment_id = (SELECT experiment_id FROM experiments WHERE name = ?)",
                (ARTIFACTS, EXPERIMENT),
            )
        connection.execute("VACUUM")  # sqlite keeps what was overwritten


def check_writable(runs_root: Path, seconds: float) -> None:
    """Take the store's write lock for a moment, waiting at most `seconds` for it. A store that does
    not exist yet is fine.

    MLflow itself waits 20 seconds for a locked store in every call, and retries for 100 seconds to
    open a broken one: too long for a training run to stand still.

    Raises:
        OSError: the store is unwritable.
        sqlite3.OperationalError: the store is locked or unwritable.
        UnusableStore: it is not a database.
    """
    path = store_path(runs_root)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return
    connection = sqlite3.connect(path, timeout=seconds, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        raise UnusableStore(first_line(error)) from error
    finally:
        connection.close()


def ui_page(runs_root: Path) -> str:
    """The part of a link, from `#` on, that leads to the list of runs in the UI's pages for model
    training.

    Raises:
        UsageError: no run has been logged under `runs_root`.
    """
    experiment = _experiment_in(store_path(runs_root))
    if experiment is None:
        way_on = (
            "run `seapeft adapt` first, name another runs folder, or log a run that lies there from"
            " its trace"
        )
        raise UsageError(f"No run is logged in {runs_root}: {way_on}.", "runs", "rebuild")
    identity, has_columns = experiment
    columns = f"&viewStateShareKey={_VIEW}" if has_columns else ""
    return f"#/experiments/{identity}/runs?workflowType=machine_learning{columns}"


def _experiment_in(store: Path) -> tuple[int, bool] | None:
    """Its id, and whether its list of runs has our columns. Asks sqlite itself, since importing
    MLflow takes seconds.
    """
    if not store.is_file():
        return None
    asked = (
        "SELECT e.experiment_id, t.value IS NOT NULL FROM experiments e LEFT JOIN experiment_tags t"
        " ON t.experiment_id = e.experiment_id AND t.key = ? WHERE e.name = ?"
    )
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(store)) as connection,
    ):
        found = connection.execute(asked, (*_RUN_LIST, EXPERIMENT)).fetchone()
        return None if found is None else (found[0], bool(found[1]))
    return None
