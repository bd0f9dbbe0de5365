from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from example_run import make_events

from sea_peft.artefacts import store
from sea_peft.artefacts.tracker import Tracker
from sea_peft.errors import UsageError


def test_ui_listens_on_this_machine_only_and_over_the_sqlite_store(tmp_path):
    command = store.ui_command(tmp_path, 5001)
    assert command[:4] == [sys.executable, "-m", "mlflow", "ui"]
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert options["--host"] == "127.0.0.1"
    assert options["--port"] == "5001"
    assert options["--backend-store-uri"] == f"sqlite:///{tmp_path.as_posix()}/mlflow.db"
    assert options["--default-artifact-root"] == (tmp_path / "mlartifacts").as_uri()


def test_ui_environment_turns_telemetry_off_and_ignores_other_mlflows(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    environment = store.ui_environment()
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == environment["DO_NOT_TRACK"] == "true"
    assert "MLFLOW_TRACKING_URI" not in environment


def test_ui_without_a_store_says_what_to_do(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"")
    for root in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match="run `seapeft adapt` first"):
            store.serve_ui(root, 5001)
    assert not (tmp_path / "none").exists()


def test_an_interrupt_while_the_store_is_made_leaves_none(tmp_path):
    store._import_quietly()
    from sqlalchemy import Engine, event

    done = 0

    def interrupt(*_: object) -> None:
        nonlocal done
        done += 1
        if done == 200:
            raise KeyboardInterrupt

    event.listen(Engine, "before_cursor_execute", interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            store.open_store(tmp_path)
    finally:
        event.remove(Engine, "before_cursor_execute", interrupt)
    assert list(tmp_path.iterdir()) == []
    client = store.open_store(tmp_path)
    assert store.experiment_id(client, tmp_path) == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_of_two_runs_that_make_the_store_at_once_the_first_wins(tmp_path, monkeypatch):
    path = store.store_path(tmp_path)

    def slow(uri: str) -> None:
        sqlite3.connect(uri.removeprefix("sqlite:///")).close()
        path.write_text("the other run's")

    monkeypatch.setattr(store, "_client", slow)
    store._make_store(path)
    assert path.read_text() == "the other run's"
    assert list(tmp_path.iterdir()) == [path]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        data: bytes = answer.read()
        return data


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="ends the server by a POSIX signal")
def test_ui_serves_the_run_and_leaves_no_process_behind(tmp_path):
    mirror = Tracker(tmp_path, "a run")
    for event in make_events():
        mirror(event)
    mirror.close()
    port = free_port()
    assert store.ui_url(tmp_path, port).startswith(f"http://127.0.0.1:{port}/#/experiments/1/runs?")
    assert f"/runs/{mirror.run_id}/model-metrics" in store.ui_url(tmp_path, port, mirror.run_id)
    code = f"from sea_peft.artefacts.store import serve_ui; serve_ui({str(tmp_path)!r}, {port})"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as ui:
        try:
            base, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
            while True:
                try:
                    assert get(f"{base}/health") == b"OK"
                    break
                except (urllib.error.URLError, ConnectionError):
                    assert ui.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
            table = get(f"{base}/get-artifact?path=allocation/units.json&run_uuid={mirror.run_id}")
            assert table.startswith(b'{"columns": ["cycle", "unit"')
            assert b'"disable_ui_telemetry":true' in get(f"{base}/ajax-api/3.0/mlflow/ui-telemetry")
        finally:
            ui.send_signal(signal.SIGTERM)
            ui.wait(timeout=60)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            break
        time.sleep(0.2)
    else:
        pytest.fail("the MLflow server is still there")


def test_importing_the_artefacts_imports_neither_mlflow_nor_torch():
    folder = Path(store.__file__).parent
    modules = ", ".join(f"sea_peft.artefacts.{path.stem}" for path in sorted(folder.glob("[a-z]*.py")))
    code = f"import sys, {modules}; print([m for m in ('mlflow', 'torch', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
