"""Scores the three arms on whole scans: on the test cases, which a run reads once and last, and on
scans that were held out.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from sea_peft.backbones.batching import batch_for_masks
from sea_peft.data.cases import Case
from sea_peft.data.codes import IGNORED
from sea_peft.data.digest import case_hash
from sea_peft.data.planes import Planes
from sea_peft.data.prepare import Scan, prepare, restore
from sea_peft.jobs.choosing_parts import Gains, Rules, gains
from sea_peft.jobs.inference import (
    Forward,
    confidences,
    dice_per_label,
    error_rates,
    mean_dice,
    probabilities,
    unadapted_and_head,
)
from sea_peft.jobs.setup import Setup
from sea_peft.loop import events

HEAD_ONLY = "head_only"
ARMS = ("unadapted", HEAD_ONLY, "adapted")
PerCase = dict[str, dict[str, float]]
_T = TypeVar("_T")


@dataclasses.dataclass
class ArmScores:
    """The scores so far, by arm, hashed case and label.

    Attributes:
        dice: arm → case → label → Dice.
        confidence: arm → case → label → confidence (`inference.confidences`), without empty masks.
        rates: `sensitivity` and `specificity` of the adapted arm.
        kept: case → kept label → Dice between the adapted arm's masks and the unadapted network's,
            outside the added labels.
        parts: case → what each rule for connected parts adds to the adapted arm (`choosing_parts`).
        seconds: by arm.
    """

    dice: dict[str, PerCase] = dataclasses.field(default_factory=dict)
    confidence: dict[str, PerCase] = dataclasses.field(default_factory=dict)
    rates: dict[str, PerCase] = dataclasses.field(default_factory=dict)
    kept: PerCase = dataclasses.field(default_factory=dict)
    parts: dict[str, Gains] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(
        self,
        arm: str,
        case: str,
        dice: Mapping[str, float],
        confidence: Mapping[str, float | None] | None = None,
        seconds: float = 0.0,
    ) -> None:
        """Add one case of one arm."""
        self.dice.setdefault(arm, {})[case] = dict(dice)
        sure = {label: value for label, value in (confidence or {}).items() if value is not None}
        self.confidence.setdefault(arm, {})[case] = sure
        self.seconds[arm] = self.seconds.get(arm, 0.0) + seconds

    def join(self, other: ArmScores) -> None:
        """Add the scores of other cases."""
        for ours, theirs in (
            (self.dice, other.dice),
            (self.confidence, other.confidence),
            (self.rates, other.rates),
        ):
            for key, per_case in theirs.items():
                ours.setdefault(key, {}).update(per_case)
        self.kept |= other.kept
        self.parts |= other.parts
        for arm, seconds in other.seconds.items():
            self.seconds[arm] = self.seconds.get(arm, 0.0) + seconds

    def add_rates(self, case: str, rates: Mapping[str, Mapping[str, float]]) -> None:
        """Add one case's error rates of the adapted arm."""
        for rate, by_label in rates.items():
            self.rates.setdefault(rate, {})[case] = dict(by_label)

    def mean_rates(self, labels: Sequence[str]) -> dict[str, dict[str, float]]:
        """Mean `sensitivity` and `specificity` over cases, by label."""
        return {
            rate: mean_dice(self.rates.get(rate, {}), labels)[1]
            for rate in ("sensitivity", "specificity")
        }


@dataclasses.dataclass(frozen=True)
class _Asked:
    """One scan to be scored.

    Attributes:
        name: its hashed id.
        scan: prepared.
        masks: the network's output → the prediction as label indices, and the reference with the
            values in `labels`.
        labels: name → values in the reference.
        counted: the voxels that count, on the network's grid; None for all.
    """

    name: str
    scan: Scan
    masks: Callable[[Planes], tuple[np.ndarray, np.ndarray]]
    labels: Mapping[str, tuple[int, ...]]
    counted: np.ndarray | None = None

    def confidences(self, output: Planes) -> dict[str, float | None]:
        """Label → the network's confidence in its mask, over the voxels that count."""
        return confidences(output, list(self.labels), self.counted)


def score(
    setup: Setup,
    cases: Sequence[Case],
    head_only: Mapping[str, torch.Tensor] | None,
    adapted: bool,
    folder: Path,
    told: Callable[[int, int], None],
    rules: Rules | None = None,
) -> ArmScores:
    """Dice of the arms on each case, on the case's own grid, and the adapted arm's error rates.

    The processes of the run share the cases; each gets all scores.

    Args:
        setup: its model is the adapted arm as it stands: units open, and the head as fitted with
            them. It is left like that.
        cases: labelled ones.
        head_only: tensors of the head fitted alone, to score it and the unadapted backbone; None to
            skip both.
        adapted: whether to score the model as it stands.
        folder: for temporary files of outputs that do not fit into memory.
        told: called with (cases done, of).
        rules: for connected parts of the adapted arm's masks, to try by label.
    """

    def asked(case: Case) -> _Asked:
        scan, stored = prepare(case, setup.recipe, setup.dataset.channels), case.label()
        assert stored is not None, "the split holds labelled cases only"
        name, reference = case_hash(case.id, setup.salt), stored.array
        return _Asked(
            name, scan, lambda output: (restore(output, scan.geometry), reference), setup.scored
        )

    return _score(setup, cases, asked, head_only, adapted, folder, told, rules)


