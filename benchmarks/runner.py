"""Runs what is missing of a grid: every cell in a process of its own, several side by side,
here or on a cluster.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.cell import run_cell
from benchmarks.grid import Cell, Grid
from benchmarks.store import Store

LOGS = Path(".submitit")
"""What submitit keeps of its jobs; on a cluster, a folder that all nodes see."""

Made = tuple[dict[str, Any], dict[str, Any] | None]
Launch = Callable[[Cell, str, Mapping[str, Any] | None], Made]


def run_grid(
    grid: Grid,
    store: Store,
    launch: Launch,
    jobs: int = 1,
    only: str = "",
    again: Callable[[Cell, Mapping[str, Any]], bool] = lambda _cell, _row: False,
) -> Iterator[tuple[Cell, dict[str, Any], bool]]:
    """Yield (cell, row, whether it was run now) as cells are done.

    Args:
        grid: what to run.
        store: where rows lie; a cell whose row is there is not run again.
        launch: runs one cell in a process of its own and waits for it.
        jobs: cells at a time.
        only: only cells whose name holds this text, and what they wait for.
        again: whether to run a cell anew although it has this row.
    """
    asked: dict[Cell, None] = {}  # ordered: partners stand before those that wait for them
    for cell in grid.cells():
        if only in cell.name:
            asked |= dict.fromkeys(c for c in (cell.partner, cell) if c is not None)
    pending: dict[Cell, Future[tuple[dict[str, Any], bool]]] = {}

    def work(cell: Cell) -> tuple[dict[str, Any], bool]:
        partner = pending[cell.partner].result()[0] if cell.partner is not None else None
        if partner is not None and partner["exit_code"] != 0:
            row = {
                "cell": cell.row(),
                "policy": cell.policy,
                "exit_code": 1,
                "error": f"its {partner['policy']} cell failed",
                "seconds": {},
            }
            store.write(cell, row)
            return row, True
        policy = cell.policy_asked_for(partner)
        row = store.row(cell) or {}
        if row.get("policy") == policy and not again(cell, row):
            return row, False
        row, baselines = launch(cell, policy, store.baselines(cell))
        if baselines is not None:
            store.write_baselines(cell, baselines)
        store.write(cell, row)
        return row, True

    pool = ThreadPoolExecutor(max_workers=jobs)
    try:
        # the pool takes them first in, first out, so that nobody waits for a partner that was not
        # begun before
        for cell in asked:
            pending[cell] = pool.submit(work, cell)
        cells = {future: cell for cell, future in pending.items()}
        for future in as_completed(cells):
            yield cells[future], *future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def here(threads: int = 1) -> Launch:
    """Cells as processes of this machine, each with `threads` threads. They are forked from one
    process that has imported the package, so that a cell does not pay for that again and all cells
    of one call run the same code; nothing else is shared.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the fork server when it imports torch
    known = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in known else "spawn")
    context.set_forkserver_preload(["benchmarks.cell", "sea_peft.jobs.adapt"])

    def launch(cell: Cell, policy: str, baselines: Mapping[str, Any] | None) -> Made:
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(send, cell, policy, baselines), daemon=True)
        process.start()
        send.close()
        try:
            made: Made = receive.recv()
        except EOFError:
            process.join()
            made = died(cell, policy, process.exitcode)
        process.join()
        return made

    return launch


def _child(send: Connection, cell: Cell, policy: str, baselines: Mapping[str, Any] | None) -> None:
    send.send(run_cell(cell, policy, baselines))


def died(cell: Cell, policy: str, exit_code: int | None) -> Made:
    """The row of a cell whose process ended without a word."""
    name = (
        signal.Signals(-exit_code).name
        if exit_code is not None and exit_code < 0
        else str(exit_code)
    )
    row = {
        "cell": cell.row(),
        "policy": policy,
        "exit_code": exit_code,
        "error": f"its process ended with {name}",
        "seconds": {},
    }
    return row, None


def on_cluster(
    cluster: str | None, threads: int = 1, minutes: int = 60, **parameters: Any
) -> Launch:
    """Cells as jobs of a cluster through submitit (the `cluster` extra).

    Args:
        cluster: "slurm", or None for what submitit finds; "local" runs the jobs here without a
            scheduler, "debug" in this process.
        threads: CPUs of a cell.
        minutes: most a cell may take.
        parameters: submitit's, such as slurm_partition, mem_gb, gpus_per_node.
    """
    import submitit

    os.environ["OMP_NUM_THREADS"] = str(threads)
    executor = submitit.AutoExecutor(folder=LOGS / "%j", cluster=cluster)
    executor.update_parameters(timeout_min=minutes, cpus_per_task=threads, **parameters)

    def launch(cell: Cell, policy: str, baselines: Mapping[str, Any] | None) -> Made:
        job = executor.submit(run_cell, cell, policy, baselines)
        try:
            made: Made = job.result()
        except (
            submitit.core.utils.UncompletedJobError,
            submitit.core.utils.FailedJobError,
        ) as error:
            row = {
                "cell": cell.row(),
                "policy": policy,
                "exit_code": 1,
                "error": str(error).splitlines()[0],
                "seconds": {},
            }
            return row, None
        return made

    return launch
