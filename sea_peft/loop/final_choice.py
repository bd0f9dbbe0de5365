"""The final choice of `sea`: the best of everything measured, then what promises most. Pure, over plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from sea_peft.loop import knapsack
from sea_peft.loop.policies import Allocation, Decision, Space
from sea_peft.loop.trial import Levels, by_density
from sea_peft.loop.utility import Estimate


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What a search has left behind, by unit or by base (`Levels`).

    `estimates`: unit → what audits say. `worth`: base → ΔDice at its level, of those that were measured at any level. `prior`: base → how
    much it promises. `trial`: the units that the cycles could try.
    """

    estimates: Mapping[str, Estimate]
    worth: Mapping[str, float]
    prior: Mapping[str, float]
    trial: frozenset[str]


def choose(space: Space, levels: Levels, evidence: Evidence) -> Allocation:
    """Guard-free: a knapsack over everything that was measured, whatever its state, at all of its levels; then into what is left, by
    prior, what was not measured."""
    units = space.by_id
    items = {item.id: item for item in levels.items(evidence.worth)}
    found = knapsack.greedy(items.values(), space.capacity)
    best = knapsack.exact(list(items.values()), space.capacity)
    chosen, left = _filled(space, evidence, found.chosen)
    measured = {levels.base[u]: u for u, e in evidence.estimates.items() if e.audits}
    at = {units[u].group: u for u in chosen}

    def reason(unit: str) -> str:
        if unit not in items:
            return (
                "unmeasured: fills what is left, by promise"
                if unit in chosen
                else _why_not(space, evidence, unit, left)
            )
        source, credited = measured[levels.base[unit]], items[unit].value
        if source == unit:
            audits = evidence.estimates[unit].audits
            said = f"score {credited:+.4f} Dice over {audits} audit{'s' * (audits > 1)}"
        else:
            said = f"credited with {credited:+.4f} Dice for {items[source].value:+.4f} of {source}"
        if unit in chosen:
            return said
        if credited <= 0:
            return f"{said}: it does no good"
        other = at.get(units[unit].group)
        return f"{said}: {other} is taken here" if other else f"{said}: others give more Dice per parameter"

    decisions = tuple(
        Decision(
            u,
            ("keep" if measured.get(levels.base[u]) == u else "add") if u in chosen else "refuse",
            items[u].value if measured.get(levels.base[u]) == u else None,
            reason(u),
        )
        for u in units
    )
    return Allocation(space.in_order(chosen), (), decisions, found.value, best.value, knapsack.gap(found, best))


def _filled(space: Space, evidence: Evidence, by_worth: tuple[str, ...]) -> tuple[set[str], int]:
    """What was chosen by worth and, by prior, what still fits beside it of what was not measured; and the parameters left over."""
    units, chosen = space.by_id, set(by_worth)
    left = space.capacity - sum(units[u].cost for u in chosen)
    taken = {units[u].group for u in (*chosen, *evidence.worth)}
    for unit in by_density(units, evidence.prior):
        u = units[unit]
        if u.group not in taken and u.cost <= left and evidence.prior[unit] > 0:
            chosen.add(unit)
            taken.add(u.group)
            left -= u.cost
    return chosen, left


def _why_not(space: Space, evidence: Evidence, unit: str, left: int) -> str:
    u = space.by_id[unit]
    if u.cost > space.capacity:
        return f"costs {u.cost:,}, more than the whole budget for units ({space.capacity:,})"
    if unit not in evidence.prior:
        return "unmeasured: another level of this family stood for it here"
    if unit not in evidence.trial:
        return (
            f"never tried: the cycles have room for {len(evidence.trial)} units, and others promise more for their cost"
        )
    return f"unmeasured: lower promise per parameter than what was taken, and {left:,} parameters left"
