"""MLflow, tamed: one sqlite store under the runs root, nothing sent anywhere, nothing said below a
warning."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sea_peft.errors import UsageError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_AI_GATEWAY": "false",  # it would pass on what it is asked to services elsewhere
}
EXPERIMENT = "sea_peft"
# What sqlite says of a store that is whole but cannot be used just now
_PASSING = ("locked", "full", "readonly", "unable to open", "disk I/O")


class UnusableStore(RuntimeError):
    """The store is damaged, or was made for another place: only another one in its place helps."""


def store_path(runs_root: Path) -> Path:
    """The sqlite file of a runs root."""
    return Path(runs_root).resolve() / "mlflow.db"


def store_uri(runs_root: Path) -> str:
    """The SQLAlchemy URI of that file.

    Raises:
        UsageError: the path holds `%` or `?`, which SQLAlchemy's releases read differently in a URI.
    """
    path = store_path(runs_root).as_posix()
    if "%" in path or "?" in path:
        raise UsageError(f"MLflow cannot keep its store in {path}: choose a runs folder without % and ? in its path.")
    return f"sqlite:///{path}"


def artifacts_uri(runs_root: Path) -> str:
    """Where MLflow keeps the artifacts of that store."""
    return (Path(runs_root).resolve() / "mlartifacts").as_uri()


def open_store(runs_root: Path) -> MlflowClient:
    """A client of the store of `runs_root`, which is made if it is missing.

    Imports mlflow, which takes a second or two, with telemetry off.

    Raises:
        UnusableStore: MLflow cannot read what is there.
        Exception: any of MLflow's, when the store is locked or cannot be written.
    """
    path, uri = store_path(runs_root), store_uri(runs_root)
    _import_quietly()
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
    """What an error of MLflow's says, without the SQL below it."""
    return str(error).strip().split("\n")[0].rstrip(".")


def way_out(error: Exception) -> str:
    """What helps when the store fails with `error`, as a part of a sentence."""
    if isinstance(error, UnusableStore):
        return "move that file away (`seapeft report RUN --mlflow` logs a run into a new one)"
    return "free the store or make it writable"


def _import_quietly() -> None:
    os.environ.update(_QUIET)
    import mlflow  # noqa: F401

    # MLflow logs a traceback for what the caller reports in one sentence
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _make_store(path: Path) -> None:
    """Make a store beside `path` and put it there whole, unless another run was faster.

    MLflow takes seconds for it and commits on the way: what an interrupt leaves can never be used again, and two
    runs that do it in one file spoil each other's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # MLflow keeps its connection to the file, which hinders the removal on Windows
    with tempfile.TemporaryDirectory(
        prefix=f".{path.name}.", suffix=".tmp", dir=path.parent, ignore_cleanup_errors=True
    ) as folder:
        begun, whole = Path(folder) / "begun.db", Path(folder) / "whole.db"
        _client(f"sqlite:///{begun.as_posix()}")
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
    """The id of the one experiment of the store, which is made if it is missing.

    Raises:
        UnusableStore: the store was made for another folder, so that artifacts would land there.
    """
    from mlflow.exceptions import MlflowException

    expected = artifacts_uri(runs_root)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        try:
            # without the kind, the UI opens on its pages for language models
            tags = {"mlflow.experimentKind": "custom_model_development"}
            return str(client.create_experiment(EXPERIMENT, artifact_location=expected, tags=tags))
        except MlflowException:
            experiment = client.get_experiment_by_name(EXPERIMENT)  # another run made it just now
            if experiment is None:
                raise
    if experiment.artifact_location != expected:
        raise UnusableStore(f"it keeps its artifacts in {experiment.artifact_location}, so the runs folder was moved")
    return str(experiment.experiment_id)


def check_writable(runs_root: Path, seconds: float) -> None:
    """Take the write lock of the store for a moment, waiting at most `seconds` for it; a store that is yet to be made is fine.

    MLflow itself waits 20 seconds for a locked store in every call, and retries for 100 seconds to open a
    broken one: too long for a training run to stand still.

    Raises:
        OSError, sqlite3.OperationalError: the store is locked or unwritable.
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


def ui_command(runs_root: Path, port: int) -> list[str]:
    """The command of the stock MLflow UI over the store of `runs_root`, on 127.0.0.1."""
    return [
        *(sys.executable, "-m", "mlflow", "ui"),
        *("--backend-store-uri", store_uri(runs_root)),
        *("--default-artifact-root", artifacts_uri(runs_root)),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--uvicorn-opts", "--log-level warning"),
    ]


def ui_environment() -> dict[str, str]:
    """The environment of that command: telemetry off, no chatter, and no setting of another MLflow leaks
    in."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    return {**own, **_QUIET, "PYTHONWARNINGS": "ignore"}


def ui_url(runs_root: Path, port: int, run_id: str | None = None) -> str:
    """Address of the list of runs, or of one run's charts, in the UI's pages for model training.

    Raises:
        UsageError: no run has been logged under `runs_root`.
    """
    experiment = _experiment_in(store_path(runs_root))
    if experiment is None:
        raise UsageError(
            f"No run is logged in {runs_root}: run `seapeft adapt` first, name another runs folder, or log a run that lies there "
            "with `seapeft report RUN --mlflow`."
        )
    page = f"/{run_id}/model-metrics" if run_id is not None else ""
    return f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs{page}?workflowType=machine_learning"


def _experiment_in(store: Path) -> int | None:
    """Asks sqlite itself: MLflow would take seconds to be imported."""
    if not store.is_file():
        return None
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(store)) as connection:
        rows = connection.execute("SELECT experiment_id FROM experiments WHERE name = ?", (EXPERIMENT,)).fetchall()
        return rows[0][0] if rows else None
    return None


def serve_ui(runs_root: Path, port: int) -> int:
    """Run the MLflow UI until it is interrupted; returns its exit status.

    Raises:
        UsageError: no run has been logged under `runs_root`.
    """
    ui_url(runs_root, port)
    # a group of its own, because MLflow starts a server process that must not outlive this one
    process = subprocess.Popen(ui_command(runs_root, port), env=ui_environment(), cwd=runs_root, start_new_session=True)
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, previous)
        _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    if os.name == "nt":
        process.terminate()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    process.wait()
