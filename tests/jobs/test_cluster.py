"""Jobs of a cluster, and a cohort that is predicted by them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sea_peft import cli
from sea_peft.backbones.typed import Typed
from sea_peft.errors import LostProcessError, UsageError
from sea_peft.jobs.cluster import Cluster, _Repeatable
from sea_peft.jobs.predict import predict


def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the jobs, which are processes of their own, import the package from here."""
    here = str(Path(__file__).parents[2])
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    )


def test_results_come_by_job_and_a_job_that_fails_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    importable(monkeypatch)
    cluster = Cluster("local", tmp_path / "jobs", parameters={"timeout_min": 5})
    found = dict(cluster.results(divmod, [(7, 2), (1, 0), (9, 4)]))
    assert (found[0], found[2]) == ((3, 1), (2, 1))
    assert isinstance(found[1], LostProcessError)
    assert "see " in str(found[1])
    assert (tmp_path / "jobs").stat().st_mode & 0o077 == 0, "jobs are pickles"


def test_a_job_that_runs_out_of_time_is_queued_again_as_it_was() -> None:
    pytest.importorskip("submitit")
    again = _Repeatable(divmod).checkpoint(7, 2)
    assert again.function == _Repeatable(divmod)
    assert again.args == (7, 2)


def test_a_cluster_that_is_not_known_or_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="--cluster pbs is not known"):
        Cluster("pbs", tmp_path)
    pytest.importorskip("submitit")
    with pytest.raises(UsageError, match="--cluster local is refused by submitit"):
        Cluster("local", tmp_path, parameters={"colour": "red"}).executor()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match=r"--cluster slurm is refused by submitit: .*\w\.$"):
        Cluster("slurm", tmp_path).executor()  # submitit asks back, with a question mark


def test_every_job_predicts_its_share_and_a_lost_one_loses_no_more(
    adapter: Path, weights: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    seen: list[int] = []

    def results(
        self: Cluster, work: Callable[..., Any], arguments: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        for place, own in enumerate(arguments):
            seen.append(len(own[-1]))
            yield (
                place,
                LostProcessError("Its job 7 ended without a word.") if place == 1 else work(*own),
            )

    monkeypatch.setattr(Cluster, "results", results)
    told: list[float] = []
    said: list[str] = []
    statuses = predict(
        adapter,
        [scans],
        tmp_path / "out",
        typed=Typed(weights=str(weights)),
        jobs=2,
        cluster=Cluster("local", tmp_path / "jobs"),
        statistics=tmp_path / "numbers.csv",
        progress=lambda done, of: told.append(done),
        say=said.append,
    )
    assert said[-1].endswith("of memory in each of 2 processes")
    assert seen == [2, 1]
    assert told == [2, 3]
    assert {status.case: status.status for status in statuses} == {
        "a": "done",
        "b": "failed",
        "c": "done",
    }
    assert "predict it again with --resume" in str(next(s.error for s in statuses if s.case == "b"))
    assert len((tmp_path / "numbers.csv").read_text().splitlines()) == 1 + 2 * 2, "two labels"


@pytest.mark.slow
def test_jobs_of_submitit_leave_the_masks_that_one_process_leaves(
    adapter: Path, weights: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    importable(monkeypatch)
    given = ["predict", str(adapter), str(scans), "--weights", str(weights)]
    assert cli.run([*given, "--out", str(tmp_path / "here")]) == 8
    there = [
        "--out",
        str(tmp_path / "there"),
        "--cluster",
        "local",
        "--jobs",
        "2",
        "--submitit",
        "timeout_min=10",
    ]
    assert cli.run([*given, *there]) == 8, "b is damaged"
    for name in ("a.nii.gz", "c.nii.gz"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


@pytest.mark.parametrize("given", ["mem_gb", "=4", "mem_gb="])
def test_what_a_job_needs_is_key_and_value(
    given: str, adapter: Path, scans: Path, tmp_path: Path, capsys
) -> None:
    line = [
        "predict",
        str(adapter),
        str(scans),
        "--out",
        str(tmp_path / "out"),
        "--cluster",
        "slurm",
    ]
    assert cli.run([*line, "--submitit", given]) == 2
    assert "is not KEY=VALUE" in capsys.readouterr().err
