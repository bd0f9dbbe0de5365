"""What chooses the active set. Every policy runs in the same loop; a fixed topology is a policy that does not listen."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from sea_peft.adapters import Unit


@dataclasses.dataclass(frozen=True)
class Space:
    """The audit space under its budget: the units on offer, the most parameters that may be trained, and what of that the head takes."""

    units: tuple[Unit, ...]
    limit: int
    head: int

    @property
    def capacity(self) -> int:
        """Parameters left for units."""
        return self.limit - self.head

    @functools.cached_property
    def by_id(self) -> dict[str, Unit]:
        """Unit id → unit."""
        return {unit.id: unit for unit in self.units}

    def in_order(self, unit_ids: Iterable[str]) -> tuple[str, ...]:
        """These units in the network's execution order."""
        units = self.by_id
        return tuple(sorted(unit_ids, key=lambda u: (units[u].site.order, u)))


@dataclasses.dataclass(frozen=True)
class Decision:
    """What was decided of one unit, and why. `decision`: keep, add, drop, probe or refuse. `value`: Dice, None while unmeasured."""

    unit: str
    decision: str
    value: float | None
    reason: str


@dataclasses.dataclass(frozen=True)
class Allocation:
    """The active set and the probes. `value`, `optimum`, `gap`: the knapsack's objective, its exact optimum, their relative gap."""

    active: tuple[str, ...]
    probes: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()
    value: float = 0.0
    optimum: float = 0.0
    gap: float = 0.0

    @property
    def open(self) -> tuple[str, ...]:
        """Everything that is trained: active units and probes."""
        return (*self.active, *self.probes)


class Policy(Protocol):
    """Chooses the active set, cycle by cycle, from what the loop tells it. Pure decisions: no tensors, no training.

    `audits`: whether the loop should audit for it. `outside_budget`: a comparison that the budget does not bind (full fine-tuning).
    `trial`: the units that it will try in all cycles together; none for a policy that tries nothing.
    """

    name: str
    audits: bool
    outside_budget: bool
    trial: tuple[str, ...]

    def to_promise(self, cycle: int) -> Sequence[str]:
        """Units whose promise the loop should measure before this cycle's allocation; empty for none."""
        ...

    def promised(self, cycle: int, promise: Mapping[str, float]) -> None:
        """What was asked for by `to_promise`."""
        ...

    def allocate(self, cycle: int) -> Allocation:
        """The set to train in this cycle."""
        ...

    def to_audit(self, cycle: int) -> Mapping[str, float]:
        """Open units to ablate after this cycle's training, each with the ΔDice at which the decision about it turns."""
        ...

    def audited(self, cycle: int, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """One audit's rows (unit, delta, spread); returns the ranking rows for the trace."""
        ...

    def final(self) -> Allocation:
        """The set to refit and ship."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything it remembers, as JSON types."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        ...


class Fixed:
    """A fixed topology: the same units from the first step to the last."""

    audits = False
    trial: tuple[str, ...] = ()

    def __init__(self, name: str, units: Sequence[Unit], reason: str, outside_budget: bool = False) -> None:
        self.name = name
        self.outside_budget = outside_budget
        self._units = tuple(units)
        self._reason = reason

    def to_promise(self, cycle: int) -> Sequence[str]:
        return ()

    def promised(self, cycle: int, promise: Mapping[str, float]) -> None:
        raise RuntimeError(f"{self.name} asks for no promise")

    def allocate(self, cycle: int) -> Allocation:
        decision = "add" if cycle == 0 else "keep"
        return Allocation(
            tuple(u.id for u in self._units),
            decisions=tuple(Decision(u.id, decision, None, self._reason) for u in self._units),
        )

    def to_audit(self, cycle: int) -> Mapping[str, float]:
        return {}

    def audited(self, cycle: int, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        raise RuntimeError(f"{self.name} asks for no audit")

    def final(self) -> Allocation:
        return self.allocate(1)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            raise ValueError(f"{self.name} has no state to load")
