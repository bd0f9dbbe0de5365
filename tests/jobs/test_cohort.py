"""Cohorts: the next scan read ahead, several processes, and going on where an earlier
prediction stood.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from toys import AFFINE, toy_scan

from sea_peft import atomic, cli
from sea_peft.backbones.typed import Typed
from sea_peft.data import cases
from sea_peft.data.volumes import Volume, write_volume
from sea_peft.errors import UsageError
from sea_peft.jobs.case_results import CaseWriter
from sea_peft.jobs.cohort import CaseStatus
from sea_peft.jobs.predict import predict
from sea_peft.jobs.predictor import Predictor

unix = pytest.mark.skipif(
    os.name == "nt", reason="this system has no signals to end processes with"
)


def large(folder: Path, name: str) -> Path:
    """A scan that takes a second or more: there is time to end a process meanwhile."""
    image, _ = toy_scan(3)
    affine = AFFINE.copy()
    affine[:3, :3] *= 5
    path = folder / f"{name}.nii.gz"
    write_volume(path, Volume(image, affine))
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without_seconds(statuses: list[CaseStatus]) -> list[dict[str, object]]:
    return [{**vars(status), "seconds": None} for status in statuses]


def pid_at(out: Path, case: str) -> int | None:
    """The process that works on a case."""
    return next((int(path.name.split(".")[-2]) for path in out.glob(f".{case}.*.tmp")), None)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(
    adapter: Path, weights: Path, scans: Path, tmp_path: Path
) -> None:
    def run(name: str, **further: object) -> tuple[list[dict[str, object]], list[float]]:
        told: list[float] = []
        statuses = predict(
            adapter,
            [scans],
            Path(name),
            typed=Typed(weights=str(weights)),
            preview=True,
            seg_nrrd=True,
            probabilities=True,
            statistics=Path(name) / "numbers.csv",
            keep=["largest"],
            progress=lambda done, of: told.append(done / of),
            **further,
        )
        return without_seconds(statuses), told

    alone, told_alone = run("alone")
    together, told_together = run("together", jobs=2)
    assert [status["status"] for status in alone] == ["done", "failed", "done"]
    assert together == alone
    assert files_of(tmp_path / "together") == files_of(tmp_path / "alone")
    assert "b.nii.gz" not in files_of(tmp_path / "alone")
    for told in (told_alone, told_together):
        assert max(told) == told[-1] == 1
        assert any(0 < share < 1 for share in told)
    assert run("together", jobs=2, resume=True)[0][0] == alone[0], "nothing was predicted again"


@unix
@pytest.mark.slow
def test_a_killed_process_costs_its_own_case_alone(
    adapter: Path, weights: Path, scans: Path, tmp_path: Path
) -> None:
    large(scans, "d")
    typed, out = Typed(weights=str(weights)), tmp_path / "out"
    killed: list[int] = []

    def kill(_done: float, _of: int) -> None:
        pid = pid_at(out, "d")
        if pid is not None and not killed:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    statuses = {
        s.case: s for s in predict(adapter, [scans], out, typed=typed, jobs=2, progress=kill)
    }
    assert killed
    assert [(case, status.status) for case, status in statuses.items()] == [
        ("a", "done"), ("b", "failed"), ("c", "done"), ("d", "failed"),
    ]  # fmt: skip
    assert "was killed (SIGKILL), as happens when memory runs out" in str(statuses["d"].error)
    assert sorted(files_of(out)) == [
        "a.json",
        "a.nii.gz",
        "c.json",
        "c.nii.gz",
    ], "nothing half-written is left"
    again = {s.case: s for s in predict(adapter, [scans], out, typed=typed, resume=True)}
    assert [status.status for status in again.values()] == ["done", "failed", "done", "done"]
    assert again["a"].seconds == again["c"].seconds == 0


@unix
@pytest.mark.slow
@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ending_the_command_ends_all_of_its_processes(
    adapter: Path, weights: Path, scans: Path, tmp_path: Path, ended_by: signal.Signals
) -> None:
    (scans / "b.nii.gz").unlink()
    for name in ("d", "e"):
        large(scans, name)
    out = tmp_path / "out"
    line = [
        sys.executable,
        "-m",
        "sea_peft",
        "predict",
        adapter,
        scans,
        "--out",
        out,
        "--weights",
        weights,
        "--jobs",
        "2",
    ]
    command = subprocess.Popen(
        [*map(str, line), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    pids = wait_for(lambda: [pid for pid in (pid_at(out, "d"), pid_at(out, "e")) if pid])
    if ended_by == signal.SIGINT:
        os.killpg(command.pid, ended_by)  # as a terminal does
    else:
        command.send_signal(ended_by)
    said, _ = command.communicate(timeout=60)
    if ended_by != signal.SIGKILL:
        assert command.returncode == 130
        assert json.loads(said)["error"].startswith("Interrupted; what is done is kept")
        assert not list(out.glob(".*")), "nothing half-written is left"
    wait_for(lambda: not any(map(is_alive, pids)))
    for name in ("a", "c"):
        assert (out / f"{name}.nii.gz").exists() == (out / f"{name}.json").exists()
    assert cli.run([*map(str, line[3:-2]), "--resume", "-q"]) == 0
    assert sorted(path.name for path in out.glob("*.nii.gz")) == [
        f"{name}.nii.gz" for name in "acde"
    ]
    assert not list(out.glob(".*"))


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_so(
    adapter: Path, weights: Path, scans: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom sea_peft import Typed,"
        f" predict\npredict(Path({str(adapter)!r}), [Path({str(scans)!r})], Path('out'),"
        f" typed=Typed(weights={str(weights)!r}), jobs=2)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 1
    assert 'call predict under `if __name__ == "__main__":`' in done.stderr.strip().splitlines()[-1]


def wait_for(found: Callable[[], object], seconds: float = 120) -> object:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return value


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_next_scan_is_read_while_the_network_works(
    adapter: Path, weights: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network works on a until c has been read, and c is never read before a was."""
    shutil.copy(scans / "a.nii.gz", scans / "b.nii.gz")
    read: list[str] = []
    third = threading.Event()
    real_ready, real_probabilities = CaseWriter.ready, Predictor.probabilities

    def ready(self, case):
        found = real_ready(self, case)
        read.append(case.id)
        third.set() if case.id == "c" else None
        return found

    def probabilities(self, scan, *given):
        seen = list(read)
        if scan.id == "b":
            assert third.wait(60)
        assert seen in (["a"], ["a", "b"], ["a", "b", "c"])
        return real_probabilities(self, scan, *given)

    monkeypatch.setattr(CaseWriter, "ready", ready)
    monkeypatch.setattr(Predictor, "probabilities", probabilities)
    statuses = predict(adapter, [scans], tmp_path / "out", typed=Typed(weights=str(weights)))
    assert [status.error for status in statuses] == [None] * 3
    assert read == ["a", "b", "c"]


