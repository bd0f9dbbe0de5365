"""The audit space under its budget: the units on offer, their costs, and whether they fit. No other
module compares costs.
"""

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
        limit: the most that may be spent on trainable parts.
        head: the head's share of it.
        kind: what all these numbers count.
        costs: unit id → cost; None to use each unit's own.
    """

    units: tuple[Unit, ...]
    limit: int
    head: int
    _: dataclasses.KW_ONLY
    kind: Cost = PARAMETERS
    costs: Mapping[str, int] | None = None

    @property
    def capacity(self) -> int:
        """The budget that is left for units."""
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
        """The unit's share of the budget."""
        return unit.cost if self.costs is None else self.costs[unit.id]

    def total(self, units: Iterable[Unit]) -> int:
        """The cost of these units together."""
        return sum(self.cost(unit) for unit in units)

    def used(self, unit_ids: Iterable[str]) -> int:
        """The cost of these units and the head together."""
        return self.head + self.total(self.by_id[u] for u in unit_ids)

    def fits(self, units: Iterable[Unit]) -> bool:
        """Whether all of these can be open together."""
        return self.total(units) <= self.capacity

    def cheapest_first(self, units: Iterable[Unit] | None = None) -> list[Unit]:
        """These units, or all, by rising cost; of equal cost, the earlier site first."""
        return sorted(
            self.units if units is None else units, key=lambda u: (self.cost(u), u.site.order, u.id)
        )

    def item(self, unit_id: str, value: float) -> Item:
        """The unit as the knapsack sees it."""
        unit = self.by_id[unit_id]
        return Item(unit_id, unit.group, self.cost(unit), value)

    def room(self, capacity: float | None = None, taken: Iterable[Unit] = ()) -> Room:
        """Room for units: the whole capacity, or another amount, less the units already taken."""
        room = Room(self, self.capacity if capacity is None else capacity)
        for unit in taken:
            room.take(unit)
        return room


class Room:
    """Tracks what is left of an amount as units are taken, at most one level per (site, family)."""

    def __init__(self, space: Space, left: float) -> None:
        self._space = space
        self._taken: dict[str, Unit] = {}
        self.left = left

    def fits(self, unit: Unit, keep: float = 0, instead_of: Unit | None = None) -> bool:
        """Whether `unit` fits, beside the units already taken or `instead_of` one of them, and
        leaves at least `keep`.
        """
        freed = 0 if instead_of is None else self._space.cost(instead_of)
        free = unit.group not in self._taken or (
            instead_of is not None and instead_of.group == unit.group
        )
        return free and self._space.cost(unit) - freed <= self.left - keep

    def take(self, unit: Unit, keep: float = 0, instead_of: Unit | None = None) -> bool:
        """Take `unit` if it fits. Returns whether it did."""
        if not self.fits(unit, keep, instead_of):
            return False
        self.left -= self._space.cost(unit) - (
            0 if instead_of is None else self._space.cost(instead_of)
        )
        self._taken[unit.group] = unit
        return True

    def fill(self, units: Iterable[Unit]) -> list[Unit]:
        """Take units in the order given, as long as they fit. Returns those taken."""
        return [unit for unit in units if self.take(unit)]

    def part(self, of: int) -> Room:
        """A room of its own that holds an equal part of what is left."""
        return Room(self._space, self.left / of)
