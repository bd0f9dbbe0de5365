"""MLflow as a view of the run: one run per adaptation, logged as it goes, and rebuilt from the trace at any
time.

The trace is the truth. Whatever happens to the store, a training run goes on: the tracker warns once, keeps
what it could not log, tries again half a minute later, and says at the end how to rebuild what is missing.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_peft.artefacts import store
from sea_peft.artefacts.findings import findings
from sea_peft.artefacts.history import History
from sea_peft.artefacts.metrics import Metric, metrics, params
from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.artefacts.trace import read_trace
from sea_peft.artefacts.view import EVENT_COLUMNS, UNIT_COLUMNS, event_table, unit_table
from sea_peft.loop.events import Event, RunFinished, TrainingStep

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOG = logging.getLogger(__name__)
_SECONDS_BETWEEN = 2.0  # logging takes 0.05 s
_SECONDS_AFTER_FAILURE = 30.0
_TABLES = ("allocation/units.json", "allocation/events.json")
_RUN_TAG = "sea_peft.run"
_MODEL = "sea_peft_adapter"
_BATCH = 500  # MLflow takes at most 1000 metrics in one request


class Tracker:
    """Callback that mirrors the events of one run into MLflow.

    Args:
        runs_root: holds `mlflow.db` and `mlartifacts/`.
        name: name of the run folder; also finds the MLflow run again.
        config: `config.json`; only options that name no path and no case are logged.
        run_id: MLflow run to go on with when a run is resumed.
        past: the events before the resume, from the trace.
        new: the run has just been begun: one of the same name in the store is another, whose folder was removed since.
        warn: told once, in one sentence, when the store does not work.
    """

    def __init__(
        self,
        runs_root: Path,
        name: str,
        *,
        config: Mapping[str, Any] | None = None,
        run_id: str | None = None,
        past: Iterable[Event] = (),
        new: bool = False,
        warn: Callable[[str], None] = _LOG.warning,
    ) -> None:
        self._root = Path(runs_root)
        self._name = name
        self._config = dict(config or {})
        self._warn = warn
        self.failure: str | None = None  # why the store did not work, the first time that it did not
        self.way_out = ""  # what helps against that
        self._events = [event for event in past if not isinstance(event, TrainingStep)]
        self._resumed_id = run_id
        self._new = new
        self._client: MlflowClient | None = None
        self._run_id: str | None = None
        self._sent: set[tuple[str, int]] = set()
        self._next_logging = 0.0
        self._next_drawing = 0.0

    @property
    def run_id(self) -> str | None:
        """The MLflow run, None while the store does not work; goes into the checkpoint and `result.json`."""
        return self._run_id

    def __call__(self, event: Event) -> None:
        if isinstance(event, TrainingStep):
            return
        self._events.append(event)
        if time.monotonic() >= self._next_logging:
            done = self._attempt(self._log)
            self._next_logging = time.monotonic() + (_SECONDS_BETWEEN if done else _SECONDS_AFTER_FAILURE)

    def finish(self, folder: RunFolder, images: Mapping[str, bytes] | None = None) -> None:
        """Log the adapter folder, the report and `images` (file name → PNG), and end the MLflow run well."""

        def end() -> None:
            client, run_id = self._log(drawing=True)
            if folder.adapter.is_dir():
                client.log_artifacts(run_id, str(folder.adapter), "adapter")
                self._register(client, run_id)
            if folder.report.is_file():
                client.log_artifact(run_id, str(folder.report))
            self._log_images(client, run_id, images or {})
            if folder.result.is_file():
                result = folder.read_result()
                peak = Metric("memory/peak_bytes", result.peak_memory_bytes, 0)
                self._send(client, run_id, [Metric("time/run", result.seconds.total, 0), peak])
            client.set_terminated(run_id, "FINISHED")

        if not self._attempt(end, patience=20.0):
            self._warn(f"MLflow lacks this run: rebuild it from {folder.path} once the store works.")

    def close(self, status: str = "KILLED") -> None:
        """End the MLflow run of an adaptation that did not finish: `KILLED` (resumable) or `FAILED`."""

        def end() -> None:
            client, run_id = self._log()
            client.set_terminated(run_id, status)

        if self._events:
            self._attempt(end)

    def _attempt(self, action: Callable[[], object], patience: float = 2.0) -> bool:
        """Run `action` on a store that is not locked; a failure of any kind is a warning, once, and never
        more."""
        try:
            store.check_writable(self._root, patience)
            action()
        except Exception as error:
            if self.failure is None:
                self.failure = f"MLflow cannot log into {store.store_path(self._root)} ({store.first_line(error)})"
                self.way_out = store.way_out(error)
                then = "" if isinstance(error, store.UnusableStore) else ": what is missing follows then"
                self._warn(f"{self.failure}: the run goes on and its trace is complete; {self.way_out}{then}.")
            return False
        return True

    def _log(self, drawing: bool = False) -> tuple[MlflowClient, str]:
        """Send whatever is known and not yet there."""
        history = History.of(self._events)
        if self._client is None:
            self._client = store.open_store(self._root)
        if self._run_id is None:
            self._run_id = self._begin(self._client, history)
        client, run_id = self._client, self._run_id
        self._send(client, run_id, metrics(history))
        for name, columns, rows in zip(
            _TABLES, (UNIT_COLUMNS, EVENT_COLUMNS), (unit_table(history), event_table(history)), strict=True
        ):
            # the whole table each time: `log_table` would append the rows of a resumed run a second time
            client.log_text(run_id, json.dumps({"columns": columns, "data": rows}), name)
        self._draw(client, run_id, history, drawing)
        if history.finished is not None:
            found = findings(history)
            client.set_tag(run_id, "mlflow.note.content", "\n\n".join([f"**{found.headline}**", *found.verdict]))
        return client, run_id

    def _begin(self, client: MlflowClient, history: History) -> str:
        """Find the run of this name or make it, and see what it already holds."""
        experiment = store.experiment_id(client, self._root)
        found = self._find(client, experiment)
        if found is None:
            tags = {
                _RUN_TAG: self._name,
                # MLflow would fill these with the login name and the path of the script
                "mlflow.user": "sea_peft",
                "mlflow.source.name": "seapeft adapt",
                "mlflow.source.type": "LOCAL",
                "mlflow.loggedArtifacts": json.dumps([{"path": path, "type": "table"} for path in _TABLES]),
            }
            found = str(client.create_run(experiment, tags=tags, run_name=self._name).info.run_id)
        else:
            client.update_run(found, status="RUNNING")
        data = client.get_run(found).data
        for key in data.metrics:
            self._sent.update((key, point.step) for point in client.get_metric_history(found, key))
        for key, value in params(history, self._config).items():
            if key not in data.params:
                client.log_param(found, key, value[:6000])
        return found

    def _find(self, client: MlflowClient, experiment: str) -> str | None:
        from mlflow.exceptions import MlflowException

        if self._new:
            return None
        if self._resumed_id is not None:
            try:
                if client.get_run(self._resumed_id).info.lifecycle_stage == "active":
                    return self._resumed_id
            except MlflowException:
                pass  # the store was made anew since: look for the name, or start afresh
        runs = client.search_runs([experiment], f"tags.`{_RUN_TAG}` = '{self._name}'", max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def _send(self, client: MlflowClient, run_id: str, points: list[Metric]) -> None:
        """Log the points that MLflow has not got yet."""
        from mlflow import entities

        new = [point for point in points if (point.key, point.step) not in self._sent]
        now = int(time.time() * 1000)
        for first in range(0, len(new), _BATCH):
            batch = new[first : first + _BATCH]
            client.log_batch(run_id, [entities.Metric(p.key, float(p.value), now, p.step) for p in batch])
            self._sent.update((point.key, point.step) for point in batch)

    def _draw(self, client: MlflowClient, run_id: str, history: History, now: bool) -> None:
        """Log the figures, but while the run goes on spend at most about 3% of the time on them."""
        from sea_peft.artefacts import figures

        start = time.monotonic()
        if not history.allocations or (start < self._next_drawing and not now):
            return
        for name, figure in figures.FIGURES.items():
            client.log_figure(run_id, figure(history), f"figures/{name}.png", save_kwargs={"dpi": 110})
        end = time.monotonic()
        self._next_drawing = end + 30 * (end - start)

    def _log_images(self, client: MlflowClient, run_id: str, images: Mapping[str, bytes]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, data in images.items():
                path = Path(folder) / name
                path.write_bytes(data)
                client.log_artifact(run_id, str(path), "images")

    def _register(self, client: MlflowClient, run_id: str) -> None:
        """A version in the model registry that points at the adapter folder: two plain files, nothing
        pickled."""
        from mlflow.exceptions import MlflowException

        try:
            client.create_registered_model(_MODEL, description="Adapter folders, as `seapeft predict` takes them.")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        if not client.search_model_versions(f"run_id = '{run_id}'"):
            client.create_model_version(_MODEL, f"runs:/{run_id}/adapter", run_id, tags={_RUN_TAG: self._name})


def rebuild(run_folder: RunFolder, runs_root: Path | None = None, images: Mapping[str, bytes] | None = None) -> str:
    """Make the MLflow run of a run folder again from its trace, config, result and adapter, or complete the
    one there.

    Args:
        run_folder: a run, finished or not.
        runs_root: holds the store; by default the folder that holds the run.
        images: file name → PNG, to be logged with a finished run.

    Returns:
        The id of the MLflow run.

    Raises:
        UsageError: the folder's files cannot be read.
        DeviceError: the store cannot be written.
    """
    from sea_peft.errors import DeviceError

    events = read_trace(run_folder.trace)
    result_id = run_folder.read_result().mlflow_run_id if run_folder.result.is_file() else None
    tracker = Tracker(
        runs_root or run_folder.root,
        run_folder.name,
        config=run_folder.read_config() if run_folder.config.is_file() else {},
        run_id=result_id,
        past=events,
        warn=_LOG.info,  # raised below
    )
    if isinstance(events[-1], RunFinished):
        tracker.finish(run_folder, images)
    else:
        tracker.close()
    if tracker.failure is not None or tracker.run_id is None:
        raise DeviceError(f"{tracker.failure}: {tracker.way_out}, and rebuild the run then.")
    return tracker.run_id
