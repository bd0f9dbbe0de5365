"""The command that makes pretrained weights: the same file every time, and its card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.grid import read_grid
from benchmarks.pretrain import FROM_REAL_SCANS, PLANS
from sea_peft.backbones.typed import Typed
from sea_peft.backbones.weights import load_typed

ROOT = Path(__file__).parents[2]
FEW = ("--cases", "2", "--test-cases", "1")


def _short_run(
    out: Path, name: str = "phantom_brain_unet", few: tuple[str, ...] = FEW
) -> dict[str, object]:
    subprocess.run(
        [sys.executable, "-m", "benchmarks.pretrain", name, "--steps", "2", "--out", out, *few],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=600,
    )
    card: dict[str, object] = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    return card


def test_the_card_says_how_the_weights_were_made(tmp_path: Path) -> None:
    _short_run(tmp_path)
    loaded = load_typed(Typed(weights=str(tmp_path / "phantom_brain_unet.safetensors")))
    assert loaded.card.channels == ["t1", "t1c", "t2", "flair"]
    assert loaded.card.training["command"].startswith(
        "python -m benchmarks.pretrain phantom_brain_unet --steps 2 "
    )


def test_weights_of_real_scans_say_which_cases_they_saw(tmp_path: Path) -> None:
    plan = PLANS["prostate_mr_unet"]
    if not (ROOT / plan.source).is_dir():
        pytest.skip("the real scans of prostates are not beside the repository")
    card = _short_run(tmp_path, "prostate_mr_unet", ())
    made = card["training"]
    assert isinstance(made, dict)
    assert made["data"] == f"prostate_mr, cases {', '.join(plan.cases)}"
    assert (made["cases"], made["test_cases"]) == (4, 6)
    assert (card["labels"], card["channels"]) == (["background", "prostate"], ["MR"])


def test_patients_of_the_pretraining_are_no_cases_of_the_grid() -> None:
    """Both sets show the same patients."""
    plan, grid = PLANS["prostate_mr_unet"], read_grid("prostate_us")
    assert tuple(grid.without) == plan.cases
    assert grid.options["weights"] == str(FROM_REAL_SCANS / "prostate_mr_unet.safetensors")


@pytest.mark.slow
def test_the_same_command_gives_the_same_file(tmp_path: Path) -> None:
    first, again = (_short_run(tmp_path / name) for name in ("first", "again"))
    assert first["sha256"] == again["sha256"]
    assert first["dice"] == again["dice"]
