"""`adapt --add-label` against the same labels learnt alone, and against the unadapted network on
the labels that it knew.

`python -m benchmarks add_label` runs what is missing of `results/add_label.json` and writes
`results/add_label.md`. In the target novel-organs three organs are drawn that the weights do not
know; what they know is there and not drawn. Learnt alone they are in the grid `targets_unet`. The
test cases are rendered a second time with everything drawn, which no run sees.
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
SEEDS = (1, 2, 3)
_NOT_ASKED = {
    arm: Scored(arm=arm, dice=None, per_label={}, per_case={}, seconds=0.0)
    for arm in ("unadapted", "head_only")
}


def measure() -> Path:
    """What is missing, and the table."""
    path = RESULTS / "add_label.json"
    rows: list[dict[str, Any]] = (
        json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    )
    for seed in SEEDS:
        if seed not in {row["seed"] for row in rows}:
            rows.append({"seed": seed, **_row(seed)})
            found = {"machine": machine(), "steps": STEPS, "tests": TEST_CASES, "rows": rows}
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(_table(rows), encoding="utf-8")
    return path


def _row(seed: int) -> dict[str, Any]:
    """Label → Dice on the test cases: of the new labels learnt `alone`, and of all labels `before`
    and `after` they were added, the latter also by `both` networks together (`--use both`);
    `agreement`: what the run itself says of known labels, with nothing of them drawn.
    """
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        ran = adapt(
            AdaptOptions(
                data=f"phantom:{TARGET}",
                backbone=BACKBONE,
                policy=POLICY,
                steps=STEPS,
                budget="1%",
                seed=seed,
                add_labels=NOVEL,
                device="cpu",
                mlflow=False,
                out=run,
            ),
            baselines=_NOT_ASKED,
        )
        return {
            "alone": _alone(seed),
            "before": _dice(run, "unadapted"),
            "after": _dice(run, "adapted"),
            "both": _dice(run, "both"),
            "agreement": {label: known.after for label, known in ran.known.items()},
        }


def _alone(seed: int) -> dict[str, float]:
    """The same with nothing kept: the grid's row."""
    file = RESULTS / BACKBONE / f"{TARGET}.5-shot.seed-{seed}.1pct.{POLICY}.json"
    row = json.loads(file.read_text(encoding="utf-8"))
    return dict(
        zip(
            row["labels"],
            np.mean(list(row["per_case"].values()), axis=0).round(4).tolist(),
            strict=True,
        )
    )


def _dice(run: Path, use: str) -> dict[str, float]:
    """Label → mean Dice over the test cases, with everything drawn; without the new labels for
    the network that lacks them.
    """
    target = phantom_target(TARGET)
    whole = dataclasses.replace(target, labels=target.region.structures)
    predictor = Predictor(run, device="cpu", use=use)
    codes = {label: (whole.codes[label],) for label in predictor.labels}
    per_case = {}
    for number in range(FIRST_TEST, FIRST_TEST + TEST_CASES):
        case = PhantomCase(whole, number)
        per_case[case.id] = dice_per_label(
            predictor.label_map(case), np.asarray(case.label().array), codes
        )
    labels = [label for label in codes if use != "unadapted" or label not in NOVEL]
    return {label: round(dice, 4) for label, dice in mean_dice(per_case, labels)[1].items()}


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    def mean(arm: str, labels: Sequence[str]) -> float:
        return statistics.fmean(row[arm][label] for row in rows for label in labels)

    def line(name: str, reference: str, labels: Sequence[str]) -> str:
        ours, *theirs = (mean(arm, labels) for arm in (reference, "after", "both"))
        return f"| {name} | {ours:.3f} |" + "".join(
            f" {dice:.3f} | {100 * (dice - ours):+.1f} |" for dice in theirs
        )

    new, known = (list(rows[0][arm]) for arm in ("alone", "before"))
    lines = [
        "# A new label without losing the old",
        "",
        (
            f"Made by `python -m benchmarks add_label`: {TARGET}, {BACKBONE}, {POLICY}, five shots,"
            f" 1%, {STEPS} steps, {TEST_CASES} test cases,"
            f" {'one seed' if len(rows) == 1 else f'mean over {len(rows)} seeds'}. {', '.join(new)}"
            " are drawn in the shots, and added to what the network knows; nothing else is drawn"
            " there. On test cases everything is known. Both networks: `predict --use both`, added"
            " labels by the adapted network, the others by the unadapted one."
        ),
        "",
        "| added label | learnt alone | added | points | both networks | points |",
        "|---|---|---|---|---|---|",
        *(line(label, "alone", [label]) for label in new),
        line("mean", "alone", new),
        "",
        (
            "| known label | before | after | points | both networks | points | agreement with"
            " before |"
        ),
        "|---|---|---|---|---|---|---|",
        *(
            f"{line(label, 'before', [label])} {mean('agreement', [label]):.3f} |"
            for label in known
        ),
        f"{line('mean', 'before', known)} {mean('agreement', known):.3f} |",
    ]
    return "\n".join(lines) + "\n"
