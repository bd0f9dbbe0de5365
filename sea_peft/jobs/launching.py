"""Adaptations in processes of their own: several side by side on this machine, or as jobs of a
cluster.

A process that dies does not affect the others. Its run continues from where it stood when it is
launched again.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.errors import LostProcessError, SeaPeftError, foreseen
from sea_peft.jobs.adapt import adapt, resume
from sea_peft.jobs.cluster import Cluster
from sea_peft.jobs.options import AdaptOptions
from sea_peft.jobs.workers import SECONDS_TO_END, ToParent, end_of, no_interrupt
from sea_peft.loop import events

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ended:
    """How a run ended. `error`: why it failed; None if it is done. `warnings`: its sentences
    for the user.
    """

    error: SeaPeftError | None
    warnings: tuple[str, ...] = ()


Ends = Generator[tuple[str, Ended], None, None]
Launch = Callable[[Mapping[str, AdaptOptions]], Ends]
"""Takes options by name, and yields the names as their runs end. Closing it ends the others,
which can be resumed.
"""


def carry_out(options: AdaptOptions, listen: events.Callback = events.ignore) -> Ended:
    """One run in this process, in the folder `options.out`: from its start, or from where it
    stood.
    """
    assert options.out is not None, "every run has a folder of its own"
    folder, warnings = RunFolder(Path(options.out)), list[str]()
    try:
        if folder.config.is_file():
            resume(folder.path, listen, warn=warnings.append, typed=options.typed)
        else:
            adapt(options, listen, warn=warnings.append)
    except Exception as error:
        if not isinstance(
            error, SeaPeftError | ConnectionError
        ):  # that is nobody listening any more
            _LOG.warning("unexpected", exc_info=error)
        return Ended(foreseen(error), tuple(warnings))
    return Ended(None, tuple(warnings))


@dataclass(eq=False)
class _Running:
    """A run in its process. `place`: which of the places side by side it has."""

    name: str
    place: int
    process: BaseProcess


def side_by_side(
    asked: Mapping[str, AdaptOptions], jobs: int, told: Callable[[str, events.Event], None]
) -> Ends:
    """A `Launch` on this machine.

    `jobs`: number of runs at a time, each with its share of the cores. With several GPUs, each run
    takes the next one. `told`: receives the events of each run, with its name.
    """
    waiting, free = deque(asked.items()), deque(range(jobs))
    running: dict[Connection, _Running] = {}
    try:
        while waiting or running:
            while waiting and free:
                pipe, run = _start(*waiting.popleft(), free.popleft(), jobs)
                running[pipe] = run
            ready = wait(list(running))
            for pipe, run in [(pipe, run) for pipe, run in running.items() if pipe in ready]:
                try:
                    said = pipe.recv()
                except (EOFError, OSError):
                    run.process.join()
                    said = Ended(LostProcessError(f"Its process {end_of(run.process)}."))
                if isinstance(said, logging.LogRecord):
                    logging.getLogger(said.name).handle(said)
                elif isinstance(said, Ended):
                    del running[pipe]
                    free.append(run.place)
                    run.process.join()
                    yield run.name, said
                else:
                    told(run.name, said)
    finally:
        _end(running)


def _start(name: str, options: AdaptOptions, place: int, jobs: int) -> tuple[Connection, _Running]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    threads = None if "OMP_NUM_THREADS" in os.environ else max(1, torch.get_num_threads() // jobs)
    process = context.Process(
        target=_work,
        args=(theirs, os.getcwd(), options, card(place), threads, logging.getLogger().level),
        name=name,
        daemon=True,
    )
    with no_interrupt():
        process.start()
    theirs.close()
    return ours, _Running(name, place, process)


def card(place: int) -> str | None:
    """The GPU for one of the places side by side, as CUDA_VISIBLE_DEVICES takes it; None if
    there is no choice.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = (
        listed.split(",")
        if listed
        else [str(number) for number in range(torch.cuda.device_count())]
    )
    return cards[place % len(cards)] if len(cards) > 1 else None


def _end(running: Mapping[Connection, _Running]) -> None:
    for pipe, run in running.items():
        pipe.close()
        run.process.terminate()
    for run in running.values():
        run.process.join(SECONDS_TO_END)
        if run.process.is_alive():
            run.process.kill()
            run.process.join()


def _work(
    pipe: Connection,
    folder: str,
    options: AdaptOptions,
    visible: str | None,
    threads: int | None,
    level: int,
) -> None:
    """The main function of a process with its run. `folder`: base of relative paths; `visible`:
    its GPU.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.chdir(folder)
    logging.basicConfig(level=level, handlers=[ToParent(pipe)])  # type: ignore[arg-type]
    logging.captureWarnings(True)
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = (
            visible  # CUDA reads it at its first use, which is yet to come
        )
    if threads is not None:
        torch.set_num_threads(threads)
    with contextlib.suppress(KeyboardInterrupt, ConnectionError):  # the parent may be gone
        pipe.send(carry_out(options, pipe.send))


def on_cluster(asked: Mapping[str, AdaptOptions], cluster: Cluster) -> Ends:
    """A `Launch` as jobs of a cluster: one that is queued again continues where its run folder
    stands. Raises UsageError if they cannot be submitted.
    """
    names = list(asked)
    with contextlib.closing(
        cluster.results(carry_out, [(options,) for options in asked.values()])
    ) as results:
        for place, ended in results:
            yield names[place], Ended(ended) if isinstance(ended, LostProcessError) else ended
