"""The three arms on the test cases: the first and only time that a run reads them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from sea_peft.data.digest import case_hash
from sea_peft.data.planes import Planes
from sea_peft.data.prepare import Scan, prepare, restore
from sea_peft.jobs.inference import (
    Forward,
    dice_per_label,
    error_rates,
    mean_dice,
    probabilities,
    unadapted_and_head,
)
from sea_peft.jobs.setup import Setup
from sea_peft.loop import events

ARMS = ("unadapted", "head_only", "adapted")
PerCase = dict[str, dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Scores:
    """`arms`: arm → Dice. `rates`: the adapted arm's `sensitivity` and `specificity`, by label, mean over test cases."""

    arms: dict[str, events.Scored]
    rates: dict[str, dict[str, float]]


def score(
    setup: Setup,
    head_only: Mapping[str, torch.Tensor],
    baselines: Mapping[str, events.Scored],
    folder: Path,
    listen: events.Callback,
) -> Scores:
    """Dice of the three arms on every test case, on the case's own grid, and the adapted arm's error rates.

    Args:
        setup: its model is the adapted arm: the chosen units open, the head as it was fitted with them. It is left like that.
        head_only: tensors of the head that was fitted alone.
        baselines: scores of `unadapted` and `head_only` to take over; empty where these two are to be scored.
        folder: where outputs that do not fit into memory are kept meanwhile.
        listen: gets a `TrainingStep` of the phase `test` after every case.
    """
    model, labels = setup.model, setup.dataset.labels
    with_units = {name: tensor.detach().clone() for name, tensor in model.head.state_dict().items()}
    dice: dict[str, PerCase] = {arm: {} for arm in ARMS if arm not in baselines}
    rates: dict[str, PerCase] = {"sensitivity": {}, "specificity": {}}
    seconds = dict.fromkeys(dice, 0.0)
    model.eval()
    for done, case in enumerate(setup.split.test, start=1):
        scan = prepare(case, setup.recipe, setup.dataset.channels)
        stored = case.label()
        assert stored is not None, "the split holds labelled cases only"
        name = case_hash(case.id, setup.salt)
        outputs: list[Planes] = []
        if not baselines:
            began = time.monotonic()
            model.head.load_state_dict(head_only)
            with model.bank.only(()):
                outputs += _outputs(setup, unadapted_and_head(model), scan, folder)
            for arm in ("unadapted", "head_only"):
                seconds[arm] += (time.monotonic() - began) / 2
            model.head.load_state_dict(with_units)
        began = time.monotonic()
        outputs += _outputs(setup, model, scan, folder)
        seconds["adapted"] += time.monotonic() - began
        for arm, output in zip(dice, outputs, strict=True):
            predicted = restore(output, scan.geometry)
            dice[arm][name] = dice_per_label(predicted, stored.array, labels)
        for rate, by_label in error_rates(predicted, stored.array, labels).items():  # the adapted arm comes last
            rates[rate][name] = by_label
        listen(events.TrainingStep("test", done, len(setup.split.test), 0.0))
    scored = {arm: _scored(setup, arm, per_case, seconds[arm]) for arm, per_case in dice.items()}
    means = {rate: mean_dice(per_case, tuple(labels))[1] for rate, per_case in rates.items()}
    return Scores({arm: scored[arm] if arm in scored else baselines[arm] for arm in ARMS}, means)


def _outputs(setup: Setup, forward: Forward, scan: Scan, folder: Path) -> tuple[Planes, ...]:
    return probabilities(forward, scan, setup.window, setup.device, folder=folder)


def _scored(setup: Setup, arm: str, per_case: PerCase, seconds: float) -> events.Scored:
    """The event of one arm. A label that the backbone has no output for was not predicted by it at all, rather than with Dice 0."""
    labels = setup.dataset.labels
    mean, per_label = mean_dice(per_case, tuple(labels))
    if arm == "unadapted":
        unknown = {label for label, row in zip(labels, setup.rows, strict=True) if row is None}
        per_label = {k: v for k, v in per_label.items() if k not in unknown}
        per_case = {c: {k: v for k, v in d.items() if k not in unknown} for c, d in per_case.items()}
    return events.Scored(arm, mean if per_label else None, per_label, per_case, round(seconds, 3))
