"""What the overlap of neighbouring windows is worth: the same adapter scored at three overlaps,
Dice and seconds.

`python -m benchmarks overlap` writes `results/overlap.json` and `.md`. The phantoms are drawn with
1.5 times as many voxels along each axis, because a default phantom takes the same eight windows
whatever the overlap.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.cell import machine
from benchmarks.store import RESULTS
from sea_peft import AdaptOptions, adapt
from sea_peft.backbones import batch_for_masks
from sea_peft.data.prepare import prepare, restore
from sea_peft.data.sliding import SlidingWindow
from sea_peft.jobs.inference import dice_per_label, probabilities
from sea_peft.jobs.predictor import Predictor
from sea_peft.jobs.target import open_data

TARGETS = ("low-dose-ct", "mr-t1", "paediatric-ct")
OVERLAPS = (0.0, 0.25, 0.5)
CASES, STEPS, SPACING = 4, 60, 10 / 3


def measure() -> Path:
    """One adapter a target, scored at every overlap in turn, case by case. Writes JSON and
    Markdown.
    """
    rows: list[dict[str, Any]] = []
    for target in TARGETS:
        data = f"phantom:{target}@1.5"
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            adapt(
                AdaptOptions(
                    data=data,
                    backbone="unet",
                    policy="cheapest",
                    steps=STEPS,
                    spacing=(SPACING,) * 3,
                    out=run,
                    test="none",
                    mlflow=False,
                )
            )
            rows.append({"target": target, "overlaps": _scores(Predictor(run), data)})
    path = RESULTS / "overlap.json"
    path.write_text(
        json.dumps({"machine": machine(), "cases": CASES, "rows": rows}, indent=1) + "\n",
        encoding="utf-8",
    )
    lines = [
        "# Overlap of neighbouring windows",
        "",
        (
            f"Made by `python -m benchmarks overlap`: UNet, cheapest first at 1%, {STEPS} steps,"
            f" seed 0, {CASES} test cases of 96×96×72 voxels, patch 48×48×32; mean Dice and CPU"
            f" seconds a case. Machine: `{json.dumps(machine(), sort_keys=True)}`."
        ),
        "",
        "| target | " + " | ".join(f"{overlap:g}" for overlap in OVERLAPS) + " |",
        "|---|" + "---|" * len(OVERLAPS),
        *(
            f"| {row['target']} | "
            + " | ".join(f"{o['dice']:.3f}, {o['seconds']:.1f} s" for o in row["overlaps"])
            + " |"
            for row in rows
        ),
    ]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _scores(predictor: Predictor, data: str) -> list[dict[str, float]]:
    dice: list[list[float]] = [[] for _ in OVERLAPS]
    seconds: list[list[float]] = [[] for _ in OVERLAPS]
    for case in open_data(data).test_cases[:CASES]:
        scan = prepare(case, predictor.recipe, predictor.channels)
        stored = case.label()
        assert stored is not None
        for index, overlap in enumerate(OVERLAPS):
            window = SlidingWindow(patch=predictor.config.window.patch, overlap=overlap)
            began = time.process_time()
            (found,) = probabilities(
                predictor.model,
                scan,
                window,
                torch.device("cpu"),
                batch_for_masks(predictor.model.backbone),
            )
            seconds[index].append(time.process_time() - began)
            found_dice = dice_per_label(
                restore(found, scan.geometry), stored.array, predictor.labels
            )
            dice[index].append(statistics.fmean(found_dice.values()))
    return [
        {"overlap": overlap, "dice": statistics.fmean(d), "seconds": statistics.fmean(s)}
        for overlap, d, s in zip(OVERLAPS, dice, seconds, strict=True)
    ]
