"""`torchrun -m sea_peft adapt`, started for real: one run, one voice, and what one process
would have left.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from toys import TINY, install

from sea_peft.artefacts.trace import read_trace
from sea_peft.loop import events

pytestmark = pytest.mark.slow
MODULE = ["-m", "sea_peft"]


@pytest.fixture(autouse=True)
def installed(weights: Path, own_home: None) -> None:
    """The weights are known by the name that a run has for them, so that it is resumed without
    them being typed again.
    """
    install(weights)


def torchrun(processes: int, *line: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={processes}",
        *MODULE,
        *line,
    ]


def done(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)


def said_by_sea_peft(stderr: str) -> list[str]:
    """What is left of stderr without torchrun's own lines about a process that failed: a
    warning or two, a table and a traceback.
    """
    ours = re.split(r"^Traceback \(most recent call last\):$", stderr, maxsplit=1, flags=re.M)[0]
    return [
        line
        for line in ours.splitlines()
        if line.strip() and not re.match(r"^([EWI]\d{4} |\*+$|Setting OMP_NUM)", line)
    ]


def decided(folder: Path) -> list[tuple[object, ...]]:
    trace = read_trace(folder / "trace.jsonl")
    return [
        (e.cycle, e.active, e.probes, e.final) for e in trace if isinstance(e, events.Allocated)
    ]


def dice(folder: Path) -> dict[str, float]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return {arm: result["dice"][arm] for arm in ("unadapted", "head_only", "adapted")}


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_one_two_and_three_processes_decide_the_same(tmp_path: Path, toy: Path) -> None:
    """With three, one of them has no crop of a step."""
    line = ["adapt", str(toy), "--weights", "tiny", *TINY, "--json", "-q"]
    plain = done([sys.executable, *MODULE, *line, "--out", "plain"])
    assert plain.returncode == 0, plain.stderr
    for processes in (1, 2, 3):
        out = tmp_path / f"of-{processes}"
        run = done(torchrun(processes, *line, "--out", out.name))
        assert run.returncode == 0, run.stderr
        assert json.loads(run.stdout)["status"] == "done", (
            "one document, by the first process alone"
        )
        assert not said_by_sea_peft(run.stderr)
        assert decided(out) == decided(tmp_path / "plain")
        assert dice(out) == pytest.approx(dice(tmp_path / "plain"), abs=0.005)
        assert names(out) == names(tmp_path / "plain")
    adapters = [
        tmp_path / out / "adapter" / "adapter_model.safetensors" for out in ("plain", "of-1")
    ]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_a_refusal_is_one_sentence(tmp_path: Path, toy: Path, adapter: Path) -> None:
    lines = {
        "50 shots were asked for": ["adapt", str(toy), "--weights", "tiny", *TINY, "--shots", "50"],
        "No such option: --shot": ["adapt", "--shot"],
        "seapeft predict does not share its work out": [
            "predict",
            str(adapter),
            str(toy),
            "--out",
            "masks",
        ],
        "adapt --dry-run does not share its work out": ["adapt", str(toy), "--dry-run"],
    }
    for expected, line in lines.items():
        run = done(torchrun(2, *line))
        assert run.returncode != 0
        said = said_by_sea_peft(run.stderr)
        assert expected in "\n".join(said)
        assert sum(expected in one for one in said) == 1, run.stderr
    assert not (tmp_path / "masks").exists()


def _process_of(rank: int, agent: int) -> int:
    """The process that torchrun has started as `rank`."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == agent and f"\0RANK={rank}\0" in (entry / "environ").read_text():
                return int(entry.name)
    raise AssertionError(f"there is no process {rank}")


def _killed(rank: int, command: list[str], when: Path) -> str:
    """Run a command until a file is written, kill one of its processes then, and return what
    was said on stderr.
    """
    before = when.stat().st_mtime_ns if when.exists() else 0
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not (when.exists() and when.stat().st_mtime_ns > before):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(_process_of(rank, running.pid), signal.SIGKILL)
    began = time.monotonic()
    _, stderr = running.communicate(timeout=300)
    assert running.returncode != 0
    assert time.monotonic() - began < 90, "nobody waits for the one that is gone"
    return stderr


@pytest.mark.skipif(
    not Path("/proc/self/environ").exists(),
    reason="this system does not show the processes' environments",
)
def test_a_killed_process_ends_the_run_in_one_sentence_and_it_goes_on_with_any_number(
    tmp_path: Path, toy: Path
) -> None:
    """The first of three is killed, then the second of two, and one alone brings it to its end."""
    line = ["adapt", str(toy), "--weights", "tiny", *TINY, "--steps", "40", "--no-mlflow"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert done([sys.executable, *MODULE, *line, "--out", whole.name]).returncode == 0
    resume = ["adapt", "--resume", broken.name]
    checkpoint = broken / "checkpoint" / "state.pt"
    for rank, command in ((0, torchrun(3, *line, "--out", broken.name)), (1, torchrun(2, *resume))):
        stderr = _killed(rank, command, checkpoint)
        told = [one for one in said_by_sea_peft(stderr) if "--resume" in one]
        assert len(told) == 1, stderr
        assert f"`seapeft adapt --resume {broken.name}" in told[0]
        assert not (broken / "result.json").exists()
    assert done([sys.executable, *MODULE, *resume]).returncode == 0
    assert decided(broken) == decided(whole)
    assert dice(broken) == pytest.approx(dice(whole), abs=0.005)
    assert names(broken) == names(whole)
