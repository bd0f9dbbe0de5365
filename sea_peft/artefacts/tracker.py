"""MLflow as a view of the run, made from the run folder at any time, and updated at the end of each
cycle while the run continues.

The trace is the truth, and a training run continues whatever happens to the store. The user is
warned once; the next cycle tries again; and the last message says how to rebuild what is missing.
"""

from __future__ import annotations

import datetime
import json
import platform
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sea_peft import atomic
from sea_peft.artefacts import store
from sea_peft.artefacts.findings import findings
from sea_peft.artefacts.history import History
from sea_peft.artefacts.metrics import Metric, metrics, params
from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.artefacts.spans import log_spans
from sea_peft.artefacts.trace import read_trace
from sea_peft.artefacts.view import UNIT_COLUMNS, unit_table
from sea_peft.artefacts.words import markdown
from sea_peft.errors import StoreError
from sea_peft.loop.events import Allocated, Event, RunStarted

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_TABLE = "allocation/units.json"
_RUN_TAG = "sea_peft.run"
_MODEL = "sea_peft_adapter"
_LOADER = "sea_peft.jobs.pyfunc"  # by name: imports must not run from artefacts to jobs
_BATCH = 500  # MLflow takes at most 1000 metrics in one request


class Tracker:
    """Callback that keeps the MLflow run of one run folder up to date with the last complete cycle.

    Args:
        folder: the run; its trace holds each event before this is called with it.
        warn: called once, with one sentence, if the store does not work.
    """

    def __init__(self, folder: RunFolder, warn: Callable[[str], None]) -> None:
        self._folder = folder
        self._warn = warn
        self._failed = False
        self.run_id: str | None = None  # the MLflow run, None while the store does not work

    def __call__(self, event: Event) -> None:
        if isinstance(event, (RunStarted, Allocated)):
            self._rebuild("RUNNING")

    def finish(self, images: Mapping[str, bytes]) -> None:
        """Log the result of the run, its adapter, report and `images` (file name → PNG)."""
        if not self._rebuild("FINISHED", images, patience=20.0):
            self._warn(
                f"MLflow lacks this run: rebuild it from {self._folder.path} once the store works."
            )

    def close(self, status: str) -> None:
        """End the MLflow run of an adaptation that did not finish: `KILLED` (resumable) or
        `FAILED`.
        """
        if self._folder.trace.is_file() and self._folder.trace.stat().st_size:
            self._rebuild(status)

    def _rebuild(
        self, status: str, images: Mapping[str, bytes] | None = None, patience: float = 2.0
    ) -> bool:
        try:
            self.run_id = rebuild(self._folder, images=images, status=status, patience=patience)
        except StoreError as error:
            if not self._failed:
                self._failed = True
                self._warn(f"{str(error).rstrip('.')}. The run goes on, and its trace is complete.")
            return False
        return True


def rebuild(
    run_folder: RunFolder,
    runs_root: Path | None = None,
    images: Mapping[str, bytes] | None = None,
    status: str | None = None,
    patience: float = 20.0,
) -> str:
    """Make or complete the MLflow run of a run folder, from its trace, config, result and adapter.

    Args:
        run_folder: a run, finished or not.
        runs_root: holds the store; by default the folder that holds the run.
        images: file name → PNG, to be logged with a finished run.
        status: MLflow's word for its state; by default `FINISHED`, or `KILLED` if the trace has no
            end.
        patience: seconds to wait for a locked store.

    Returns:
        The id of the MLflow run.

    Raises:
        UsageError: the folder's files cannot be read.
        StoreError: the store cannot be written.
    """
    root = runs_root or run_folder.root
    history = History(read_trace(run_folder.trace))
    config = run_folder.read_config().flat() if run_folder.config.is_file() else {}
    status = status or ("FINISHED" if history.finished is not None else "KILLED")
    try:
        store.check_writable(root, patience)
        return _View(root, run_folder, config, history).make(status, images or {})
    except Exception as error:  # whatever MLflow and its database raise
        raise StoreError(
            f"MLflow cannot log into {store.store_path(root)} ({store.first_line(error)}):"
            f" {store.way_out(error)}, and rebuild the run then."
        ) from error


