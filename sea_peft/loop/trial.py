"""What `sea` tries, and in which order: by promise, as far as the cycles have room. Pure, over plain data."""

from __future__ import annotations

from collections.abc import Mapping

from sea_peft.adapters import Unit
from sea_peft.loop.policies import Space


def starting_levels(space: Space) -> tuple[str, ...]:
    """For every (site, family, placement) the unit that stands for its group until something is known: the middle level, or the largest
    smaller one that leaves three quarters of the budget to others; where none does, the smallest."""
    grouped: dict[tuple[str, str], list[Unit]] = {}
    for unit in space.units:
        grouped.setdefault((unit.group, unit.placement), []).append(unit)
    starting = []
    for group in grouped.values():
        rising = sorted(group, key=lambda u: (u.cost, u.id))
        modest = [u for u in rising[: len(rising) // 2 + 1] if u.cost <= space.capacity / 4]
        starting.append((modest or rising[:1])[-1].id)
    return tuple(starting)


def by_promise(units: Mapping[str, Unit], promise: Mapping[str, float]) -> list[str]:
    """Units whose promise was measured, highest promise per parameter first.

    `python -m benchmarks what_predicts` holds sets filled in this order against other ways of choosing, by their Dice after training."""
    return sorted(promise, key=lambda u: (-promise[u] / units[u].cost, units[u].cost, u))


def on_trial(space: Space, promise: Mapping[str, float], cycles: int, audit_units: int) -> tuple[str, ...]:
    """By promise, one unit per (site, family), what all cycles together can try: a cycle tries what fits the budget, and measures
    `audit_units` of it. The rest is left out from the start."""
    units = space.by_id
    room, chances = space.capacity * cycles, audit_units * cycles
    listed: dict[str, str] = {}
    for unit in by_promise(units, promise):
        u = units[unit]
        if u.group not in listed and u.cost <= min(room, space.capacity) and len(listed) < chances:
            listed[u.group] = unit
            room -= u.cost
    return tuple(listed.values())
