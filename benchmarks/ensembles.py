"""Several adapters on each scan against one: the Dice of their average, and what tells good masks
from bad ones.

`python -m benchmarks ensembles` writes `results/ensembles.json` and `.md`. The adapters differ in
the seed: shots, crops and initial values.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from benchmarks.cell import machine
from benchmarks.store import RESULTS
from sea_peft import AdaptOptions, adapt
from sea_peft.data.planes import Planes
from sea_peft.data.prepare import restore
from sea_peft.jobs.ensemble import Ensemble
from sea_peft.jobs.inference import confidences, dice_per_label
from sea_peft.jobs.predictor import Predictor
from sea_peft.jobs.target import open_data

TARGETS, SEEDS, CASES, STEPS = ("low-dose-ct", "mr-t1"), (1, 2, 3), 12, 120
AVERAGE = "average"
SIGNALS = {  # name → the arm whose Dice it is to predict, and what it is
    "confidence": (
        str(SEEDS[0]),
        "soft-Dice confidence of one adapter, against the Dice of its mask",
    ),
    "entropy": (
        str(SEEDS[0]),
        "mean entropy of one adapter's probabilities over the label's mask, against the same",
    ),
    "confidence of the average": (
        AVERAGE,
        "soft-Dice confidence of the averaged probabilities, against the Dice of their mask",
    ),
    "disagreement": (
        AVERAGE,
        "how far the adapters' own masks disagree (`predict --ensemble`), against the same",
    ),
}
_MORE_IS_WORSE = ("entropy", "disagreement")


def measure() -> Path:
    """Every target. Writes JSON and Markdown."""
    rows = [{"target": target, "masks": _masks(target)} for target in TARGETS]
    path = RESULTS / "ensembles.json"
    found = {"machine": machine(), "steps": STEPS, "seeds": SEEDS, "cases": CASES, "rows": rows}
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(_page(rows), encoding="utf-8")
    return path


def _masks(target: str) -> list[dict[str, Any]]:
    """For every label of every test case: the Dice of each arm, and the signals; None where no
    mask has the label.
    """
    data, found = f"phantom:{target}", []
    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder) / f"seed-{seed}" for seed in SEEDS]
        for seed, run in zip(SEEDS, runs, strict=True):
            adapt(
                AdaptOptions(
                    data=data,
                    backbone="unet",
                    budget="1%",
                    steps=STEPS,
                    seed=seed,
                    out=run,
                    test="none",
                    mlflow=False,
                    device="cpu",
                )
            )
        members = [Predictor(run, device="cpu", use="adapted") for run in runs]
        ensemble = Ensemble(runs[0], runs[1:], device="cpu", use="adapted")
        labels = tuple(ensemble.labels)
        for case in open_data(data).test_cases[:CASES]:
            scan, stored = ensemble.prepared(case), case.label()
            assert stored is not None
            arms = {
                str(seed): member.probabilities(scan)
                for seed, member in zip(SEEDS, members, strict=True)
            }
            arms[AVERAGE], disagreement = ensemble.with_disagreement(scan)
            dice = {
                arm: dice_per_label(restore(planes, scan.geometry), stored.array, ensemble.labels)
                for arm, planes in arms.items()
            }
            signals = {
                "confidence": confidences(arms[str(SEEDS[0])], labels),
                "entropy": _entropies(arms[str(SEEDS[0])], labels),
                "confidence of the average": confidences(arms[AVERAGE], labels),
                "disagreement": disagreement.labels,
            }
            found += [
                {
                    "case": case.id,
                    "label": label,
                    "dice": {arm: round(of[label], 4) for arm, of in dice.items()},
                    "signals": {name: of[label] for name, of in signals.items()},
                }
                for label in dice[AVERAGE]
            ]
    return found


def _entropies(planes: Planes, labels: Sequence[str]) -> dict[str, float | None]:
    """Label → mean entropy in nats of the voxels that its mask holds; None where it is empty."""
    p = planes.tensor().clamp_min(1e-12)
    entropy, winner = -(p * p.log()).sum(dim=0), p.argmax(dim=0)
    return {
        label: (
            round(float(entropy[winner == index].mean()), 4)
            if bool((winner == index).any())
            else None
        )
        for index, label in enumerate(labels, start=1)
    }


def _rank_correlation(masks: Sequence[Mapping[str, Any]], signal: str) -> float:
    """Spearman's, positive where the signal is right about which masks are better."""
    arm = SIGNALS[signal][0]
    pairs = [
        (m["signals"][signal], m["dice"][arm]) for m in masks if m["signals"][signal] is not None
    ]
    sign = -1 if signal in _MORE_IS_WORSE else 1
    return sign * float(scipy.stats.spearmanr(*zip(*pairs, strict=True))[0])


def _page(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "# Several adapters on each scan",
        "",
        (
            f"Made by `python -m benchmarks ensembles`: UNet, `sea` at 1%, five shots, {STEPS}"
            f" steps; adapters of seeds {', '.join(map(str, SEEDS))}; mean Dice over labels and"
            f" {CASES} test cases, differences in points with 95% intervals over cases. Machine:"
            f" `{json.dumps(machine(), sort_keys=True)}`."
        ),
        "",
        "| target | each alone | probabilities averaged | less each alone |",
        "|---|---|---|---|",
    ]
    for row in rows:
        by_case: dict[str, dict[str, list[float]]] = {}
        for mask in row["masks"]:
            for arm, dice in mask["dice"].items():
                by_case.setdefault(arm, {}).setdefault(mask["case"], []).append(dice)
        means = {
            arm: np.array([statistics.fmean(of) for of in cases.values()])
            for arm, cases in by_case.items()
        }
        alone = [means[str(seed)] for seed in SEEDS]
        differences = [100 * (means[AVERAGE] - one) for one in alone]
        width = scipy.stats.t.ppf(0.975, len(alone[0]) - 1) / len(alone[0]) ** 0.5
        lines.append(
            f"| {row['target']} | {', '.join(f'{one.mean():.3f}' for one in alone)} |"
            f" {means[AVERAGE].mean():.3f} |"
            f" {', '.join(f'{d.mean():+.1f} ± {d.std(ddof=1) * width:.1f}' for d in differences)} |"
        )
    lines += [
        "",
        (
            "What tells good masks from bad ones: Spearman's rank correlation with their Dice, over"
            " all labels and cases, and within one label (mean over labels). Entropy and"
            " disagreement with their sign turned."
        ),
        "",
        "| signal | " + " | ".join(f"{row['target']}: all | within a label" for row in rows) + " |",
        "|---|" + "---|---|" * len(rows),
    ]
    for signal in SIGNALS:
        cells = []
        for row in rows:
            labels = sorted({mask["label"] for mask in row["masks"]})
            within = [
                _rank_correlation([m for m in row["masks"] if m["label"] == label], signal)
                for label in labels
            ]
            cells.append(
                f"{_rank_correlation(row['masks'], signal):.2f} | {statistics.fmean(within):.2f}"
            )
        lines.append(f"| {signal} | " + " | ".join(cells) + " |")
    lines += ["", *(f"- {name}: {about}." for name, (_, about) in SIGNALS.items())]
    return "\n".join(lines) + "\n"
