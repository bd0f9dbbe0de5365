"""`adapt --for FILE`: what a file may say, what is done again and what is not, and what one
that fails costs the others.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from toys import TINY, install

from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.cli import run
from sea_peft.console.many import read_runs
from sea_peft.errors import UsageError
from sea_peft.jobs import launching, many
from sea_peft.jobs.options import AdaptOptions

FILE = """
[runs.organ]
label = "organ"

[runs.spot]
label = ["spot=2"]
seed = 1
"""


@pytest.fixture(autouse=True)
def installed(weights: Path, own_home: None) -> None:
    install(weights)


@pytest.fixture
def line(toy: Path) -> Callable[..., list[str]]:
    """The command, with a file of this text."""

    def written(text: str, *more: str) -> list[str]:
        Path("labels.toml").write_text(text)
        return ["adapt", str(toy), "--weights", "tiny", *TINY, "--for", "labels.toml", *more]

    return written


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs are done one after the other in this process; the names of those that were launched."""
    launched: list[str] = []

    def one_by_one(asked, jobs, told):
        for name, options in asked.items():
            launched.append(name)
            yield name, launching.carry_out(options, functools.partial(told, name))

    monkeypatch.setattr(launching, "side_by_side", one_by_one)
    return launched


def rows(root: str = "runs/labels") -> dict[str, dict[str, str]]:
    with (Path(root) / many.SUMMARY).open(newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def test_flags_are_read_as_they_are_typed(tmp_path: Path) -> None:
    file = tmp_path / "runs.toml"
    file.write_text("""
[runs.site-b]
data = "scans_b"
label = ["liver", "tumour=2,3"]
patch = "32,48,32"
spacing = "1.5"
time-limit = "1h30m"
test = 4
budget = 47000
seed = 3
from = "runs/earlier"

[runs.rest]

[submitit]
mem_gb = 16
""")
    given = AdaptOptions(data="scans", shots=5, labels=("spleen",))
    asked, parameters = read_runs(file, given)
    own = asked["site-b"]
    assert (own.data, own.shots, own.labels) == ("scans_b", 5, ("liver", "tumour=2,3"))
    assert (own.patch, own.spacing, own.time_limit) == ((32, 48, 32), (1.5, 1.5, 1.5), 5400.0)
    assert (own.test, own.budget, own.seed, own.from_run) == (4, "47000", 3, "runs/earlier")
    assert asked["rest"] == AdaptOptions(data="scans", shots=5, labels=("spleen",), name="rest")
    assert parameters == {"mem_gb": 16}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must hold a table [runs.NAME]"),
        ("[liver]\nlabel = 'liver'", "'liver' is neither"),
        ("runs = 3", "must hold a table [runs.NAME]"),
        ("[runs]\nliver = 'liver'", "is no table; write [runs.liver]"),
        ("[runs.'../x']", "letters, digits, _ and -"),
        ("[runs.x]\nlables = 'liver'", "'lables' is no flag that a run can have of its own"),
        ("[runs.x]\nout = 'there'", "'out' is no flag that a run can have of its own"),
        ("[runs.x]\nsteps = '80'", "[runs.x], steps: '80' is not a whole number"),
        ("[runs.x]\nseed = true", "[runs.x], seed: True is not a whole number"),
        ("[runs.x]\nlabel = {liver = 1}", "is not a text; write it in quotes"),
        ("[runs.x]\npatch = '1,2'", "is not a size; write three whole numbers"),
        ("[runs.x]\nbackbone = 'os:system'", "is code, and no file names code"),
        ("[runs.x", "cannot be read (it is not valid TOML"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "runs.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as refused:
        read_runs(file, AdaptOptions())
    assert said in str(refused.value)
    assert str(refused.value).startswith(f"--for {file}")


def test_every_run_is_checked_before_one_begins(line, in_this_process: list[str], capsys) -> None:
    assert run(line(FILE + "[runs.last]\nlabel = 'kidney'")) == 3
    assert "last: " in capsys.readouterr().err
    assert run(line(FILE, "--jobs", "0")) == 2
    assert run(line(FILE, "--cluster", "pbs")) == 2
    assert run(line(FILE, "--name", "mine")) == 2
    assert run(["adapt", "--jobs", "2"]) == 2
    assert not in_this_process
    assert not Path("runs").exists()


def test_a_folder_of_runs_from_the_first_to_its_table(
    line, in_this_process, capsys, monkeypatch
) -> None:
    """One run fails and costs the other nothing; the same command tries it again and leaves the
    other alone; a run that was made with other options is not passed off as what is asked for.
    """
    honest = launching.adapt

    def falls_over(options, *args, **kwargs):
        if options.name == "spot":
            raise MemoryError
        return honest(options, *args, **kwargs)

    monkeypatch.setattr(launching, "adapt", falls_over)
    assert run([*line(FILE, "--no-mlflow"), "--json"]) == 8
    seen = capsys.readouterr()
    document = json.loads(seen.out)
    assert document["status"] == "failed"
    assert {name: (r["status"], r["exit_code"]) for name, r in document["runs"].items()} == {
        "organ": ("done", 0),
        "spot": ("failed", 6),
    }
    assert "warning: spot: Memory ran out" in seen.err
    assert "1 of 2 runs failed" in seen.err
    assert "organ: chosen: " in seen.err, "each line says of which run it is"
    assert rows()["spot"]["error"].startswith("Memory ran out")

    monkeypatch.setattr(launching, "adapt", honest)
    in_this_process.clear()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run(line(FILE, "--no-mlflow")) == 0
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert in_this_process == ["spot"]
    assert max(map(len, shown.splitlines())) <= 80
    assert re.search(r"^organ +3 test cases +[\d.]+ ", shown, re.MULTILINE)
    table = rows()
    assert {name: row["status"] for name, row in table.items()} == {"organ": "done", "spot": "done"}
    for name, row in table.items():
        result = RunFolder(Path("runs/labels") / name).read_result()
        assert float(row["dice_adapted"]) == result.dice.adapted
        assert (int(row["seed"]), row["error"]) == (result.seed, "")

    in_this_process.clear()
    assert run(line(FILE.replace("seed = 1", "seed = 2"))) == 2
    assert "spot was run with seed 1, and 2 is asked for now" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not in_this_process


def test_gpus_are_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [launching.card(place) for place in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    assert [launching.card(place) for place in range(3)] == ["3", "GPU-5", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert launching.card(1) is None


def test_a_cluster_that_is_not_there_is_refused(line, in_this_process, capsys, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert run(line(FILE, "--cluster", "slurm")) == 2
    said = capsys.readouterr().err
    assert "submitit" in said
    assert not Path("runs").exists()


@pytest.mark.slow
def test_killed_and_gone_on_with_the_runs_are_those_that_were_not(line, tmp_path: Path) -> None:
    """Two runs side by side; one process is killed with SIGKILL, then the command itself is
    ended; the same command brings both to their end.
    """
    command = [sys.executable, "-m", "sea_peft", *line(FILE, "--jobs", "2", "--steps", "60")]
    whole = subprocess.run(
        [*command, "--out", "whole"], capture_output=True, text=True, check=False, timeout=900
    )
    assert whole.returncode == 0, whole.stderr

    running = subprocess.Popen(
        [*command, "--out", "broken"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    _wait_for(Path("broken/organ/checkpoint/state.pt"), running)
    os.kill(_process_with("organ", running.pid), signal.SIGKILL)
    _wait_for(Path("broken/spot/checkpoint/state.pt"), running)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=300)
    assert running.returncode == 130, said
    assert "go on from where they stand with the same command" in said

    again = subprocess.run(
        [*command, "--out", "broken"], capture_output=True, text=True, check=False, timeout=900
    )
    assert again.returncode == 0, again.stderr
    for name in ("organ", "spot"):
        adapters = [
            tmp_path / root / name / "adapter" / "adapter_model.safetensors"
            for root in ("whole", "broken")
        ]
        assert adapters[0].read_bytes() == adapters[1].read_bytes()
        assert RunFolder(Path("broken") / name).read_result().mlflow_run_id is not None
    assert {row["status"] for row in rows("broken").values()} == {"done"}
    with contextlib.closing(sqlite3.connect("broken/mlflow.db")) as store:
        assert store.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)] * 2


def _wait_for(file: Path, running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 900
    while not file.exists():
        assert running.poll() is None, running.stderr and running.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _process_with(name: str, parent: int) -> int:
    """The process whose open files lie in the run folder of this name."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent and any(
                os.readlink(link).endswith(f"/{name}/trace.jsonl")
                for link in (entry / "fd").iterdir()
            ):
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError(f"no process has the trace of {name} open")


@pytest.mark.slow
def test_jobs_of_submitit_leave_what_processes_leave(line, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    here = [sys.executable, "-m", "sea_peft", *line(FILE)]
    assert (
        subprocess.run(
            [*here, "--out", "here"], capture_output=True, check=False, timeout=900
        ).returncode
        == 0
    )
    there = subprocess.run(
        [*here, "--cluster", "local", "--out", "there"],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert there.returncode == 0, there.stderr
    for name in ("organ", "spot"):
        adapters = [
            tmp_path / root / name / "adapter" / "adapter_model.safetensors"
            for root in ("here", "there")
        ]
        assert adapters[0].read_bytes() == adapters[1].read_bytes()
    assert (tmp_path / "there" / ".jobs").stat().st_mode & 0o077 == 0
