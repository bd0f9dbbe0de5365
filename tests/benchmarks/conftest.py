"""A grid of a few cells on toy scans and a backbone of a few thousand parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toys import tiny_weights, toy_dataset

OPTIONS = {"profile": "lora", "steps": 10, "cycles": 2}


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Four labelled cases, and the weights."""
    root = tmp_path_factory.mktemp("grid")
    return toy_dataset(root / "toy", cases=4), tiny_weights(root)


@pytest.fixture
def write_grid(tmp_path: Path, toys: tuple[Path, Path]):
    """Writes a grid file over the toys: fields as given, the rest as small as can be. Returns
    its path.
    """
    data, weights = toys

    def write(**fields: object) -> str:
        grid = {
            "store": "toy",
            "data": [str(data)],
            "shots": [2],
            "seeds": [0],
            "budgets": ["20%"],
        } | fields
        lines = [f"{key} = {json.dumps(value)}" for key, value in grid.items()]
        options = {"weights": str(weights), **OPTIONS}
        lines += ["[options]", *(f"{key} = {json.dumps(value)}" for key, value in options.items())]
        path = tmp_path / "toys.toml"
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    return write
