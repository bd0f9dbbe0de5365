"""What was found against what a simpler policy reaches, before it ships. Pure, over plain numbers: hard Dice on every audit patch."""

import dataclasses
import statistics
from collections.abc import Sequence

from sea_peft.loop.outcome import Baseline
from sea_peft.loop.utility import clearly_better

UNADAPTED = "unadapted"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`dice`: mean hard Dice by name. `chosen`: which is ahead of the policy's own and the unadapted backbone. `reason`: how they stand.
    `per_patch`: hard Dice of every audit patch by name."""

    dice: dict[str, float]
    chosen: str
    reason: str
    per_patch: dict[str, list[float]]


def compare(name: str, ours: Sequence[float], baseline: Baseline | None, unadapted: Sequence[float] | None) -> Verdict:
    """Hold what policy `name` found against its baseline, where there is one, and the unadapted backbone (None where that knows none of the
    labels).

    A baseline that is ahead is named and not shipped instead, however clear its lead: patches of one case say nothing of how cases differ,
    and at the end of a search half of what was found has learnt for one cycle alone, while a baseline has trained one set all along.
    """
    means, per_patch = {name: statistics.fmean(ours)}, {name: list(ours)}
    chosen, reason = name, "hard Dice on the audit patches at the end of the search"
    if baseline is not None:
        means[baseline.name] = statistics.fmean(baseline.dice)
        per_patch[baseline.name] = list(baseline.dice)
        if means[baseline.name] > means[name]:
            clear = " by more than two standard errors of the patches" if clearly_better(baseline.dice, ours) else ""
            reason += f"; {baseline.name} is ahead{clear}"
    if unadapted is not None:
        means[UNADAPTED] = statistics.fmean(unadapted)
        per_patch[UNADAPTED] = list(unadapted)
        if means[name] < means[UNADAPTED]:
            reason += f"; {UNADAPTED} is ahead"
            chosen = UNADAPTED
    return Verdict(means, chosen, reason, per_patch)
