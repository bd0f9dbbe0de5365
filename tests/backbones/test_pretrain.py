"""The command that makes the bundled weights gives the same file every time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sea_peft.backbones.typed import Typed
from sea_peft.backbones.weights import load_typed

ROOT = Path(__file__).parents[2]


def _short_run(out: Path) -> dict[str, object]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.pretrain",
        "phantom_brain_unet",
        "--steps",
        "2",
        "--cases",
        "2",
    ]
    few = ["--test-cases", "1", "--out", str(out)]
    subprocess.run(
        [*command, *few],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=600,
    )
    card: dict[str, object] = json.loads(
        (out / "phantom_brain_unet.json").read_text(encoding="utf-8")
    )
    return card


def test_the_card_says_how_the_weights_were_made(tmp_path: Path) -> None:
    _short_run(tmp_path)
    loaded = load_typed(Typed(weights=str(tmp_path / "phantom_brain_unet.safetensors")))
    assert loaded.card.channels == ["t1", "t1c", "t2", "flair"]
    assert loaded.card.training["command"].startswith(
        "python -m benchmarks.pretrain phantom_brain_unet --steps 2 "
    )


@pytest.mark.slow
def test_the_same_command_gives_the_same_file(tmp_path: Path) -> None:
    first, again = (_short_run(tmp_path / name) for name in ("first", "again"))
    assert first["sha256"] == again["sha256"]
    assert first["dice"] == again["dice"]
