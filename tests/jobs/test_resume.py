"""A run that is killed with SIGKILL at any moment and resumed ends with the bytes of one that
was not.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from toys import install
from traces import without_times

from sea_peft.artefacts.trace import read_trace
from sea_peft.jobs.options import AdaptOptions
from sea_peft.loop import events

KILLS_AT_LEAST = 20
# Phase of a training step, or kind of an event → what a run is doing then.
DOING = {
    **{"run_started": "begin", "prepare": "begin", "head_only": "head_only", "warmup": "search"},
    **{
        "search": "search",
        "searched": "search",
        "saliency_measured": "search",
        "allocated": "search",
        "audited": "search",
    },
    **{
        "ranked": "search",
        "held_out": "refit",
        "recommended": "ship",
        "compared": "refit",
        "refit": "refit",
        "test": "test",
        "scored": "ship",
        "run_finished": "ship",
    },
}


@pytest.fixture(autouse=True)
def installed(weights: Path, own_home: None) -> None:
    """The weights are known by the name that a run has for them, so that it is resumed without
    them being typed again.
    """
    install(weights)


class Moment(NamedTuple):
    """While `doing` something the `word`-th word that a run says of it, or some seconds `after`
    that.
    """

    doing: str
    word: int
    after: float | None


def run(given: AdaptOptions | Path, said: Connection, end: Moment | None) -> None:
    """A run in a process of its own. Before every event and before every operation that makes a
    file last, it says what it is doing.

    `end`: when it kills itself. At a file operation, this leaves what a crash in the middle of it
        would leave.
    """
    import torch

    from sea_peft.jobs.adapt import adapt, resume
    from sea_peft.loop import controller

    torch.set_num_threads(1)
    controller._REFIT_CHECKPOINT_EVERY = 3  # a refit of eight steps is then cut too
    doing, words = "begin", Counter[str]()

    def say() -> None:
        words[doing] += 1
        said.send(doing)
        if end is not None and words[end.doing] == end.word:
            os.kill(os.getpid(), signal.SIGKILL)

    def listen(event: events.Event) -> None:
        nonlocal doing
        doing = DOING[event.phase if isinstance(event, events.TrainingStep) else event.kind]
        say()

    def saying(operation: Callable[..., Any]) -> Callable[..., Any]:
        def said_and_done(*given: Any, **named: Any) -> Any:
            say()
            return operation(*given, **named)

        return said_and_done

    for name in ("fsync", "replace", "rename", "unlink", "rmdir"):
        setattr(os, name, saying(getattr(os, name)))
    resume(given, listen) if isinstance(given, Path) else adapt(given, listen)


class Runs:
    """Runs in processes forked from one that has imported everything."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["sea_peft.jobs.adapt"])

    def __call__(
        self, given: AdaptOptions | Path, end: Moment | None = None
    ) -> tuple[bool, list[str]]:
        """Whether the run was killed, by itself or by us, and what it said until then or to its
        end.
        """
        ours, theirs = self._context.Pipe(duplex=False)
        itself = end is not None and end.after is None
        process = self._context.Process(target=run, args=(given, theirs, end if itself else None))
        process.start()
        theirs.close()
        said: list[str] = []
        with contextlib.suppress(EOFError):
            while True:
                said.append(ours.recv())
                if end is not None and end.after is not None and said.count(end.doing) == end.word:
                    time.sleep(end.after)
                    process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        return process.exitcode != 0, said


def result_of(folder: Path) -> tuple[list[object], dict[str, bytes], dict[str, object]]:
    """What must not depend on interruptions: the trace without times, the adapter's bytes, the
    scores.
    """
    result = json.loads((folder / "result.json").read_text())
    adapter = {
        name: (folder / "adapter" / name).read_bytes()
        for name in ("adapter_config.json", "adapter_model.safetensors")
    }
    return (
        without_times(read_trace(folder / "trace.jsonl")),
        adapter,
        {k: result[k] for k in ("dice", "units", "budget", "audit")},
    )


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_and_resumed_runs_end_like_an_uninterrupted_one(
    tmp_path: Path, toy: Path, weights: Path
) -> None:
    """Every folder is killed and resumed once while doing each thing that a run does, so that most
    kills hit a run that was resumed before. Half of them come at a word of the run itself, half at
    some time after it.
    """

    def options(out: Path) -> AdaptOptions:
        return AdaptOptions(
            data=str(toy),
            weights=str(weights),
            shots=3,
            budget="20%",
            steps=16,
            cycles=2,
            mlflow=False,
            out=out,
        )

    runs, moments = Runs(), random.Random(0)
    whole = tmp_path / "whole"
    words = Counter(runs(options(whole))[1])
    kills: Counter[str] = Counter()
    for attempt in range(5):
        folder = tmp_path / f"killed-{attempt}"
        for number, doing in enumerate(dict.fromkeys(DOING.values())):
            after = moments.expovariate(100) if (attempt + number) % 2 else None
            begun = (folder / "config.json").exists()
            if not begun:
                shutil.rmtree(folder, ignore_errors=True)  # what has no config yet is no run
            if begun and (folder / "result.json").exists() and not (folder / "checkpoint").exists():
                break  # a late kill came when all was done
            end = Moment(doing, moments.randint(1, 1 + words[doing] // 3), after)
            killed, said = runs(folder if begun else options(folder), end)
            kills[said[-1]] += killed
        if not (folder / "result.json").exists() or (folder / "checkpoint").exists():
            runs(folder)
        assert result_of(folder) == result_of(whole)
        assert names(folder) == names(whole), "nothing half-written is left"
    print(f"\n{kills.total()} kills: {dict(kills)}")
    assert kills.total() >= KILLS_AT_LEAST
    assert kills.keys() == words.keys()
