"""`python -m benchmarks run GRID [--only TEXT]`, `python -m benchmarks table GRID`, `python -m benchmarks audit_cost`."""

from __future__ import annotations

import argparse

from benchmarks.grid import GRIDS, run_grid
from benchmarks.table import write_table


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    grids = sorted(path.stem for path in GRIDS.glob("*.toml"))
    run = verbs.add_parser("run", help="run what is missing of a grid")
    run.add_argument("grid", choices=grids)
    run.add_argument("--only", help="only cells whose name holds this text")
    verbs.add_parser("table", help="make the tables of a grid").add_argument("grid", choices=grids)
    verbs.add_parser("audit_cost", help="cost of audits with and without reuse")
    asked = parser.parse_args()
    if asked.verb == "run":
        for cell, row in run_grid(asked.grid, asked.only):
            dice = row["result"]["dice"] if "result" in row else None
            print(cell.name, f"{dice['adapted']:.3f}" if dice else row["error"][0], f"{row['wall_seconds']:.0f} s", flush=True)
    elif asked.verb == "table":
        print(write_table(asked.grid))
    else:
        from benchmarks.audit_cost import measure

        print(measure())


if __name__ == "__main__":
    main()
