"""The final choice of `sea`: a knapsack over every unit, by saliency, size and audits. Pure,
over plain data.
"""

import dataclasses
import statistics
from collections.abc import Mapping

from sea_peft.loop import knapsack
from sea_peft.loop.policy import Allocation
from sea_peft.loop.rows import Decision
from sea_peft.loop.space import Space
from sea_peft.loop.trial import Levels
from sea_peft.loop.utility import Estimate, UtilitySettings, error, median, score

_LEAST = 1e-6  # Dice; worths are relative to the mean score, which must be above 0


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The results of a search.

    Attributes:
        estimates: unit → what its audits say.
        prior: base (`Levels`) → its saliency relative to its family's.
        trial: the units that the cycles could try.
    """

    estimates: Mapping[str, Estimate]
    prior: Mapping[str, float]
    trial: frozenset[str]


def choose(
    space: Space, levels: Levels, evidence: Evidence, utility: UtilitySettings, noise: float
) -> Allocation:
    """Choose what is refitted and shipped: a knapsack over every level of every unit, without
    guards, by

        worth = mean · prior · size · (1 + √(expected / mean)) / 2

    where `mean` is the mean score of all measured units and `expected` a unit's score drawn
    towards it. Scores of a few patches are noisy, so each keeps the share of its distance from the
    mean that is signal: between² / (between² + error²), where between² is the variance of all
    scores beyond their errors (empirical Bayes; Efron and Morris 1973). A unit that was never
    measured, or too noisily, is expected to be average, and is worth what its saliency and size
    say. So audits that tell nothing change nothing.

    A unit's ΔDice is what the others cannot make up for. In a set that is good as a whole that is
    next to nothing for most units, and much for a few. Worth by ΔDice alone would drop the many and
    spend the budget on large levels of the few: hence half of the worth does not depend on it, and
    the other half grows with its root.

    A unit is left out if audits show harm: at least two of them, and a median ΔDice below −`noise`
    by two errors. Units whose ΔDice is negative while they learn can be what the refit needs: with
    one error as the limit, audits on one small lesion left such a unit out.

    Args:
        space: the audit space under its budget.
        levels: of the space.
        evidence: of the search.
        utility: how an estimate becomes a score.
        noise: Dice, the least mean score that is believed, if above 0.
    """
    units = space.by_id
    scores = {u: s for u, e in evidence.estimates.items() if (s := score(e, utility)) is not None}
    measured = {levels.base[u]: u for u in scores}
    mean, between = max(noise, _LEAST), 0.0
    if scores:
        mean = max(mean, statistics.fmean(scores.values()))
        errors = [error(evidence.estimates[u]) ** 2 for u in scores]
        between = max(0.0, statistics.pvariance(scores.values()) - statistics.fmean(errors))

    def expected(unit: str) -> float:
        if between == 0:
            return mean
        signal = between / (between + error(evidence.estimates[unit]) ** 2)
        return max(0.0, mean + signal * (scores[unit] - mean))

    def worth(unit: str) -> float:
        base = levels.base[unit]
        source = measured.get(base)
        if source is None:
            found = mean
        elif _harmful(evidence.estimates[source], noise):
            return 0.0
        else:
            found = expected(source)
        return mean * evidence.prior[base] * levels.size[unit] * (1 + (found / mean) ** 0.5) / 2

    worths = {u.id: worth(u.id) for u in space.units if levels.base[u.id] in evidence.prior}
    items = [space.item(u, w) for u, w in worths.items()]
    found = knapsack.greedy(items, space.capacity)
    taken = {units[u].group: u for u in found.chosen}
    tried = {units[u].group for u in evidence.trial}

    def why_not(unit: str) -> str:
        u = units[unit]
        if not space.fits([u]):
            return (
                f"costs {space.cost(u):,}, more than the whole budget for units"
                f" ({space.capacity:,})"
            )
        source = measured.get(levels.base[unit])
        if source is not None and _harmful(evidence.estimates[source], noise):
            return "audits found Dice better without it"
        if worths.get(unit, 0.0) <= 0:
            return "it has no saliency"
        if u.group in taken:
            return f"{taken[u.group]} is taken here"
        if u.group not in tried:
            return (
                f"the cycles have room for {len(evidence.trial)} units, and others have more"
                " saliency for their cost"
            )
        return "others are worth more for their cost"

    def decided(unit: str) -> Decision:
        own, source = scores.get(unit), measured.get(levels.base[unit])
        said = "unmeasured"
        if source is not None:
            audits = evidence.estimates[source].audits
            of = "" if source == unit else f" of {source}"
            said = f"score {scores[source]:+.4f} Dice{of} over {audits} audit{'s' * (audits > 1)}"
        if taken.get(units[unit].group) == unit:
            if source is None:
                said += ": enough saliency for its cost"
            elif scores[source] < 0:
                said += ": not clear enough to drop it"
            return Decision(unit, "add" if own is None else "keep", own, said)
        return Decision(unit, "refuse", own, f"{said}: {why_not(unit)}")

    active, decisions = space.in_order(found.chosen), tuple(decided(unit) for unit in units)
    return Allocation(
        active=active,
        decisions=decisions,
        value=found.value,
        items=tuple(items),
        capacity=space.capacity,
    )


def _harmful(estimate: Estimate, noise: float) -> bool:
    """Whether audits show that a unit harms; a single one never does."""
    middle = median(estimate)
    return estimate.audits >= 2 and middle is not None and middle + 2 * error(estimate) < -noise
