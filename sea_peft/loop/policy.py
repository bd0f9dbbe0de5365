"""The interface between the loop and the policy that chooses the active set."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sea_peft.loop.knapsack import Item
from sea_peft.loop.rows import Ablation, Decision, Ranking
from sea_peft.loop.space import Space
from sea_peft.loop.utility import Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Allocation:
    """The active set and the probes.

    Attributes:
        active: ids of the active units.
        probes: ids of the units on probation.
        decisions: one per unit that was considered.
        value: the knapsack's objective.
        items: the items that the knapsack chose from.
        capacity: the cost that it could spend.
    """

    active: tuple[str, ...]
    probes: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()
    value: float = 0.0
    items: tuple[Item, ...] = ()
    capacity: int = 0

    @property
    def open(self) -> tuple[str, ...]:
        """Everything that is trained: active units and probes."""
        return (*self.active, *self.probes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoesOn:
    """Settings of a policy that can go on from an earlier run.

    Attributes:
        carried: unit that is on from the start → the estimate that the earlier run's audits left of
            it.
    """

    carried: Mapping[str, Estimate] = dataclasses.field(default_factory=dict)


class Policy(abc.ABC):
    """Chooses the active set, cycle by cycle, from what the loop tells it. Pure decisions: no
    tensors, no training.

    A policy must define `allocate` and `final`, which choose the open units. Every other method is
    a hook that does nothing unless it is overridden.

    Attributes:
        audits: whether the loop audits for it and compares the result with the baseline.
        outside_budget: whether it ignores the budget, as full fine-tuning does; for comparisons.
        head_alone: whether it never opens a unit.
        settings: a frozen dataclass of plain values, or None.
        trial: ids of the units that it will try in all cycles together.
        most_audited: most units that one audit ablates; None for every open one.
    """

    audits = False
    outside_budget = False
    head_alone = False
    settings: Any = None
    trial: tuple[str, ...] = ()
    most_audited: int | None = None

    def __init__(self, name: str, space: Space) -> None:
        self.name = name
        self.space = space

    @abc.abstractmethod
    def allocate(self, cycle: int) -> Allocation:
        """The set to train in this cycle."""

    @abc.abstractmethod
    def final(self) -> Allocation:
        """The set to refit and ship."""

    def needs_saliency(self, cycle: int) -> Sequence[str]:
        """Units whose saliency the loop should measure before this cycle's allocation; empty
        for none.
        """
        return ()

    def told_saliency(self, cycle: int, saliency: Mapping[str, float]) -> None:  # noqa: B027  (most policies ask for none)
        """Receive the saliencies that `needs_saliency` asked for."""

    def to_audit(self, cycle: int) -> Mapping[str, float]:
        """Open units to ablate after this cycle's training, each with the ΔDice at which the
        decision about it changes.
        """
        return {}

    def audited(self, cycle: int, rows: Sequence[Ablation]) -> list[Ranking]:
        """Receive one audit's rows. Returns the ranking rows for the trace."""
        return []

    def state_dict(self) -> dict[str, object]:
        """Everything that the policy remembers, as JSON types."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore the state that `state_dict` returned."""
        if state:
            raise ValueError(f"{self.name} has no state to load")
