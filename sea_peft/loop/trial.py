"""What `sea` tries, at which levels and in which order. Pure, over plain data."""

from __future__ import annotations

from collections.abc import Mapping

from sea_peft.adapters import Unit
from sea_peft.loop import knapsack
from sea_peft.loop.knapsack import Item
from sea_peft.loop.policies import Space


class Levels:
    """The levels of every (site, family, placement). The smallest of them, the base, stands for all; what a larger one is expected to bring
    grows with its cost: size = (cost / base's cost)^growth."""

    def __init__(self, space: Space, growth: float) -> None:
        smallest: dict[tuple[str, str], Unit] = {}
        for unit in space.units:
            key = unit.group, unit.placement
            smallest[key] = min(smallest.get(key, unit), unit, key=lambda u: (u.cost, u.id))
        self.bases = tuple(unit.id for unit in smallest.values())
        self.base = {u.id: smallest[u.group, u.placement].id for u in space.units}
        units = space.by_id
        self.size = {u.id: (u.cost / units[self.base[u.id]].cost) ** growth for u in space.units}


def on_trial(
    space: Space, levels: Levels, promise: Mapping[str, float], cycles: int, audit_units: int
) -> tuple[str, ...]:
    """One unit per (site, family), what all cycles together can try: a cycle tries what fits the budget, and measures `audit_units` of it.
    The rest is left out from the start, except that the budget is filled in any case.

    First what a knapsack takes before anything is known, when all units of a size are worth the same: the cheapest, at larger levels
    where all sites are served. Then the bases of the others by their promise per parameter. In that order and not the other way round:
    as a first choice promise is no better than cost (`python -m benchmarks what_predicts`).
    """
    units = space.by_id
    items = [Item(u.id, u.group, u.cost, levels.size[u.id]) for u in space.units]
    first = knapsack.greedy(items, space.capacity).chosen
    promising = sorted(promise, key=lambda u: (-promise[u] / units[u].cost, units[u].cost, u))
    room, chances = space.capacity * cycles, audit_units * cycles
    listed: dict[str, str] = {}
    for unit in (*first, *promising):
        u = units[unit]
        chance = unit in first or len(listed) < chances
        if chance and u.group not in listed and u.cost <= min(room, space.capacity):
            listed[u.group] = unit
            room -= u.cost
    return tuple(listed.values())
