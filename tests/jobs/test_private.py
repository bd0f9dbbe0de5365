"""Nothing leaves the machine: a run with MLflow, a prediction and a report, with every way out
closed and watched.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from sea_peft import cli
from sea_peft.jobs.options import AdaptOptions
from sea_peft.jobs.setup import prepare_run

TINY = [
    "--steps",
    "8",
    "--cycles",
    "1",
    "--patch",
    "16,16,16",
    "--shots",
    "2",
    "--budget",
    "20%",
    "-q",
]


def test_no_connection_is_tried_and_no_name_is_kept(
    toy: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def refuse(*address: object, **_: object) -> None:
        tried.append(address)
        raise OSError("the network is closed in this test")

    for name in [
        name for name in os.environ if name.startswith("MLFLOW_") or name == "DO_NOT_TRACK"
    ]:
        monkeypatch.delenv(name)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    runs, run = tmp_path / "runs", tmp_path / "runs" / "one"
    assert cli.run(["adapt", str(toy), "--weights", str(weights), "--out", str(run), *TINY]) == 0
    assert (
        cli.run(
            [
                "predict",
                str(run),
                str(toy),
                "--out",
                str(tmp_path / "masks"),
                "--weights",
                str(weights),
            ]
        )
        == 0
    )
    assert cli.run(["report", str(run)]) == 0
    assert tried == []
    assert (runs / "mlflow.db").is_file()
    kept = [
        path
        for path in runs.rglob("*")
        if path.is_file() and path.name not in ("cases.json", "config.json")
    ]
    named = re.compile(
        rb"toy_\d|"
        + b"|".join(re.escape(str(path).encode()) for path in (toy.parent, toy.name, tmp_path))
    )
    assert not [path for path in kept if named.search(path.read_bytes())]
    (config,) = runs.rglob("config.json")
    assert config.stat().st_mode & 0o077 == 0
    options = AdaptOptions(data=str(toy), weights=str(weights), budget="20%", shots=2)
    key = prepare_run(options, say=lambda _: None).salt.encode()
    files = [path for path in runs.rglob("*") if path.is_file()]
    assert not [path for path in files if key in path.read_bytes()], (
        "with the key of the hashes names could be tried"
    )
    assert (run / "cases.json").stat().st_mode & 0o077 == 0
