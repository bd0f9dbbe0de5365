"""The MLflow view against real sqlite stores; nothing is mocked."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pandas
import pytest
from example_run import CONFIG, make_events, write_run
from mlflow import MlflowClient

from sea_peft import cli
from sea_peft.artefacts import store
from sea_peft.artefacts.history import History
from sea_peft.artefacts.metrics import metrics, params
from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.artefacts.trace import TraceWriter
from sea_peft.artefacts.tracker import Tracker, rebuild
from sea_peft.artefacts.view import UNIT_COLUMNS, unit_table
from sea_peft.errors import StoreError, UsageError
from sea_peft.jobs import doctor
from sea_peft.loop.events import Allocated, Audited, RunStarted, TrainingStep

EVENTS = [event for event in make_events() if not isinstance(event, TrainingStep)]


def warned(sentence: str) -> None:
    raise AssertionError(sentence)


def follow(folder: RunFolder, events=EVENTS, warn=warned, kept: int = 0) -> Tracker:
    """Write the trace of `folder` event by event, after the first `kept` that it has, with a
    tracker beside it.
    """
    mirror = Tracker(folder, warn)
    with TraceWriter(folder.trace, append=True) as trace:
        trace.truncate(kept)
        for event in events[kept:]:
            trace(event)
            mirror(event)
    return mirror


def logged(root: Path, run_id: str) -> dict[tuple[str, int], list[float]]:
    client = store.open_store(root)
    return {
        (key, point.step): [
            p.value for p in client.get_metric_history(run_id, key) if p.step == point.step
        ]
        for key in client.get_run(run_id).data.metrics
        for point in client.get_metric_history(run_id, key)
    }


def expected(events=EVENTS, config=CONFIG) -> dict[tuple[str, int], list[float]]:
    points = {(p.key, p.step): [pytest.approx(p.value)] for p in metrics(History(events), config)}
    return {**points, ("time/run", 0): [40.0], ("memory/peak_bytes", 0): [1.9e9]}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """One store for most tests: making one takes seconds. Its path has what URIs quote."""
    root = tmp_path_factory.mktemp("mlflow") / "runs of ü #1"
    root.mkdir()
    return root


@pytest.fixture(scope="module")
def run(root) -> tuple[RunFolder, str]:
    folder = write_run(root, EVENTS)
    folder.adapter.mkdir()
    (folder.adapter / "adapter_config.json").write_text("{}")
    folder.write_report("# report")
    mirror = follow(folder)
    mirror.finish({})
    assert mirror.run_id is not None
    return folder, mirror.run_id


def test_the_run_holds_parameters_metrics_and_status(root, run):
    _, run_id = run
    found = store.open_store(root).get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == CONFIG["name"]
    assert found.data.params == params(History(EVENTS), CONFIG)
    assert found.data.tags["mlflow.note.content"].startswith("**The adapter helps")
    assert logged(root, run_id) == expected()


def test_tables_have_the_form_of_log_table(root, run):
    client = store.open_store(root)
    listed = json.loads(client.get_run(run[1]).data.tags["mlflow.loggedArtifacts"])
    rows = unit_table(History(EVENTS))
    assert listed == [{"path": "allocation/units.json", "type": "table"}]
    file = root / "mlartifacts" / run[1] / "artifacts/allocation/units.json"
    assert json.loads(file.read_text()) == {"columns": list(UNIT_COLUMNS), "data": rows}
    table = pandas.read_json(file, orient="split")  # as MLflow's own load_table reads it
    assert list(table.columns) == list(UNIT_COLUMNS)
    assert len(table) == len(rows)


@pytest.mark.filterwarnings(
    "ignore:.*Any type hint:UserWarning"
)  # of MLflow's own, while mlflow.pyfunc is imported
def test_artifacts_are_there_and_the_adapter_is_registered(root, run, monkeypatch):
    monkeypatch.chdir(root)
    client = store.open_store(root)
    names = {
        item.path
        for folder in (None, "adapter", "figures")
        for item in client.list_artifacts(run[1], folder)
    }
    assert names >= {"report.md", "adapter/adapter_config.json", "figures/active_sites.png"}
    (version,) = client.search_model_versions(f"run_id = '{run[1]}'")
    assert version.source == f"runs:/{run[1]}/adapter"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    loaded = mlflow.pyfunc.load_model(f"models:/sea_peft_adapter/{version.version}")
    assert loaded.metadata.flavors["python_function"]["loader_module"] == "sea_peft.jobs.pyfunc"
    assert not [
        path for path in (root / "mlartifacts").rglob("*") if path.suffix in (".pkl", ".pickle")
    ]


def test_nothing_of_a_patient_user_or_path_gets_in(root, run):
    files = [path for path in (root / "mlartifacts").rglob("*") if path.is_file()]
    for path in [root / "mlflow.db", *files]:
        data = path.read_bytes()
        for secret in (
            b"Jane",
            b"/home/someone",
            Path(__file__).name.encode(),
            b"file:",
            *map(bytes, {root.resolve(), Path.cwd()}),
        ):
            assert secret not in data, path
    with sqlite3.connect(root / "mlflow.db") as connection:
        users = connection.execute("SELECT user_id, source_name FROM runs").fetchall()
    connection.close()
    assert set(users) == {("sea_peft", "")}


def test_rebuilding_what_is_complete_changes_nothing(root, run):
    assert rebuild(run[0]) == run[1]
    assert logged(root, run[1]) == expected()


def test_a_resumed_run_goes_on_in_the_same_mlflow_run_without_doubles(root):
    folder = write_run(root, EVENTS)
    first = follow(folder, EVENTS[:9])
    first.close("KILLED")  # killed after the checkpoint of event 6, with the rest already logged
    assert store.open_store(root).get_run(first.run_id).info.status == "KILLED"
    second = follow(folder, EVENTS, kept=6)
    assert store.open_store(root).get_run(first.run_id).info.status == "RUNNING"
    second.finish({})
    assert second.run_id == first.run_id
    assert store.open_store(root).get_run(first.run_id).info.status == "FINISHED"
    assert logged(root, first.run_id) == expected()
    spans = traced(root, first.run_id)
    assert len(set(spans)) == len(spans)
    assert spans == traced(root, rebuild(folder))


def traced(root: Path, run_id: str) -> list[tuple[str, str | None, str]]:
    """The spans of the one trace of a run."""
    client = store.open_store(root)
    (found,) = client.search_traces(locations=["1"], run_id=run_id)
    return [
        (span.span_id, span.parent_id, span.name)
        for span in client.get_trace(found.info.trace_id).data.spans
    ]


def test_the_trace_shows_what_every_cycle_measured_and_decided(root, run):
    client = store.open_store(root)
    trace = client.get_trace(f"tr-{run[1]}")
    assert trace.info.state == "OK"
    seconds = sum(getattr(e, "seconds", 0.0) for e in EVENTS)
    assert trace.info.execution_duration == pytest.approx(1000 * seconds, abs=1)
    # the run's files were written at once here, as a copy's are
    info = client.get_run(run[1]).info
    assert info.end_time - info.start_time >= 1000 * seconds - 1
    spans = {span.span_id: span for span in trace.data.spans}
    audits = [e for e in EVENTS if isinstance(e, Audited)]
    shown = [span for span in spans.values() if span.name == "audited"]
    assert [spans[span.parent_id].name for span in shown] == [
        f"cycle {audit.cycle}" for audit in audits
    ]
    assert [span.outputs["rows"] for span in shown] == json.loads(
        json.dumps([audit.as_dict()["rows"] for audit in audits])
    )
    (final,) = (
        s for s in spans.values() if s.name == "allocated" and spans[s.parent_id].name == "final"
    )
    assert {"unit", "decision", "utility", "reason"} <= final.outputs["rows"][0].keys()
    assert not any("per_case" in (span.outputs or {}) for span in spans.values())


def test_while_a_run_goes_on_mlflow_is_a_cycle_behind_at_most(root):
    folder = write_run(root, EVENTS[:1])
    last = max(
        n for n, event in enumerate(EVENTS) if isinstance(event, Allocated) and not event.final
    )
    mirror = follow(folder, EVENTS[: last + 2])
    assert logged(root, mirror.run_id).keys() == {
        (p.key, p.step) for p in metrics(History(EVENTS[: last + 1]), CONFIG)
    }
    mirror.close("FAILED")
    assert logged(root, mirror.run_id).keys() == {
        (p.key, p.step) for p in metrics(History(EVENTS[: last + 2]), CONFIG)
    }


def test_rebuild_makes_the_run_from_the_folder_alone(root, run, tmp_path):
    run_id = rebuild(run[0], tmp_path)
    assert logged(tmp_path, run_id) == logged(root, run[1])
    ours, theirs = (
        store.open_store(at).get_run(i).data for at, i in ((tmp_path, run_id), (root, run[1]))
    )
    assert ours.params == theirs.params
    assert ours.tags["mlflow.note.content"] == theirs.tags["mlflow.note.content"]
    old, new = (
        at / "mlartifacts" / i / "artifacts/allocation/units.json"
        for at, i in ((root, run[1]), (tmp_path, run_id))
    )
    assert old.read_text() == new.read_text()


def test_a_runs_folder_can_be_moved_and_its_artifacts_still_open(root, run, tmp_path, monkeypatch):
    before, moved = tmp_path / "before", tmp_path / "moved"
    run_id = rebuild(run[0], before)
    before.rename(moved)
    monkeypatch.chdir(moved)  # where `seapeft ui` runs MLflow
    client = MlflowClient(
        f"sqlite:///{moved}/mlflow.db"
    )  # not relative: MLflow keeps one connection per address
    assert {item.path for item in client.list_artifacts(run_id)} >= {
        "adapter",
        "allocation",
        "figures",
        "report.md",
    }
    assert Path(client.download_artifacts(run_id, "report.md")).read_text() == "# report"
    assert len(client.load_table("1", "allocation/units.json", [run_id])) == len(
        unit_table(History(EVENTS))
    )
    monkeypatch.chdir(tmp_path)
    assert rebuild(run[0], moved) == run_id
    assert not before.exists()
    assert logged(moved, run_id) == expected()


def test_a_store_of_an_earlier_version_forgets_where_it_lay(root, run, tmp_path):
    run_id = rebuild(run[0], tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as old:
        old.execute(
            "UPDATE experiments SET artifact_location = 'file:///home/Jane/runs/mlartifacts' WHERE"
            " name = 'sea_peft'"
        )
        old.execute(
            "UPDATE runs SET artifact_uri = 'file:///home/Jane/runs/mlartifacts/' || run_uuid ||"
            " '/artifacts'"
        )
    old.close()
    assert rebuild(run[0], tmp_path) == run_id
    assert b"Jane" not in (tmp_path / "mlflow.db").read_bytes()
    assert logged(tmp_path, run_id) == expected()


def test_a_store_that_names_another_place_for_artifacts_is_not_followed(root, run, tmp_path):
    rebuild(run[0], tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as foreign:
        foreign.execute("UPDATE runs SET artifact_uri = '../elsewhere'")
    foreign.close()
    with pytest.raises(StoreError, match=r"keeps artifacts in \.\./elsewhere"):
        rebuild(run[0], tmp_path)
    assert not (tmp_path.parent / "elsewhere").exists()


def test_a_new_run_in_the_place_of_one_whose_folder_was_removed_is_a_run_of_its_own(root):
    folder = write_run(root, EVENTS)
    before = rebuild(folder)
    shutil.rmtree(folder.path)
    again = write_run(root, EVENTS)
    assert again.path == folder.path
    assert rebuild(again) != before
    assert logged(root, before) == expected()


def test_rebuild_of_a_run_that_was_killed(root):
    folder = write_run(root, EVENTS[:8])
    run_id = rebuild(folder)
    assert store.open_store(root).get_run(run_id).info.status == "KILLED"
    assert len(logged(root, run_id)) == len(metrics(History(EVENTS[:8]), CONFIG))


def test_the_command_rebuilds_a_run_that_the_store_lost(tmp_path, capsys):
    folder = write_run(tmp_path, EVENTS)
    assert cli.run(["report", str(folder.path), "--mlflow", "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["page"] == str(folder.page)
    assert logged(tmp_path, found["mlflow_run_id"]) == expected()
    assert f"seapeft ui --runs {tmp_path}" in told.err
    assert cli.run(["report", str(folder.path), "--mlflow", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mlflow_run_id"] == found["mlflow_run_id"]


def test_the_command_says_why_a_store_cannot_be_written(tmp_path, capsys):
    folder = write_run(tmp_path, EVENTS)
    (tmp_path / "mlflow.db").write_text("x" * 5000)
    assert cli.run(["report", str(folder.path), "--mlflow"]) == StoreError.exit_code
    told = capsys.readouterr().err
    assert "MLflow cannot log into" in told
    assert "rebuild the run then" in told
    assert folder.page.is_file()


def test_a_locked_store_delays_nothing_and_is_caught_up_with(root):
    folder = write_run(root, EVENTS)
    sentences: list[str] = []
    lock = sqlite3.connect(root / "mlflow.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    mirror = follow(folder, EVENTS, sentences.append)
    assert time.monotonic() - began < 20 * sum(
        isinstance(e, RunStarted | Allocated) for e in EVENTS
    )
    lock.execute("ROLLBACK")
    lock.close()
    assert mirror.run_id is None
    (sentence,) = sentences
    assert "database is locked" in sentence
    assert "The run goes on" in sentence
    mirror.finish({})
    assert len(sentences) == 1
    assert logged(root, mirror.run_id) == expected()


@pytest.mark.parametrize("dead", ["folder", "text"])
def test_a_dead_store_is_one_warning_and_a_way_out(tmp_path, dead):
    folder = write_run(tmp_path, EVENTS)
    (
        (tmp_path / "mlflow.db").mkdir()
        if dead == "folder"
        else (tmp_path / "mlflow.db").write_text("x" * 5000)
    )
    sentences: list[str] = []
    began = time.monotonic()
    mirror = follow(folder, warn=sentences.append)
    mirror.finish({})
    assert time.monotonic() - began < 60  # MLflow itself tries again for minutes
    assert mirror.run_id is None
    assert len(sentences) == 2
    assert "MLflow cannot log into" in sentences[0]
    assert f"rebuild it from {folder.path}" in sentences[1]
    with pytest.raises(StoreError, match="MLflow cannot log into"):
        rebuild(folder)


def test_a_store_that_was_spoilt_is_to_be_moved_away(tmp_path, root, run):
    with sqlite3.connect(root / "mlflow.db") as whole:
        whole.execute("VACUUM INTO ?", (str(tmp_path / "mlflow.db"),))
    with sqlite3.connect(tmp_path / "mlflow.db") as spoilt:
        spoilt.executescript(
            "DELETE FROM alembic_version; DROP TABLE registered_model_aliases"
        )  # as an interrupt leaves it
    with pytest.raises(
        StoreError, match=r"move that file away .*, and rebuild the run then"
    ) as refused:
        rebuild(run[0], tmp_path)
    assert "free the store" not in str(refused.value)
    (found,) = doctor._store(tmp_path)
    assert found.state == "problem"
    assert "move that file away" in found.found
    (tmp_path / "mlflow.db").rename(tmp_path / "spoilt.db")
    (found,) = doctor._store(tmp_path)
    assert found.state == "ok"


def test_a_path_that_is_no_uri_is_refused_up_front(tmp_path):
    with pytest.raises(UsageError, match="without % and"):
        store.store_uri(tmp_path / "50%")


def test_nothing_before_the_run_has_started(tmp_path):
    folder = RunFolder.create(tmp_path, "x")
    TraceWriter(folder.trace).close()
    Tracker(folder, warned).close("KILLED")
    assert list(tmp_path.iterdir()) == [folder.path]
    assert isinstance(EVENTS[0], RunStarted)


_OFFLINE = """
import sys

def refuse(event, arguments):
    if event in ("socket.getaddrinfo", "socket.connect"):
        raise SystemExit(f"tried {event} {arguments}")

sys.addaudithook(refuse)
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import test_tracker
from example_run import write_run
root = Path(sys.argv[1])
folder = write_run(root, test_tracker.EVENTS)
test_tracker.follow(folder).finish({})
from mlflow.telemetry.utils import is_telemetry_disabled
assert is_telemetry_disabled()
"""


def test_no_connection_is_tried_and_nothing_is_said(tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        _OFFLINE,
        str(tmp_path / "runs"),
        str(Path(__file__).parent),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
    assert not (tmp_path / "mlruns").exists()
