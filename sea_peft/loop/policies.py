"""What chooses the active set. Every policy runs in the same loop; a fixed topology is a policy that does not listen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from sea_peft.adapters import Offer, Unit, total_cost
from sea_peft.errors import BudgetError, UsageError


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

    @property
    def by_id(self) -> dict[str, Unit]:
        """Unit id → unit."""
        return {unit.id: unit for unit in self.units}


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
    """

    name: str
    audits: bool
    outside_budget: bool

    def to_promise(self, cycle: int) -> Sequence[str]:
        """Units whose promise the loop should measure before this cycle's allocation; empty for none."""
        ...

    def promised(self, cycle: int, promise: Mapping[str, float]) -> None:
        """What was asked for by `to_promise`."""
        ...

    def allocate(self, cycle: int) -> Allocation:
        """The set to train in this cycle."""
        ...

    def to_audit(self, cycle: int) -> Sequence[str]:
        """Open units to ablate after this cycle's training."""
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

    def to_audit(self, cycle: int) -> Sequence[str]:
        return ()

    def audited(self, cycle: int, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        raise RuntimeError(f"{self.name} asks for no audit")

    def final(self) -> Allocation:
        return self.allocate(1)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            raise ValueError(f"{self.name} has no state to load")


def _uniform(family: str) -> Callable[[Space, int], tuple[list[Unit], str]]:
    """One family everywhere, at the largest level at which all of it fits; where not even the smallest fits, filled from the cheapest."""

    def choose(space: Space, seed: int) -> tuple[list[Unit], str]:
        own = [u for u in space.units if u.family == family]
        variants = sorted({(u.level, u.placement) for u in own})
        topologies = [_everywhere(own, *variant) for variant in variants]
        affordable = [t for t in topologies if total_cost(t) <= space.capacity]
        if affordable:
            best = max(affordable, key=lambda t: (total_cost(t), t[0].id))
            return best, f"fixed topology: {family} everywhere, at the largest level that fits"
        cheapest = min(topologies, key=lambda t: (total_cost(t), t[0].id), default=[])
        return _fill(cheapest, space.capacity), f"fixed topology: {family}, from the cheapest site up"

    return choose


def _everywhere(own: Sequence[Unit], level: int, placement: str) -> list[Unit]:
    """One unit per site: the asked level, or the largest smaller one where the site is too narrow for it."""
    at: dict[str, Unit] = {}
    for unit in sorted(own, key=lambda u: u.level):
        if unit.placement == placement and (unit.level <= level or unit.site.path not in at):
            at[unit.site.path] = unit
    return list(at.values())


def _fill(units: Sequence[Unit], capacity: int, taken: Sequence[Unit] = ()) -> list[Unit]:
    """`taken` and, from the cheapest up, what of `units` still fits; one level per (site, family)."""
    chosen = list(taken)
    left = capacity - total_cost(chosen)
    groups = {u.group for u in chosen}
    for unit in sorted(units, key=lambda u: (u.cost, u.site.order, u.id)):
        if unit.cost <= left and unit.group not in groups:
            chosen.append(unit)
            groups.add(unit.group)
            left -= unit.cost
    return chosen


def _affine_lora(space: Space, seed: int) -> tuple[list[Unit], str]:
    affine = _fill([u for u in space.units if u.family == "affine"], space.capacity)
    lora = [u for u in space.units if u.family == "lora" and u.level == 4]
    return _fill(lora, space.capacity, affine), "fixed topology: affine everywhere, LoRA r4 from the cheapest site up"


def _cheapest(space: Space, seed: int) -> tuple[list[Unit], str]:
    return _fill(space.units, space.capacity), "fixed topology: cheapest unit first, over the whole audit space"


def _random(space: Space, seed: int) -> tuple[list[Unit], str]:
    order = np.random.default_rng([seed, 7]).permutation(len(space.units))
    chosen: list[Unit] = []
    groups: set[str] = set()
    left = space.capacity
    for unit in (space.units[i] for i in order):
        if unit.cost <= left and unit.group not in groups:
            chosen.append(unit)
            groups.add(unit.group)
            left -= unit.cost
    return chosen, f"random subset, seed {seed}"


def _head_only(space: Space, seed: int) -> tuple[list[Unit], str]:
    return [], "fixed topology: the head alone"


def _full(space: Space, seed: int) -> tuple[list[Unit], str]:
    units = [u for u in space.units if u.family in ("full", "affine")]
    return units, "full fine-tuning, outside the budget"


_CHOICES: dict[str, Callable[[Space, int], tuple[list[Unit], str]]] = {
    "lora": _uniform("lora"),
    "affine": _uniform("affine"),
    "bias": _uniform("bias"),
    "conv_adapter": _uniform("conv_adapter"),
    "affine_lora": _affine_lora,
    "cheapest": _cheapest,
    "random": _random,
    "head_only": _head_only,
    "full": _full,
}
OUTSIDE_BUDGET = frozenset({"full"})
FIXED_POLICIES = tuple(_CHOICES)

_BLOCKS = Offer(placements=("parallel",), kinds=("block",))
_OFFERS: dict[str, dict[str, Offer]] = {
    "lora": {"lora": Offer()},
    "affine": {"affine": Offer()},
    "bias": {"bias": Offer()},
    "conv_adapter": {"conv_adapter": _BLOCKS},
    "affine_lora": {"affine": Offer(), "lora": Offer(levels=(4,))},
    "full": {"full": Offer(), "affine": Offer()},
}


def policy_offers(name: str) -> dict[str, Offer]:
    """What a fixed topology needs on offer, whatever the budget profile says; nothing for policies that choose from the profile."""
    return _OFFERS.get(name, {})



def fixed_policy(name: str, space: Space, seed: int) -> Fixed:
    """The fixed topology called `name` under the space's budget. Raises UsageError for an unknown name, BudgetError when none of it fits."""
    if name not in _CHOICES:
        raise UsageError(f"No policy is called {name!r}; there are sea, {', '.join(_CHOICES)}.")
    units, reason = _CHOICES[name](space, seed)
    if not units and name != "head_only":
        raise BudgetError(
            f"Policy {name} fits no unit into {space.capacity:,} parameters on this backbone and profile; "
            "raise --budget or choose another --policy."
        )
    return Fixed(name, units, reason, outside_budget=name in OUTSIDE_BUDGET)
