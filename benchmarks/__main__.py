"""`python -m benchmarks run | table | pareto GRID`, and single measurements such as `python -m
benchmarks audit_cost`.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.grid import Cell, grid_names, read_grid
from benchmarks.runner import here, on_cluster, run_grid
from benchmarks.store import Store

# verb, which is the module's name → what it measures
_MEASUREMENTS = {
    "add_label": (
        "what adding labels costs those that the network knew, and the added ones themselves"
    ),
    "audit_cost": "what audits and allocations cost",
    "ensembles": (
        "what several adapters on each scan bring, and what tells good masks from bad ones"
    ),
    "headroom": "how much a better choice of units could bring at all",
    "ideas": "which changes of the recipe pay, on the development set",
    "peers": "what a user would pick instead: nnU-Net, plain MONAI, Hugging Face PEFT",
    "overlap": "what the overlap of neighbouring windows is worth",
    "quality": "what predict --qc expects of masks and flags, against the truth",
    "suggest": "whether scans that suggest chooses to label are worth more than others",
    "scale": "what a cohort costs: processes side by side, start-up, windows against MONAI's own",
    "step_cost": "what a training step costs, adapters against full fine-tuning",
    "step_peer": "what a training step costs, against MONAI with HF PEFT",
    "learning_rates": "which learning rate a family wants",
    "unlabelled": "whether scans without labels pay",
    "what_predicts": "which way of valuing units chooses the best set",
}


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    grids = ", ".join(grid_names())
    run = verbs.add_parser("run", help="run what is missing of a grid")
    run.add_argument("grid", help=f"one of {grids}, or the path of a TOML file")
    run.add_argument("--jobs", type=int, default=1, help="cells at a time")
    run.add_argument("--threads", type=int, default=1, help="threads of a cell (OMP_NUM_THREADS)")
    run.add_argument("--only", default="", help="only cells whose name holds this text")
    run.add_argument(
        "--again", metavar="TEXT", help="run cells anew whose name holds this text, rows or not"
    )
    run.add_argument("--retry", action="store_true", help="run failed cells anew")
    run.add_argument("--dry-run", action="store_true", help="say what would be run")
    run.add_argument("--cluster", help="run cells as jobs through submitit: slurm, local or debug")
    run.add_argument(
        "--submitit",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="its parameters, such as slurm_partition=gpu",
    )
    for verb, does in (
        ("table", "make the tables and box plots of a grid"),
        ("pareto", "make its Pareto front"),
    ):
        verbs.add_parser(verb, help=does).add_argument("grid")
    for verb, does in _MEASUREMENTS.items():
        verbs.add_parser(verb, help=does)
    asked = parser.parse_args()
    if asked.verb == "run":
        _run(asked)
    elif asked.verb in _MEASUREMENTS:
        print(importlib.import_module(f"benchmarks.{asked.verb}").measure())
    else:
        from benchmarks import pareto, table

        print(
            *(table.write(asked.grid) if asked.verb == "table" else pareto.write(asked.grid)),
            sep="\n",
        )


def _run(asked: argparse.Namespace) -> None:
    grid = read_grid(asked.grid)
    store = Store(grid.store)
    if asked.dry_run:
        _show(store, [cell for cell in grid.cells() if asked.only in cell.name])
        return

    def again(cell: Cell, row: Mapping[str, Any]) -> bool:
        return bool(asked.again and asked.again in cell.name) or bool(
            asked.retry and row["exit_code"]
        )

    if asked.cluster:
        parameters = dict(pair.split("=", 1) for pair in asked.submitit)
        launch = on_cluster(
            asked.cluster,
            asked.threads,
            **{k: int(v) if v.isdigit() else v for k, v in parameters.items()},
        )
    else:
        launch = here(asked.threads)
    for cell, row, now in run_grid(grid, store, launch, asked.jobs, asked.only, again):
        dice = f"{row['dice']['adapted']:.3f}" if row["exit_code"] == 0 else row["error"]
        seconds = (
            f"{row['seconds']['wall']:.0f} s, {row['seconds']['cpu']:.0f} s of CPU"
            if now and row["seconds"]
            else "was there"
        )
        print(f"{cell.name:<64} {dice}  ({seconds})", flush=True)


def _show(store: Store, cells: Sequence[Cell]) -> None:
    """The cells, and what those that are missing will cost."""
    missing = []
    for cell in cells:
        row = store.row(cell)
        code = None if row is None else row["exit_code"]
        state = {None: "missing", 0: "done"}.get(code, f"exit code {code}")
        print(f"{state:<12} {cell.name:<60} {cell.command()}")
        if row is None:
            missing.append(store.expected_cpu(cell))
    known = [seconds for seconds in missing if seconds is not None]
    cost = f"about {sum(known) / 3600:.1f} CPU hours by the rows that are there"
    unknown = len(missing) - len(known)
    print(
        f"{len(missing)} of {len(cells)} cells are missing"
        + (f": {cost}" if known else "")
        + (f"; nothing tells the cost of {unknown} of them" if unknown else "")
    )


if __name__ == "__main__":
    main()