def test_only_what_is_small_and_read_in_silence_is_read_ahead(
    adapter: Path, weights: Path, toy: Path, tmp_path: Path
):
    """ITK prints past Python, so the process's output is kept from everybody while it reads."""
    from sea_peft.jobs import memory
    from sea_peft.jobs.inputs import find_cases

    image, _ = toy_scan(0)
    write_volume(tmp_path / "itk.nrrd", Volume(image, AFFINE))
    recipe = Predictor(adapter, Typed(weights=str(weights))).recipe
    found = find_cases([toy / "imagesTr" / "toy_0_0000.nii.gz", tmp_path / "itk.nrrd"], ["CT"])
    assert [case.id for case in memory.read_ahead(found, recipe, 1)] == ["toy_0"]
    assert memory.read_ahead(found, recipe, 10_000) == []


def test_memory_of_what_is_read_ahead_and_of_every_process_is_counted(
    adapter: Path, weights: Path, toy: Path
) -> None:
    from sea_peft.jobs.inputs import find_cases

    predictor = Predictor(adapter, Typed(weights=str(weights)))
    found = find_cases([toy], ["CT"])
    one, ahead = predictor.estimate(found).memory, predictor.estimate(found, found).memory
    assert one < ahead < one + (1 << 20)
    assert predictor.estimate(found).of_processes(3).memory > 3 * one


