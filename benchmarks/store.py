"""Where rows lie: `benchmarks/results/<store>/<cell>.json`, one small file a cell, and per
comparison one with what every policy is measured against (the unadapted backbone and the head-only
fit).
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.grid import Cell

RESULTS = Path(__file__).parent / "results"
_WIDTH = 120


class Store:
    """The rows of one store."""

    def __init__(self, name: str, root: Path = RESULTS) -> None:
        self.folder = root / name

    def row(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's row, None when it was not run. Raises ValueError when the file of that
        name was made by another cell.
        """
        row = _read(self._path(cell.name))
        if row is not None and row["cell"] != json.loads(json.dumps(cell.row())):
            raise ValueError(
                f"{self._path(cell.name)} was made with {row['cell']}, not {cell.row()}; give the"
                " grid another store"
            )
        return row

    def write(self, cell: Cell, row: Mapping[str, Any]) -> None:
        """Whole or not at all."""
        _write(self._path(cell.name), row)

    def expected_cpu(self, cell: Cell) -> float | None:
        """CPU seconds that the cell will take: the median over the rows of its policy that were
        run with its options, or else over those of all policies; None without such rows.
        """
        options = json.loads(json.dumps(cell.row()))["options"]
        rows = [row for path in self.folder.glob("*.json") if (row := _read(path)) is not None]
        like = [
            (row["cell"]["policy"], float(row["seconds"]["cpu"]))
            for row in rows
            if "cell" in row and row["exit_code"] == 0 and row["cell"]["options"] == options
        ]
        of_policy = [seconds for policy, seconds in like if policy == cell.policy]
        spent = of_policy or [seconds for _, seconds in like]
        return statistics.median(spent) if spent else None

    def baselines(self, cell: Cell) -> dict[str, Any] | None:
        """The unadapted and head-only scores of the cell's comparison, None while no cell of it
        has finished.
        """
        return _read(self._path(f"{cell.comparison}.baselines"))

    def write_baselines(self, cell: Cell, scores: Mapping[str, Any]) -> None:
        """Whole or not at all."""
        _write(self._path(f"{cell.comparison}.baselines"), scores)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def compact(value: Any, indent: int = 0) -> str:
    """JSON with one line per list or small object: few lines to read, and small differences
    when one number changes.
    """
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, Mapping) or indent + len(line) <= _WIDTH:
        return line
    inner = ",\n".join(
        f"{' ' * (indent + 1)}{json.dumps(key)}: {compact(item, indent + 1)}"
        for key, item in value.items()
    )
    return f"{{\n{inner}\n{' ' * indent}}}"


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(compact(value) + "\n", encoding="utf-8")
    partial.replace(path)
