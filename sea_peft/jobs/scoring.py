"""The three arms on whole scans: on the test cases, which a run reads once and last, and on scans that were held out."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from sea_peft.backbones.batching import batch_for_masks
from sea_peft.data.cases import Case
from sea_peft.data.digest import case_hash
from sea_peft.data.planes import Planes
from sea_peft.data.prepare import Scan, prepare, restore
from sea_peft.jobs.inference import Forward, dice_per_label, error_rates, mean_dice, probabilities, unadapted_and_head
from sea_peft.jobs.setup import Setup
from sea_peft.loop import events

HEAD_ONLY = "head_only"
ARMS = ("unadapted", HEAD_ONLY, "adapted")
PerCase = dict[str, dict[str, float]]


@dataclasses.dataclass
class ArmScores:
    """What was measured so far, by hashed case and label: `dice` of every arm, and the adapted arm's `sensitivity` and `specificity` in
    `rates`. `seconds`: by arm."""

    dice: dict[str, PerCase] = dataclasses.field(default_factory=dict)
    rates: dict[str, PerCase] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, arm: str, case: str, dice: Mapping[str, float], seconds: float = 0.0) -> None:
        """One more case of one arm."""
        self.dice.setdefault(arm, {})[case] = dict(dice)
        self.seconds[arm] = self.seconds.get(arm, 0.0) + seconds

    def add_rates(self, case: str, rates: Mapping[str, Mapping[str, float]]) -> None:
        """One more case's error rates of the adapted arm."""
        for rate, by_label in rates.items():
            self.rates.setdefault(rate, {})[case] = dict(by_label)

    def mean_rates(self, labels: Sequence[str]) -> dict[str, dict[str, float]]:
        """`sensitivity` and `specificity` by label, mean over cases."""
        return {rate: mean_dice(self.rates.get(rate, {}), labels)[1] for rate in ("sensitivity", "specificity")}


def score(
    setup: Setup,
    cases: Sequence[Case],
    head_only: Mapping[str, torch.Tensor] | None,
    adapted: bool,
    folder: Path,
    told: Callable[[int, int], None],
) -> ArmScores:
    """Dice of the arms on every case, on the case's own grid, and the adapted arm's error rates.

    Args:
        setup: its model is the adapted arm, as it stands: units open, the head as it was fitted with them. It is left like that.
        cases: labelled ones.
        head_only: tensors of the head that was fitted alone, to score it and the unadapted backbone; None to leave these two out.
        adapted: whether to score the model as it stands.
        folder: where outputs that do not fit into memory are kept meanwhile.
        told: called with (cases done, of).
    """
    model, labels = setup.model, setup.dataset.labels
    with_units = {name: tensor.detach().clone() for name, tensor in model.head.state_dict().items()}
    scores = ArmScores()
    model.eval()
    for done, case in enumerate(cases, start=1):
        scan = prepare(case, setup.recipe, setup.dataset.channels)
        stored = case.label()
        assert stored is not None, "the split holds labelled cases only"
        name = case_hash(case.id, setup.salt)
        if head_only is not None:
            began = time.monotonic()
            model.head.load_state_dict(head_only)
            with model.bank.only(()):
                outputs = _outputs(setup, unadapted_and_head(model), scan, folder)
            model.head.load_state_dict(with_units)
            half = (time.monotonic() - began) / 2
            for arm, output in zip(("unadapted", HEAD_ONLY), outputs, strict=True):
                dice = dice_per_label(restore(output, scan.geometry), stored.array, labels)
                scores.add(arm, name, dice, half)
        if adapted:
            began = time.monotonic()
            (output,) = _outputs(setup, model, scan, folder)
            seconds = time.monotonic() - began
            predicted = restore(output, scan.geometry)
            scores.add("adapted", name, dice_per_label(predicted, stored.array, labels), seconds)
            scores.add_rates(name, error_rates(predicted, stored.array, labels))
        told(done, len(cases))
    return scores


def scored(setup: Setup, scores: ArmScores, on: str = "test") -> dict[str, events.Scored]:
    """The event of every arm, in the order of `ARMS`. A label that the backbone has no output for was not predicted by it at all, rather
    than with some Dice; its mean counts it as what it is, about 0."""
    made = {}
    for arm in (arm for arm in ARMS if arm in scores.dice):
        per_case = scores.dice[arm]
        mean, per_label = mean_dice(per_case, tuple(setup.dataset.labels))
        if arm == "unadapted":
            per_label = _without(per_label, setup.new_labels)
            per_case = {case: _without(dice, setup.new_labels) for case, dice in per_case.items()}
        dice, seconds = mean if per_label else None, round(scores.seconds[arm], 3)
        made[arm] = events.Scored(arm=arm, dice=dice, per_label=per_label, per_case=per_case, seconds=seconds, on=on)
    return made


def _without(dice: Mapping[str, float], labels: Sequence[str]) -> dict[str, float]:
    return {label: value for label, value in dice.items() if label not in labels}


def _outputs(setup: Setup, forward: Forward, scan: Scan, folder: Path) -> tuple[Planes, ...]:
    return probabilities(forward, scan, setup.window, setup.device, batch_for_masks(setup.model.backbone), folder)