def test_scans_that_are_done_are_not_kept_in_memory(
    adapter: Path, weights: Path, toy: Path, tmp_path: Path
) -> None:
    predict(
        adapter,
        [toy],
        tmp_path / "out",
        typed=Typed(weights=str(weights)),
        statistics=tmp_path / "numbers.csv",
    )
    held = [source.path for source, *_ in cases._CACHE._held]
    assert not [path for path in held if path.is_relative_to(toy / "imagesTr")]


def test_a_prediction_goes_on_where_it_stood(
    adapter: Path, weights: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed, out = Typed(weights=str(weights)), tmp_path / "out"
    predicted: list[str] = []
    real = Predictor.probabilities

    def spying(self, scan, *given):
        predicted.append(scan.id)
        return real(self, scan, *given)

    monkeypatch.setattr(Predictor, "probabilities", spying)

    def run(**further: object) -> list[str]:
        predicted.clear()
        told: list[float] = []
        statuses = predict(
            adapter,
            [scans],
            out,
            typed=typed,
            progress=lambda done, of: told.append(done / of),
            **further,
        )
        assert [status.status for status in statuses] == ["done", "failed", "done"]
        assert told[-1] == 1
        assert all(status.volumes for status in statuses if status.status == "done")
        return list(predicted)

    assert run() == ["a", "c"]
    before = files_of(out)
    with pytest.raises(
        UsageError,
        match=r"a\.nii\.gz exists already; .* keep what was predicted before with --resume",
    ):
        run()
    assert run(resume=True) == []
    assert files_of(out) == before
    (out / "c.nii.gz").unlink()
    assert run(resume=True) == ["c"]
    # a scan that has changed, other options, what was not made then: nothing is replaced unasked
    shutil.copy(scans / "c.nii.gz", scans / "a.nii.gz")
    for changed, how in (
        ({}, "from another scan"),
        ({"keep": ["largest"]}, "with other rules of --keep"),
        ({"preview": True, "seg_nrrd": True}, "without --preview and without --seg-nrrd"),
        ({"use": "unadapted"}, "with another --use"),
        ({"statistics": tmp_path / "numbers.csv"}, "without --statistics"),
    ):
        with pytest.raises(UsageError, match=rf"exists already, and was made {how}; choose"):
            predict(adapter, [scans / "a.nii.gz"], out, typed=typed, resume=True, **changed)
    assert run(resume=True, overwrite=True) == ["a"]
    assert run(overwrite=True) == ["a", "c"]
    np.testing.assert_equal((out / "a.nii.gz").read_bytes(), (out / "c.nii.gz").read_bytes())


def test_numbers_of_processes_that_are_none(
    adapter: Path, weights: Path, scans: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--jobs 0 is no number of processes"):
        predict(adapter, [scans], tmp_path / "out", typed=Typed(weights=str(weights)), jobs=0)
    assert not (tmp_path / "out").exists()


def test_what_a_killed_process_left_of_one_case_is_told_from_another_cases(tmp_path: Path) -> None:
    """On a shared disk a process of another machine looks dead, and its case may be called
    `a.b`.
    """
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in ("a", "a.b"):
        (tmp_path / f".{name}.{gone.pid}.tmp").mkdir()
    atomic.remove_unfinished(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == [f".a.b.{gone.pid}.tmp"]
