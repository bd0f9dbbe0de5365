"""Compares the result of a search with a simpler policy and the unadapted backbone, before it
ships. Pure, over hard Dice per audit patch.
"""

import dataclasses
import statistics
from collections.abc import Sequence

from sea_peft.loop.outcome import Baseline
from sea_peft.loop.utility import clearly_better

UNADAPTED = "unadapted"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The outcome of a comparison.

    Attributes:
        dice: candidate → mean hard Dice.
        chosen: the better of the policy's own result and the unadapted backbone.
        reason: how the candidates compare, in words.
        per_patch: candidate → hard Dice of each audit patch.
    """

    dice: dict[str, float]
    chosen: str
    reason: str
    per_patch: dict[str, list[float]]


def compare(
    name: str, ours: Sequence[float], baseline: Baseline | None, unadapted: Sequence[float] | None
) -> Verdict:
    """Compare what policy `name` found with its baseline and the unadapted backbone.

    A baseline that is ahead is named but never shipped instead, however clear its lead. Patches of
    one case do not show how cases differ. Besides, at the end of a search half of the units have
    trained for one cycle only, while a baseline has trained one set all along.

    Args:
        name: of the policy.
        ours: its hard Dice on each audit patch.
        baseline: the simpler policy, if there is one.
        unadapted: hard Dice of the unadapted backbone; None if it knows none of the labels.
    """
    means, per_patch = {name: statistics.fmean(ours)}, {name: list(ours)}
    chosen, reason = name, "hard Dice on the audit patches at the end of the search"
    if baseline is not None:
        means[baseline.name] = statistics.fmean(baseline.dice)
        per_patch[baseline.name] = list(baseline.dice)
        if means[baseline.name] > means[name]:
            clear = (
                " by more than two standard errors of the patches"
                if clearly_better(baseline.dice, ours)
                else ""
            )
            reason += f"; {baseline.name} is ahead{clear}"
    if unadapted is not None:
        means[UNADAPTED] = statistics.fmean(unadapted)
        per_patch[UNADAPTED] = list(unadapted)
        if means[name] < means[UNADAPTED]:
            reason += f"; {UNADAPTED} is ahead"
            chosen = UNADAPTED
    return Verdict(means, chosen, reason, per_patch)
