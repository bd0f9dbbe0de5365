"""The audit space under its budget: what is on offer, what it takes of the budget, and whether it fits. Nothing else compares costs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping

from sea_peft.adapters import Unit
from sea_peft.loop.cost import PARAMETERS, Cost
from sea_peft.loop.knapsack import Item


@dataclasses.dataclass(frozen=True)
class Space:
    """The units on offer under a budget.

    Attributes:
        units: on offer.
        limit: the most that may be spent on what is trained.
        head: what of that the head takes.
        kind: what all these numbers count.
        costs: unit id → what it takes; None: what the unit says itself.
    """

    units: tuple[Unit, ...]
    limit: int
    head: int
    _: dataclasses.KW_ONLY
    kind: Cost = PARAMETERS
    costs: Mapping[str, int] | None = None

    @property
    def capacity(self) -> int:
        """What is left for units."""
        return self.limit - self.head

    @functools.cached_property
    def by_id(self) -> dict[str, Unit]:
        """Unit id → unit."""
        return {unit.id: unit for unit in self.units}

    def in_order(self, unit_ids: Iterable[str]) -> tuple[str, ...]:
        """These units in the network's execution order."""
        units = self.by_id
        return tuple(sorted(unit_ids, key=lambda u: (units[u].site.order, u)))

    def cost(self, unit: Unit) -> int:
        """What this unit takes of the budget."""
        return unit.cost if self.costs is None else self.costs[unit.id]

    def total(self, units: Iterable[Unit]) -> int:
        """What these units take together."""
        return sum(self.cost(unit) for unit in units)

    def used(self, unit_ids: Iterable[str]) -> int:
        """What is spent when these units are open: the head's share and theirs."""
        return self.head + self.total(self.by_id[u] for u in unit_ids)

    def fits(self, units: Iterable[Unit]) -> bool:
        """Whether all of these can be open together."""
        return self.total(units) <= self.capacity

    def cheapest_first(self, units: Iterable[Unit] | None = None) -> list[Unit]:
        """These units, or all, by cost; the earlier site first where costs are equal."""
        return sorted(self.units if units is None else units, key=lambda u: (self.cost(u), u.site.order, u.id))

    def item(self, unit_id: str, value: float) -> Item:
        """The unit as the knapsack sees it."""
        unit = self.by_id[unit_id]
        return Item(unit_id, unit.group, self.cost(unit), value)

    def room(self, capacity: float | None = None, taken: Iterable[Unit] = ()) -> Room:
        """Room for units: the whole capacity, or another amount, less what is taken."""
        room = Room(self, self.capacity if capacity is None else capacity)
        for unit in taken:
            room.take(unit)
        return room


class Room:
    """What is left of an amount as units are taken into it, at most one level of a (site, family)."""

    def __init__(self, space: Space, left: float) -> None:
        self._space = space
        self._taken: dict[str, Unit] = {}
        self.left = left

    def fits(self, unit: Unit, keep: float = 0, instead_of: Unit | None = None) -> bool:
        """Whether `unit` fits and leaves `keep`, beside what was taken or in the place of one that was."""
        freed = 0 if instead_of is None else self._space.cost(instead_of)
        free = unit.group not in self._taken or (instead_of is not None and instead_of.group == unit.group)
        return free and self._space.cost(unit) - freed <= self.left - keep

    def take(self, unit: Unit, keep: float = 0, instead_of: Unit | None = None) -> bool:
        """Take `unit` in where it fits; says whether it did."""
        if not self.fits(unit, keep, instead_of):
            return False
        self.left -= self._space.cost(unit) - (0 if instead_of is None else self._space.cost(instead_of))
        self._taken[unit.group] = unit
        return True

    def fill(self, units: Iterable[Unit]) -> list[Unit]:
        """Greedy filling: in the order given, what still fits."""
        return [unit for unit in units if self.take(unit)]

    def part(self, of: int) -> Room:
        """One of so many equal parts of what is left, as a room of its own."""
        return Room(self._space, self.left / of)
