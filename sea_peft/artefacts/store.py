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
    """A client of the store of `runs_root`; the store is made, or brought up to date, when it is first used.

    Imports mlflow, which takes a second or two, with telemetry off.
    """
    os.environ.update(_QUIET)
    from mlflow import MlflowClient

    # MLflow logs a traceback for what the caller reports in one sentence
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    uri = store_uri(runs_root)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment_id(client: MlflowClient, runs_root: Path) -> str:
    """The id of the one experiment of the store, which is made if it is missing.

    Raises:
        RuntimeError: the store was made for another folder, so that artifacts would land there.
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
        raise RuntimeError(
            f"it keeps its artifacts in {experiment.artifact_location}, so the runs folder was moved; "
            f"remove {store_path(runs_root)}"
        )
    return str(experiment.experiment_id)


def check_writable(runs_root: Path, seconds: float) -> None:
    """Take the write lock of the store for a moment, waiting at most `seconds` for it.

    MLflow itself waits 20 seconds for a locked store in every call, and retries for 100 seconds to open a
    broken one: too long for a training run to stand still.

    Raises:
        OSError, sqlite3.Error: the store is locked, unwritable or not a database.
    """
    path = store_path(runs_root)
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=seconds, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
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
        raise UsageError(f"No run is logged in {runs_root}: run `seapeft adapt` first, or name another runs folder.")
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