class _View:
    """The MLflow run of a history, and the files beside it. Writing it again does not duplicate
    anything.
    """

    def __init__(
        self, root: Path, folder: RunFolder, config: Mapping[str, object], history: History
    ) -> None:
        self._root, self._folder, self._config, self._history = root, folder, config, history
        self._client: MlflowClient = store.open_store(root)
        # runs of earlier versions are identified by the name of their folder alone
        self._key = re.sub(r"[^\w.-]", "-", str(config.get("id", folder.name)))
        self._run = self._find(store.experiment_id(self._client, root))
        self._id: str = self._run.info.run_id
        self._artifacts = store.artifacts(root, self._run)

    def make(self, status: str, images: Mapping[str, bytes]) -> str:
        from mlflow.tracing.client import TracingClient

        ended = status != "RUNNING"
        self._params()
        self._metrics()
        table = {"columns": UNIT_COLUMNS, "data": unit_table(self._history)}
        self._write(_TABLE, json.dumps(table).encode())
        lasted = log_spans(
            TracingClient(store.store_uri(self._root)),
            self._run.info.experiment_id,
            self._id,
            self._run.info.start_time,
            self._folder.title,
            self._history,
            status,
        )
        if ended:
            self._figures()
        if self._history.finished is not None:
            found = findings(self._history)
            note = "\n\n".join([f"**{markdown(found.headline)}**", *map(markdown, found.verdict)])
            self._client.set_tag(self._id, "mlflow.note.content", note)
        if status == "FINISHED":
            self._shipped(images)
        if ended:
            self._client.set_terminated(
                self._id,
                status,
                # a copied folder has lost the times of its files
                end_time=max(_milliseconds(self._folder.trace), self._run.info.start_time + lasted),
            )
        else:
            self._client.update_run(self._id, status=status)
        return self._id

    def _find(self, experiment: str) -> Run:
        """The run with this key, or a new one."""
        runs = self._client.search_runs(
            [experiment], f"tags.`{_RUN_TAG}` = '{self._key}'", max_results=1
        )
        if runs:
            return runs[0]
        tags = {
            _RUN_TAG: self._key,
            # MLflow would fill these with the login name and the path of the script
            "mlflow.user": "sea_peft",
            "mlflow.source.name": "seapeft adapt",
            "mlflow.source.type": "LOCAL",
            "mlflow.loggedArtifacts": json.dumps([{"path": _TABLE, "type": "table"}]),
        }
        began = _milliseconds(
            self._folder.config if self._folder.config.is_file() else self._folder.trace
        )
        return self._client.create_run(
            experiment, start_time=began, tags=tags, run_name=self._folder.title
        )

    def _params(self) -> None:
        for key, value in params(self._history, self._config).items():
            if key not in self._run.data.params:
                self._client.log_param(self._id, key, value)

    def _metrics(self) -> None:
        """Log the points that MLflow does not have yet."""
        from mlflow import entities

        points = metrics(self._history, self._config)
        if self._folder.result.is_file():
            result = self._folder.read_result()
            points.append(Metric("time/run", result.seconds.total, 0))
            points.append(Metric("memory/peak_bytes", result.peak_memory_bytes, 0))
        there = {
            (key, point.step)
            for key in self._run.data.metrics
            for point in self._client.get_metric_history(self._id, key)
        }
        now = int(time.time() * 1000)
        new = [
            entities.Metric(p.key, float(p.value), now, p.step)
            for p in points
            if (p.key, p.step) not in there
        ]
        for first in range(0, len(new), _BATCH):
            self._client.log_batch(self._id, new[first : first + _BATCH])

    def _figures(self) -> None:
        from sea_peft.artefacts import figures
        from sea_peft.artefacts.plots import png

        if self._history.allocations:
            for name, figure in figures.FIGURES.items():
                self._write(f"figures/{name}.png", png(figure(self._history)))

    def _shipped(self, images: Mapping[str, bytes]) -> None:
        """Log adapter, report and pictures, and register a version that points at the adapter
        folder: plain files, nothing pickled.
        """
        for name, data in images.items():
            self._write(f"images/{name}", data)
        if self._folder.report.is_file():
            self._write(self._folder.report.name, self._folder.report.read_bytes())
        if self._folder.adapter.is_dir():
            shutil.copytree(self._folder.adapter, self._artifacts / "adapter", dirs_exist_ok=True)
            self._write("adapter/MLmodel", self._flavour().encode())
            self._register()

    def _flavour(self) -> str:
        """The file that tells MLflow how to load the adapter: by a function of this package,
        without pickles.
        """
        from mlflow.models import Model, ModelSignature
        from mlflow.types import ColSpec, Schema

        signature = ModelSignature(
            inputs=Schema([ColSpec("string", "scan"), ColSpec("string", "out")])
        )
        model = Model(artifact_path="adapter", run_id=self._id, signature=signature)
        model.utc_time_created = str(
            datetime.datetime.fromtimestamp(self._run.info.start_time / 1000, datetime.timezone.utc)
        )
        model.add_flavor(
            "python_function", loader_module=_LOADER, python_version=platform.python_version()
        )
        return str(model.to_yaml())

    def _register(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(
                _MODEL, description="Adapter folders, as `seapeft predict` takes them."
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        if not self._client.search_model_versions(f"run_id = '{self._id}'"):
            self._client.create_model_version(
                _MODEL, f"runs:/{self._id}/adapter", self._id, tags={_RUN_TAG: self._key}
            )

    def _write(self, name: str, data: bytes) -> None:
        path = self._artifacts / name
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(path, data)


def _milliseconds(path: Path) -> int:
    """When a file was written, in MLflow's unit."""
    return int(path.stat().st_mtime * 1000)
