"""The Python that the guides show runs as it is printed, block after block."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[1] / "docs" / "guide-research.md"
BLOCKS = re.findall(
    r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(BLOCKS[0], id="wrap"),
        pytest.param(BLOCKS[1], id="adapt", marks=pytest.mark.slow),
    ],
)
def test_the_guides_python_runs(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, str(GUIDE), "exec"), {})


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(
        (GUIDE.parents[1] / "examples" / "one_run.ipynb").read_text(encoding="utf-8")
    )
    names: dict[str, object] = {}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert names["adapted"].shape == names["unadapted"].shape
