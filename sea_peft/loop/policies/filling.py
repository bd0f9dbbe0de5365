"""What several topologies are made of: one unit at every site, and filling a budget in a given order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sea_peft.adapters import Unit, total_cost


def everywhere(own: Sequence[Unit], level: int, placement: str) -> list[Unit]:
    """One unit per site: the asked level, or the largest smaller one where the site is too narrow for it."""
    at: dict[str, Unit] = {}
    for unit in sorted(own, key=lambda u: u.level):
        if unit.placement == placement and (unit.level <= level or unit.site.path not in at):
            at[unit.site.path] = unit
    return list(at.values())


def cheapest_first(units: Iterable[Unit]) -> list[Unit]:
    """By cost; the earlier site first where costs are equal."""
    return sorted(units, key=lambda u: (u.cost, u.site.order, u.id))


def fill(units: Iterable[Unit], capacity: int, taken: Sequence[Unit] = ()) -> list[Unit]:
    """`taken` and, in the order given, what of `units` still fits into `capacity` parameters; one level per (site, family)."""
    chosen = list(taken)
    left = capacity - total_cost(chosen)
    groups = {u.group for u in chosen}
    for unit in units:
        if unit.cost <= left and unit.group not in groups:
            chosen.append(unit)
            groups.add(unit.group)
            left -= unit.cost
    return chosen
