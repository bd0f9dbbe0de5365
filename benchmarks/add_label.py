"""`adapt --add-label` against the same labels learnt alone, and against the unadapted network on the labels that it knew.

`python -m benchmarks add_label` runs what is missing of `results/add_label.json` and writes `results/add_label.md`. In the target novel-organs three
organs are drawn that the weights do not know; what they know is there and not drawn. Learnt alone they are in the grid `targets_unet`. The test cases
are rendered a second time with everything drawn, which no run sees.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cell import machine
from benchmarks.store import RESULTS
from sea_peft import AdaptOptions, adapt
from sea_peft.jobs.inference import dice_per_label, mean_dice
from sea_peft.jobs.predictor import Predictor
from sea_peft.loop.events import Scored
from sea_peft.phantom import phantom_target
from sea_peft.phantom.dataset import FIRST_TEST, TEST_CASES, PhantomCase
from sea_peft.phantom.targets import NOVEL

TARGET, BACKBONE, POLICY, STEPS = "novel-organs", "unet", "affine_lora", 120
SEEDS = (1,)
_NOT_ASKED = {arm: Scored(arm=arm, dice=None, per_label={}, per_case={}, seconds=0.0) for arm in ("unadapted", "head_only")}  # fmt: skip


def measure() -> Path:
    """What is missing, and the table."""
    path = RESULTS / "add_label.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    for seed in SEEDS:
        if seed not in {row["seed"] for row in rows}:
            rows.append({"seed": seed, **_row(seed)})
            found = {"machine": machine(), "steps": STEPS, "tests": TEST_CASES, "rows": rows}
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(_table(rows), encoding="utf-8")
    return path


def _row(seed: int) -> dict[str, Any]:
    """Label → Dice on the test cases: `alone` and `added` of the new labels, `before` and `after` of those that the network knew; `agreement`: what
    the run itself says of these, with nothing of them drawn."""
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        added = adapt(
            AdaptOptions(
                data=f"phantom:{TARGET}", backbone=BACKBONE, policy=POLICY, steps=STEPS, budget="1%", seed=seed, add_labels=NOVEL, device="cpu",
                mlflow=False, out=run,
            ),
            baselines=_NOT_ASKED,
        )  # fmt: skip
        return {
            "alone": _alone(seed),
            "added": dict(added.dice.per_label),
            "before": _known(run, "unadapted"),
            "after": _known(run, "adapted"),
            "agreement": {label: known.after for label, known in added.known.items()},
        }


def _alone(seed: int) -> dict[str, float]:
    """The same with nothing kept: the grid's row."""
    file = RESULTS / BACKBONE / f"{TARGET}.5-shot.seed-{seed}.1pct.{POLICY}.json"
    row = json.loads(file.read_text(encoding="utf-8"))
    return dict(zip(row["labels"], np.mean(list(row["per_case"].values()), axis=0).round(4).tolist(), strict=True))


def _known(run: Path, use: str) -> dict[str, float]:
    """Label that the network knew → Dice over the test cases, with everything drawn."""
    target = phantom_target(TARGET)
    whole = dataclasses.replace(target, labels=target.region.structures)
    predictor = Predictor(run, device="cpu", use=use)
    codes = {label: (whole.codes[label],) for label in predictor.labels}
    per_case = {}
    for number in range(FIRST_TEST, FIRST_TEST + TEST_CASES):
        case = PhantomCase(whole, number)
        per_case[case.id] = dice_per_label(predictor.label_map(case), np.asarray(case.label().array), codes)
    found = mean_dice(per_case, list(codes))[1]
    return {label: dice for label, dice in found.items() if label not in NOVEL}


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    def mean(arm: str, label: str) -> float:
        return statistics.fmean(row[arm][label] for row in rows)

    new, known = (list(rows[0][arm]) for arm in ("alone", "before"))
    lines = [
        "# A new label without losing the old",
        "",
        f"Made by `python -m benchmarks add_label`: {TARGET}, {BACKBONE}, {POLICY}, five shots, 1%, {STEPS} steps, {TEST_CASES} test cases, "
        f"{'one seed' if len(rows) == 1 else f'mean over {len(rows)} seeds'}. {', '.join(new)} are drawn in the shots, and added to what the "
        "network knows; nothing else is drawn there. On test cases everything is known.",
        "",
        "| added label | learnt alone | added | points |",
        "|---|---|---|---|",
        *(_line(label, mean("alone", label), mean("added", label)) for label in new),
        _line("mean", *(statistics.fmean(mean(arm, label) for label in new) for arm in ("alone", "added"))),
        "",
        "| known label | before | after | points | agreement with before |",
        "|---|---|---|---|---|",
        *(
            f"{_line(label, mean('before', label), mean('after', label))} {mean('agreement', label):.3f} |"
            for label in known
        ),
        f"{_line('mean', *(statistics.fmean(mean(arm, label) for label in known) for arm in ('before', 'after')))} "
        f"{statistics.fmean(mean('agreement', label) for label in known):.3f} |",
    ]
    return "\n".join(lines) + "\n"


def _line(label: str, ours: float, theirs: float) -> str:
    return f"| {label} | {ours:.3f} | {theirs:.3f} | {100 * (theirs - ours):+.1f} |"
