"""Which learning rate a family wants: uniform topologies under 1%, one training of the default
length per rate, everything else equal.

`python -m benchmarks learning_rates` writes `results/learning_rates.json` and `.md`. Run on seed 0
of three targets; the grids report other seeds.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from benchmarks.cell import machine
from benchmarks.scoring import mean_test_dice
from benchmarks.store import RESULTS
from sea_peft.adapters.registry import families
from sea_peft.data.crops import CropSampler
from sea_peft.data.prepare import prepare
from sea_peft.jobs.options import AdaptOptions
from sea_peft.jobs.setup import prepare_run
from sea_peft.loop.training import Trainer, warm_up_cosine

TARGETS = ("low-dose-ct", "mr-t1", "novel-organs")
TEST_CASES = 8
# policy → (family whose rate is varied, rates)
RATES: dict[str, tuple[str, tuple[float, ...]]] = {
    "affine_lora": ("lora", (5e-3, 1.5e-2, 3e-2)),
    "affine": ("affine", (1e-2, 3e-2)),
    "tsa": ("tsa", (3e-3, 1e-2, 3e-2)),
    "conv_adapter": ("conv_adapter", (5e-3, 1e-2, 3e-2)),
    "full": ("full", (1e-3, 3e-3)),
}


def measure() -> Path:
    """Train every topology at every rate; writes JSON and Markdown, the chosen rate (the
    registry's) marked.
    """
    rows: list[dict[str, Any]] = []
    for target in TARGETS:
        for policy, (family, rates) in RATES.items():
            for rate in rates:
                dice, loss = _trained(target, policy, family, rate)
                rows.append(
                    {
                        "target": target,
                        "policy": policy,
                        "family": family,
                        "rate": rate,
                        "dice": dice,
                        "loss": loss,
                    }
                )
                print(*rows[-1].values(), flush=True)
    path = RESULTS / "learning_rates.json"
    path.write_text(
        json.dumps({"machine": machine(), "test_cases": TEST_CASES, "rows": rows}, indent=1) + "\n",
        encoding="utf-8",
    )
    path.with_suffix(".md").write_text(_markdown(rows), encoding="utf-8")
    return path


def _trained(target: str, policy: str, family: str, rate: float) -> tuple[float, float]:
    """Mean test Dice and mean training loss of one topology after one training of the default
    length.
    """
    options = AdaptOptions(data=f"phantom:{target}", backbone="unet", budget="1%", policy=policy)
    setup = prepare_run(options, lambda sentence: None)
    channels, labels = setup.dataset.channels, setup.dataset.labels
    shots = [
        prepare(case, setup.recipe, channels, labels)
        for case in (*setup.split.support, *setup.split.audit)
    ]
    units, steps = setup.fresh_policy().final().active, setup.settings.steps
    kind = families()[family]
    usual, kind.learning_rate = kind.learning_rate, rate
    try:
        loss = Trainer(setup.model, setup.settings.batch_size).train(
            units,
            CropSampler(shots, setup.window, setup.options.seed),
            0,
            steps,
            functools.partial(warm_up_cosine, total=steps, over=steps // 10),
            lambda step, loss: None,
        )
    finally:
        kind.learning_rate = usual
    return mean_test_dice(setup, TEST_CASES), loss


def _markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Learning rates",
        "",
        (
            "Made by `python -m benchmarks learning_rates`: UNet, 5 shots, seed 0, 120 steps,"
            f" {TEST_CASES} test cases. Dice; the rate in use in bold."
        ),
        "",
        "| policy | family | rate | " + " | ".join(TARGETS) + " | mean |",
        "|---|---|---|" + "---|" * (len(TARGETS) + 1),
    ]
    for policy, (family, rates) in RATES.items():
        for rate in rates:
            found = {
                r["target"]: r["dice"] for r in rows if (r["policy"], r["rate"]) == (policy, rate)
            }
            used = families()[family].learning_rate == rate
            shown = f"**{rate:g}**" if used else f"{rate:g}"
            values = " | ".join(f"{found[t]:.3f}" for t in TARGETS)
            lines.append(
                f"| {policy} | {family} | {shown} | {values} |"
                f" {sum(found.values()) / len(found):.3f} |"
            )
    return "\n".join(lines) + "\n"
