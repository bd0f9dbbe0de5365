"""What was found against what simpler policies reach, before it ships. Pure, over plain numbers: hard Dice on every audit patch."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from sea_peft.loop.outcome import Rival
from sea_peft.loop.utility import clearly_better

UNADAPTED = "unadapted"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`dice`: mean hard Dice by name. `chosen`: of those, what to use. `reason`: why. `ship`: the rival to ship instead, if any."""

    dice: dict[str, float]
    chosen: str
    reason: str
    ship: Rival | None


def compare(name: str, ours: Sequence[float], rivals: Sequence[Rival], unadapted: Sequence[float] | None) -> Verdict:
    """Hold what policy `name` found against its rivals and the unadapted backbone (None where that knows none of the labels).

    A rival with units that is clearly better is shipped instead. The head alone is not, and where it is ahead that is said: patches of one
    case cannot tell that it generalises better from a case that it happens to fit. On phantom:low-field-brain, seed 3, it is 7 points
    ahead on the audit case and 20 behind on the test cases.
    """
    means = {name: statistics.fmean(ours)} | {r.name: statistics.fmean(r.dice) for r in rivals}
    best = max((r for r in rivals if r.active), key=lambda r: means[r.name], default=None)
    chosen, reason, ship = name, "hard Dice on the audit patches at the end of the search", None
    if best is not None and clearly_better(best.dice, ours):
        chosen, ship = best.name, best
        reason += f": {best.name} is ahead by more than two standard errors of the paired differences"
    elif best is not None and means[best.name] > means[chosen]:
        reason += f": {best.name} is ahead, but by less than two standard errors of the paired differences"
    alone = next((r for r in rivals if not r.active), None)
    if alone is not None and means[alone.name] > means[chosen]:
        reason += f"; {alone.name} is ahead, which so few cases cannot settle: see the test cases"
    if unadapted is not None:
        means[UNADAPTED] = statistics.fmean(unadapted)
        if means[chosen] <= means[UNADAPTED]:
            reason += f"; {chosen} did not beat the unadapted backbone, which is what to use"
            chosen = UNADAPTED
    return Verdict(means, chosen, reason, ship)
