"""A run that is killed with SIGKILL at any moment and resumed ends with the bytes of one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sea_peft.artefacts.trace import read_trace, without_times

KILLS = 20
FLAGS = ["--backbone", "unet", "--steps", "16", "--cycles", "2", "--shots", "3", "--no-mlflow", "-q"]


def start(out: Path, *flags: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sea_peft", "adapt", *flags]
    return subprocess.Popen(command, cwd=out.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()


def result_of(folder: Path) -> tuple[list[object], dict[str, bytes], dict[str, object]]:
    """What must not depend on interruptions: the trace without times, the adapter's bytes, the scores."""
    result = json.loads((folder / "result.json").read_text())
    adapter = {
        name: (folder / "adapter" / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")
    }
    return (
        without_times(read_trace(folder / "trace.jsonl")),
        adapter,
        {k: result[k] for k in ("dice", "units", "budget", "audit")},
    )


@pytest.mark.slow
def test_killed_and_resumed_runs_end_like_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    began = time.monotonic()
    finish(start(whole, *FLAGS, "--out", str(whole)))
    took = time.monotonic() - began
    expected = result_of(whole)

    moments = random.Random(0)
    interrupted = 0
    for attempt in range(KILLS):
        folder = tmp_path / f"killed-{attempt}"
        process = start(folder, *FLAGS, "--out", str(folder))
        time.sleep(moments.uniform(0.2, 1.0) * took)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        if not (folder / "trace.jsonl").exists():  # killed before the run had begun: there is nothing to resume
            continue
        if (folder / "checkpoint").exists() or not (folder / "result.json").exists():
            interrupted += 1
            finish(start(folder, "--resume", str(folder), "-q"))
        assert result_of(folder) == expected
        assert not (folder / "checkpoint").exists()
    assert interrupted >= KILLS // 2
