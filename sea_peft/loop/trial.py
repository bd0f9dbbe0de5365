"""Which units `sea` tries, at which levels and in which order. Pure, over plain data."""

import statistics
from collections.abc import Mapping, Sequence

from sea_peft.adapters import Unit
from sea_peft.loop import knapsack
from sea_peft.loop.space import Room, Space


class Levels:
    """The levels of each (site, family, placement).

    The smallest one, the base, stands for all of them. The expected gain of a larger one grows with
    its cost: size = (cost / cost of the base)^growth.
    """

    def __init__(self, space: Space, growth: float) -> None:
        smallest: dict[tuple[str, str], Unit] = {}
        for unit in space.units:
            key = unit.group, unit.placement
            smallest[key] = min(smallest.get(key, unit), unit, key=lambda u: (space.cost(u), u.id))
        self.bases = tuple(unit.id for unit in smallest.values())
        self.base = {u.id: smallest[u.group, u.placement].id for u in space.units}
        units = space.by_id
        self.size = {
            u.id: (space.cost(u) / space.cost(units[self.base[u.id]])) ** growth
            for u in space.units
        }


def prior(
    units: Mapping[str, Unit], saliency: Mapping[str, float], weight: float
) -> dict[str, float]:
    """A unit's worth before any audit, relative to an average unit of its family: 1 − weight +
    weight · saliency / its family's mean saliency.

    Saliency is compared within a family only, since gradients of different designs differ in scale:
    a zero-initialised matrix gets larger ones than the outer half of a product. It makes up half of
    the worth at most, since a large first gradient says more about the first steps than about the
    last.
    """
    own: dict[str, list[float]] = {}
    for unit, value in saliency.items():
        own.setdefault(units[unit].family, []).append(value)
    mean = {family: statistics.fmean(values) for family, values in own.items()}
    return {
        u: 1 - weight + weight * value / mean[units[u].family] if mean[units[u].family] > 0 else 1.0
        for u, value in saliency.items()
    }


def by_density(space: Space, prior: Mapping[str, float]) -> list[str]:
    """Unit ids by falling worth per cost."""
    cost = {u: space.cost(space.by_id[u]) for u in prior}
    return sorted(prior, key=lambda u: (-prior[u] / cost[u], cost[u], u))


def on_trial(
    space: Space, levels: Levels, prior: Mapping[str, float], cycles: int, audit_units: int
) -> tuple[str, ...]:
    """The units that all cycles together can try, at most one per (site, family).

    A cycle tries as much as fits the budget, and measures `audit_units` of it. The list begins with
    the units that a knapsack would take by `prior` alone; then come the bases of the others by
    density. Units beyond it are left out from the start, but the budget is filled in any case.
    """
    units = space.by_id
    items = [space.item(u.id, prior[levels.base[u.id]] * levels.size[u.id]) for u in space.units]
    first = knapsack.greedy(items, space.capacity).chosen
    room, chances = space.room(space.capacity * cycles), max(len(first), audit_units * cycles)
    listed: list[str] = []
    for unit in (*first, *by_density(space, prior)):
        if len(listed) < chances and space.fits([units[unit]]) and room.take(units[unit]):
            listed.append(unit)
    return tuple(listed)


def probes(
    room: Room,
    units: Mapping[str, Unit],
    incumbents: Sequence[str],
    untried: Sequence[str],
    tried: Sequence[str],
    kept: int,
) -> dict[str, str]:
    """Fill what active units leave of the budget with units on trial.

    Args:
        room: what they leave.
        units: id → unit.
        incumbents: the probes of the last cycle, the most promising first. They make room for
            newcomers.
        untried: units that were never open, in the order of the trial.
        tried: idle units, longest untried first.
        kept: of the room, for newcomers.

    Returns:
        Probe → reason in words, in the order in which they were taken.
    """
    taken: dict[str, str] = {}

    def take(unit: str, reason: str, keep: int = 0) -> None:
        if unit not in taken and room.take(units[unit], keep):
            taken[unit] = reason

    for unit in incumbents:
        take(unit, "still under trial", kept)
    for unit in untried:
        take(unit, "by saliency")
    for unit in incumbents:
        take(unit, "still under trial")
    for unit in tried:
        take(unit, "by debt: longest untried")
    return taken
