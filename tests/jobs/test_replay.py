"""`inspect --replay`: what a trace says was measured leads to what it says was chosen, without
any network.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from sea_peft import cli
from sea_peft.artefacts.trace import TraceWriter, read_trace
from sea_peft.errors import UsageError
from sea_peft.jobs.replay import replay
from sea_peft.loop.events import Allocated, Audited, Event, RunStarted


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, toy: Path, weights: Path) -> Path:
    """A run of `sea` with three cycles and one of a fixed topology, on the toy data."""
    root = tmp_path_factory.mktemp("runs")
    options = [
        "--weights",
        str(weights),
        "--patch",
        "16,16,16",
        "--shots",
        "2",
        "--device",
        "cpu",
        "--no-mlflow",
        "-q",
    ]
    for policy in ("sea", "affine_lora"):
        more = [
            "--policy",
            policy,
            "--out",
            str(root / policy),
            "--steps",
            "16",
            "--cycles",
            "3",
            "--budget",
            "20%",
        ]
        assert cli.run(["adapt", str(toy), *options, *more]) == 0
    return root


@pytest.mark.parametrize("policy", ["sea", "affine_lora"])
def test_a_real_run_is_decided_the_same_again(
    runs: Path, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["inspect", str(runs / policy), "--replay", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["same"] is True
    assert [row["final"] for row in found["allocations"]] == [False, False, False, True]


def test_another_measurement_is_another_decision(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = read_trace(runs / "sea" / "trace.jsonl")
    with TraceWriter(tmp_path / "trace.jsonl") as trace:
        for event in events:
            trace(_with_one_delta_turned(event))
    assert cli.run(["inspect", str(tmp_path), "--replay"]) == 7
    told = capsys.readouterr()
    assert "problem" in told.out
    assert "did not come out the same: the trace was changed" in told.err


def _with_one_delta_turned(event: Event) -> Event:
    if not isinstance(event, Audited):
        return event
    first, *rest = event.rows
    return dataclasses.replace(
        event, rows=[dataclasses.replace(first, delta=0.5 - first.delta), *rest]
    )


def test_what_a_replay_may_not_know_is_not_needed(runs: Path) -> None:
    """Promises, audits and settings are enough: neither rankings nor decisions nor times are
    read.
    """
    events = read_trace(runs / "sea" / "trace.jsonl")
    bare = [
        dataclasses.replace(e, decisions=[], seconds=0.0) if isinstance(e, Allocated) else e
        for e in events
    ]
    assert [r.same for r in replay(bare)] == [True] * 4


def test_settings_of_another_version_are_refused(runs: Path) -> None:
    started, *rest = read_trace(runs / "sea" / "trace.jsonl")
    assert isinstance(started, RunStarted)
    odd = {**started.settings, "policy": {**started.settings["policy"], "probe_share": "a third"}}
    with pytest.raises(UsageError, match=r"settings are not those of this sea_peft \(probe_share"):
        replay([dataclasses.replace(started, settings=odd), *rest])


def test_a_unit_that_is_not_what_its_name_says_is_damage(runs: Path) -> None:
    started, *rest = read_trace(runs / "sea" / "trace.jsonl")
    assert isinstance(started, RunStarted)
    first, *others = started.units
    for odd in ({"site": "elsewhere"}, {"family": "tsa"}, {"level": first.level + 1}):
        units = [dataclasses.replace(first, **odd), *others]
        with pytest.raises(UsageError, match="it is damaged"):
            replay([dataclasses.replace(started, units=units), *rest])


def test_replay_goes_with_no_other_question(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", str(runs / "sea"), "--replay", "--cycle", "1"]) == 2
    assert "give it without --cycle" in capsys.readouterr().err
