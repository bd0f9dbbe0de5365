"""A grid of runs: every cell is one `seapeft adapt` in its own process and leaves one small JSON file.

A grid is a TOML file in `benchmarks/grids/`: `data`, `shots`, `seeds`, `policies`, and what they share (`flags`). A cell whose JSON is there
is not run again, so that a grid can be stopped and gone on with; a failed cell leaves its exit code and sentence and counts as a row.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
GRIDS, RESULTS = HERE / "grids", HERE / "results"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a grid. `flags`: further `seapeft adapt` flags, the same for the whole grid."""

    data: str
    shots: int
    seed: int
    policy: str
    flags: tuple[str, ...]

    @property
    def name(self) -> str:
        """File name of its result."""
        data = self.data.removeprefix("phantom:").strip("/").replace("/", "_")
        return f"{data}.{self.shots}-shot.seed-{self.seed}.{self.policy}"

    def command(self, out: Path) -> list[str]:
        """The `seapeft adapt` of this cell. No MLflow: cells must not write one store together."""
        return [
            sys.executable, "-m", "sea_peft", "adapt", self.data,
            "--shots", str(self.shots), "--seed", str(self.seed), "--policy", self.policy,
            *self.flags, "--out", str(out), "--no-mlflow", "--json", "-q",
        ]  # fmt: skip


def read_grid(name: str) -> list[Cell]:
    """The cells of `benchmarks/grids/<name>.toml`, seeds outermost, so that a stopped grid has whole comparisons."""
    grid = tomllib.loads((GRIDS / f"{name}.toml").read_text(encoding="utf-8"))
    flags = tuple(str(flag) for flag in grid.get("flags", []))
    return [
        Cell(data, shots, seed, policy, flags)
        for seed, data, shots, policy in itertools.product(
            grid["seeds"], grid["data"], grid["shots"], grid["policies"]
        )
    ]


def run_grid(name: str, only: str | None = None) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Run what is missing of a grid, cell by cell; yields every cell with its result."""
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    for cell in read_grid(name):
        if only is not None and only not in cell.name:
            continue
        path = folder / f"{cell.name}.json"
        if not path.exists():
            result = run_cell(cell)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            partial.replace(path)
        yield cell, json.loads(path.read_text(encoding="utf-8"))


def run_cell(cell: Cell) -> dict[str, Any]:
    """One cell in its own process: its `result.json` with what placed where, or its failure, and the machine."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        done = subprocess.run(cell.command(out), capture_output=True, text=True, check=False)
        row: dict[str, Any] = {
            "cell": dataclasses.asdict(cell),
            "machine": machine(),
            "wall_seconds": round(time.monotonic() - began, 1),
            "exit_code": done.returncode,
        }
        if done.returncode != 0:
            return row | {"error": done.stderr.strip().splitlines()[-1:] or ["no message"]}
        result = json.loads(done.stdout)
        config = json.loads((out / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    del result["run"], result["mlflow_run_id"]
    return row | {"result": result, "units": [unit["id"] for unit in config["units"]]}


def machine() -> dict[str, Any]:
    """What the numbers were made on."""
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpus": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
