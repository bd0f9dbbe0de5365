"""The conversation of the loop with what chooses the active set."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sea_peft.loop.knapsack import Item
from sea_peft.loop.rows import Ablation, Decision, Ranking
from sea_peft.loop.space import Space


@dataclasses.dataclass(frozen=True, kw_only=True)
class Allocation:
    """The active set and the probes. `value`: the knapsack's objective; `items`, `capacity`: what it chose from, and how much of it."""

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


class Policy(abc.ABC):
    """Chooses the active set, cycle by cycle, from what the loop tells it. Pure decisions: no tensors, no training.

    A policy must define `allocate` and `final`, which say what is on. Every other method is a hook that does nothing unless it is overridden.

    Attributes:
        audits: whether the loop audits for it, and compares what it finds with the baseline.
        outside_budget: whether the budget does not bind it, as in full fine-tuning, which is there for comparison.
        head_alone: whether it never opens a unit.
        settings: a frozen dataclass of plain values, None where it has none.
        trial: the units that it will try in all cycles together.
    """

    audits = False
    outside_budget = False
    head_alone = False
    settings: Any = None
    trial: tuple[str, ...] = ()

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
        """Units whose saliency the loop should measure before this cycle's allocation; empty for none."""
        return ()

    def told_saliency(self, cycle: int, saliency: Mapping[str, float]) -> None:  # noqa: B027  (most policies ask for none)
        """What was asked for by `needs_saliency`."""

    def to_audit(self, cycle: int) -> Mapping[str, float]:
        """Open units to ablate after this cycle's training, each with the ΔDice at which the decision about it turns."""
        return {}

    def audited(self, cycle: int, rows: Sequence[Ablation]) -> list[Ranking]:
        """One audit's rows; returns the ranking rows for the trace."""
        return []

    def state_dict(self) -> dict[str, object]:
        """Everything it remembers, as JSON types."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from what `state_dict` gave."""
        if state:
            raise ValueError(f"{self.name} has no state to load")
