"""Draws what the example run placed where: `python -m benchmarks.allocation`.

The drawing of the report, as a file of its own. Writes `benchmarks/results/allocation.svg`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sea_peft.artefacts.drawing import network_drawing
from sea_peft.artefacts.history import History
from sea_peft.artefacts.trace import read_trace

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "example", help="a run folder")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "allocation.svg")
    args = parser.parse_args()
    args.out.write_text(network_drawing(History(read_trace(args.run / "trace.jsonl"))) + "\n", "utf-8")
    print(args.out)


if __name__ == "__main__":
    main()