def score_held_out_labels(
    setup: Setup,
    shot: Scan,
    head_only: Mapping[str, torch.Tensor] | None,
    adapted: bool,
    folder: Path,
    told: Callable[[int, int], None],
) -> ArmScores:
    """`score` for a run of one shot, which has no scan to hold out: Dice over the voxels whose
    labels were held out, on the recipe's grid. `shot`: with those labels alone (`hold_out_labels`).

    Windows cover the whole scan, since crops around the labels would not show false positives
    elsewhere.
    """
    held = shot.label
    assert held is not None, "labels are held out of labelled shots"
    counted = held != IGNORED
    indices: dict[str, tuple[int, ...]] = {
        label: (index,) for index, label in enumerate(setup.dataset.labels, start=1)
    }
    indices |= dict.fromkeys(setup.kept_labels, ())

    def masks(output: Planes) -> tuple[np.ndarray, np.ndarray]:
        planes = (
            output.read(z, z + 1).argmax(dim=0)[counted[z : z + 1]] for z in range(output.shape[1])
        )
        return torch.cat(list(planes)).numpy(), held[counted].numpy()

    asked = _Asked(case_hash(shot.id, setup.salt), shot, masks, indices, counted.numpy())
    return _score(setup, [asked], lambda one: one, head_only, adapted, folder, told)


def _score(
    setup: Setup,
    cases: Sequence[_T],
    ask: Callable[[_T], _Asked],
    head_only: Mapping[str, torch.Tensor] | None,
    adapted: bool,
    folder: Path,
    told: Callable[[int, int], None],
    rules: Rules | None = None,
) -> ArmScores:
    processes, found, scores = setup.processes, list[ArmScores](), ArmScores()
    setup.model.eval()
    for case in processes.share(cases):
        found.append(_of_one(setup, ask(case), head_only, adapted, folder, rules))
        told(
            min(len(found) * processes.size, len(cases)), len(cases)
        )  # the others are about as far
    for one in processes.together(found):
        scores.join(one)
    return scores


def _of_one(
    setup: Setup,
    asked: _Asked,
    head_only: Mapping[str, torch.Tensor] | None,
    adapted: bool,
    folder: Path,
    rules: Rules | None,
) -> ArmScores:
    model, scores, kept = setup.model, ArmScores(), setup.kept_labels
    unadapted: np.ndarray | None = None
    if head_only is not None:
        with_units = {
            name: tensor.detach().clone() for name, tensor in model.head.state_dict().items()
        }
        began = time.monotonic()
        model.head.load_state_dict(head_only)
        with model.bank.only(()):
            outputs = _outputs(setup, unadapted_and_head(model), asked.scan, folder)
        model.head.load_state_dict(with_units)
        half = (time.monotonic() - began) / 2
        for arm, output in zip(("unadapted", HEAD_ONLY), outputs, strict=True):
            dice, sure = (
                dice_per_label(*asked.masks(output), asked.labels, kept),
                asked.confidences(output),
            )
            scores.add(arm, asked.name, dice, sure, half)
        unadapted = asked.masks(outputs[0])[0] if kept else None
    if adapted:
        began = time.monotonic()
        (output,) = _outputs(setup, model, asked.scan, folder)
        seconds = time.monotonic() - began
        masks = asked.masks(output)
        dice = dice_per_label(*masks, asked.labels, kept)
        scores.add("adapted", asked.name, dice, asked.confidences(output), seconds)
        scores.add_rates(asked.name, error_rates(*masks, asked.labels, kept))
        if rules:
            scores.parts[asked.name] = gains(
                *masks, asked.labels, rules, asked.scan.geometry.voxel_millilitres
            )
        if kept:
            if unadapted is None:
                with model.unadapted():
                    (output,) = _outputs(setup, model, asked.scan, folder)
                unadapted = asked.masks(output)[0]
            scores.kept[asked.name] = _agreement(masks, unadapted, asked.labels, kept)
    return scores


def _agreement(
    masks: tuple[np.ndarray, np.ndarray],
    unadapted: np.ndarray,
    labels: Mapping[str, tuple[int, ...]],
    kept: Collection[str],
) -> dict[str, float]:
    """Kept label → Dice between the adapted network's mask and the unadapted one's.

    Voxels of added labels do not count: these may take their place from a kept label. `masks`: the
    adapted network's, and the reference.
    """
    adapted, reference = masks
    added = np.isin(
        reference, [code for label, codes in labels.items() if label not in kept for code in codes]
    )
    indices = {label: (index,) for index, label in enumerate(labels, start=1)}
    dice = dice_per_label(np.where(added, 0, adapted), np.where(added, 0, unadapted), indices)
    return {label: value for label, value in dice.items() if label in kept}


def scored(setup: Setup, scores: ArmScores, on: str = "test") -> dict[str, events.Scored]:
    """The event of each arm, in the order of `ARMS`.

    A label that the backbone has no output for gets no Dice of its own from it; the mean counts it
    as 0, or nearly.
    """
    made = {}
    for arm in (arm for arm in ARMS if arm in scores.dice):
        per_case = scores.dice[arm]
        mean, per_label = mean_dice(per_case, tuple(setup.dataset.labels))
        if arm == "unadapted":
            per_label = _without(per_label, setup.new_labels)
            per_case = {case: _without(dice, setup.new_labels) for case, dice in per_case.items()}
        dice, seconds = mean if per_label else None, round(scores.seconds[arm], 3)
        kept = mean_dice(scores.kept, setup.kept_labels)[1] if arm == "adapted" else {}
        made[arm] = events.Scored(
            arm=arm,
            dice=dice,
            per_label=per_label,
            per_case=per_case,
            seconds=seconds,
            on=on,
            kept=kept,
        )
    return made


def _without(dice: Mapping[str, float], labels: Sequence[str]) -> dict[str, float]:
    return {label: value for label, value in dice.items() if label not in labels}


def _outputs(setup: Setup, forward: Forward, scan: Scan, folder: Path) -> tuple[Planes, ...]:
    return probabilities(
        forward, scan, setup.window, setup.device, batch_for_masks(setup.model.backbone), folder
    )
