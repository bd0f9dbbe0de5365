from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from sea_peft.artefacts import store


def test_an_interrupt_while_the_store_is_made_leaves_none(tmp_path):
    store.import_quietly()
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

    client = store._client

    def slow(uri: str) -> MlflowClient:
        path.write_text("the other run's")
        return client(uri)

    monkeypatch.setattr(store, "_client", slow)
    store.import_quietly()
    store._make_store(path)
    assert path.read_text() == "the other run's"
    assert list(tmp_path.iterdir()) == [path]


def test_importing_the_artefacts_imports_neither_mlflow_nor_torch():
    folder = Path(store.__file__).parent
    modules = ", ".join(
        f"sea_peft.artefacts.{path.stem}" for path in sorted(folder.glob("[a-z]*.py"))
    )
    code = (
        f"import sys, {modules}; print([m for m in ('mlflow', 'torch', 'matplotlib') if m in"
        " sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
