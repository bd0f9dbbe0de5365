"""The final choice of `sea`: the best of everything measured, then what promises most. Pure, over plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from sea_peft.adapters import Unit
from sea_peft.loop import knapsack
from sea_peft.loop.knapsack import Item
from sea_peft.loop.policies import Allocation, Decision, Space
from sea_peft.loop.trial import by_promise
from sea_peft.loop.utility import Estimate, UtilitySettings, score, value


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What a search has left behind. `promise`: of the units that were asked for it. `trial`: the units that the cycles could try."""

    estimates: Mapping[str, Estimate]
    promise: Mapping[str, float]
    trial: frozenset[str]


def choose(space: Space, evidence: Evidence, utility: UtilitySettings, noise: float, growth: float) -> Allocation:
    """Guard-free: a knapsack over everything measured, whatever its state, larger levels of it included; then into what is left, by
    promise, what no audit spoke against.

    Args:
        space: the audit space under its budget.
        evidence: of the search.
        utility: how a score is made of an estimate.
        noise: Dice within which a negative score speaks against nobody.
        growth: a larger level was not measured itself: it is credited with its smaller sibling's score × (cost ratio)^growth, and starts
            from the sibling's trained values (`Adapter.inherit`).
    """
    units = space.by_id
    measured = {
        u: Item(u, units[u].group, units[u].cost, score(e, utility) or 0.0)
        for u, e in evidence.estimates.items()
        if e.audits
    }
    grown = _grown(units, measured, growth)
    items = [*measured.values(), *(item for item, _ in grown.values())]
    found, best = knapsack.greedy(items, space.capacity), knapsack.exact(items, space.capacity)
    by_score = frozenset(found.chosen)
    harmful = {u for u, item in measured.items() if item.value < -noise}
    chosen, left = _filled(space, evidence.promise, by_score, harmful)
    outgrown = {smaller: unit for unit, (_, smaller) in grown.items() if unit in chosen}

    def reason(unit: str) -> str:
        item = measured.get(unit)
        if item is None and unit in by_score:
            credited, smaller = grown[unit]
            return f"grown from {smaller}: {measured[smaller].value:+.4f} Dice there, credited with {credited.value:+.4f}"
        if item is None:
            return "unmeasured: fills what is left, by promise" if unit in chosen else _why_not(space, evidence, unit, left)
        said = f"score {item.value:+.4f} Dice"
        if unit in by_score:
            return f"{said} over {evidence.estimates[unit].audits} audits"
        if unit in chosen:
            return f"{said} is within noise: fills what is left, by promise"
        if unit in outgrown:
            return f"{said}: grown into {outgrown[unit]}"
        return f"{said}: it does harm" if unit in harmful else f"{said}: others give more Dice per parameter"

    decisions = tuple(
        Decision(
            u,
            ("keep" if u in measured else "add") if u in chosen else "refuse",
            value(evidence.estimates[u], utility),
            reason(u),
        )
        for u in units
    )
    return Allocation(space.in_order(chosen), (), decisions, found.value, best.value, knapsack.gap(found, best))


def _filled(
    space: Space, promise: Mapping[str, float], by_score: frozenset[str], harmful: set[str]
) -> tuple[set[str], int]:
    """What was chosen by score and, by promise, what still fits beside it; and the parameters left over."""
    units, chosen = space.by_id, set(by_score)
    left = space.capacity - sum(units[u].cost for u in chosen)
    taken = {units[u].group for u in (*chosen, *harmful)}
    for unit in by_promise(units, promise):
        u = units[unit]
        if u.group not in taken and u.cost <= left and promise[unit] > 0:
            chosen.add(unit)
            taken.add(u.group)
            left -= u.cost
    return chosen, left


def _grown(
    units: Mapping[str, Unit], measured: Mapping[str, Item], growth: float
) -> dict[str, tuple[Item, str]]:
    """Unmeasured larger levels of units that proved useful: id → (item with the credited value, the smaller unit)."""
    proven: dict[tuple[str, str], list[Item]] = {}
    for item in measured.values():
        if item.value > 0:
            proven.setdefault((item.group, units[item.id].placement), []).append(item)
    grown: dict[str, tuple[Item, str]] = {}
    for unit, u in units.items():
        siblings = [i for i in proven.get((u.group, u.placement), ()) if i.cost < u.cost]
        if siblings and unit not in measured:
            credits = {i.id: i.value * (u.cost / i.cost) ** growth for i in siblings}
            smaller = max(credits, key=lambda s: credits[s])
            grown[unit] = (Item(unit, u.group, u.cost, credits[smaller]), smaller)
    return grown


def _why_not(space: Space, evidence: Evidence, unit: str, left: int) -> str:
    u = space.by_id[unit]
    if u.cost > space.capacity:
        return f"costs {u.cost:,}, more than the whole budget for units ({space.capacity:,})"
    if unit not in evidence.promise:
        return "unmeasured: another level of this family stood for it here"
    if unit not in evidence.trial:
        return f"never tried: the cycles have room for {len(evidence.trial)} units, and others promise more for their cost"
    return f"unmeasured: lower promise per parameter than what was taken, and {left:,} parameters left"
