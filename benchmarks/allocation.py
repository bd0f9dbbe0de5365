"""Draws what the example run placed where: `python -m benchmarks.allocation`.

The figure that report and MLflow show, as a file of its own. Writes
`benchmarks/results/allocation.png`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sea_peft.artefacts.figures import active_sites
from sea_peft.artefacts.history import History
from sea_peft.artefacts.trace import read_trace

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "example", help="a run folder")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "allocation.png"
    )
    args = parser.parse_args()
    active_sites(History(read_trace(args.run / "trace.jsonl"))).savefig(
        args.out, dpi=100, bbox_inches="tight"
    )
    print(args.out)


if __name__ == "__main__":
    main()
