"""Imports run one way, and asking for help loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sea_peft

PACKAGE = Path(sea_peft.__file__).parent
# what each room may import, beside itself, the errors and what reads and writes documents
MAY_IMPORT = {
    "errors": set(),
    "atomic": set(),
    "extensions": set(),
    "documents": set(),
    "data": set(),
    "phantom": {"data"},
    "backbones": {"data"},
    "adapters": {"data", "backbones"},
    "loop": {"data", "backbones", "adapters"},
    "artefacts": {"data", "backbones", "adapters", "loop"},
    "explain": {"data", "backbones", "adapters", "loop"},
    "jobs": {"data", "phantom", "backbones", "adapters", "loop", "artefacts", "explain"},
    "console": {"data", "phantom", "backbones", "adapters", "loop", "artefacts", "explain", "jobs"},
    "cli": {
        "data",
        "phantom",
        "backbones",
        "adapters",
        "loop",
        "artefacts",
        "explain",
        "jobs",
        "console",
    },
    "__main__": {"cli"},
}


def imported_rooms(file: Path) -> Iterator[tuple[int, str]]:
    """Line and room of every import of this package, wherever in the file it stands."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "sea_peft":
            names = [f"sea_peft.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{file}:{node.lineno}: a relative import hides which room it is"
            )
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "sea_peft" and len(parts) > 1 and not parts[1].startswith("__"):
                yield node.lineno, parts[1]


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: f.relative_to(PACKAGE).as_posix()
)
def test_imports_run_one_way(file: Path) -> None:
    inside = file.relative_to(PACKAGE)
    room = inside.parts[0].removesuffix(".py")
    if room == "__init__":
        # it offers what Python callers need, loaded when asked for: the test below holds that
        return
    assert room in MAY_IMPORT, f"{room} has no place in the house; give it one here"
    wrong = [
        f"line {line}: {other}"
        for line, other in imported_rooms(file)
        if other not in MAY_IMPORT[room] | {room, "atomic", "errors", "documents", "extensions"}
    ]
    assert not wrong


@pytest.mark.parametrize(
    "arguments", [["--help"], ["adapt", "--help"], ["data", "--help"], ["--version"]]
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from sea_peft.cli import run
assert run({arguments!r}) == 0
heavy = sorted({{"torch", "monai", "mlflow", "numpy", "matplotlib"}} & set(sys.modules))
sys.exit(f"loads {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
