"""What a budget counts, and what that is called. Whoever adds costs up or writes one in a sentence asks here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sea_peft.adapters import Unit
    from sea_peft.adapters.head import TargetHead
    from sea_peft.backbones.weights import Pretrained


@dataclasses.dataclass(frozen=True)
class Cost:
    """One kind of cost: whole numbers that add up.

    Attributes:
        one: what it is called, in the singular.
        of_unit: what a unit takes of a budget, at least 1.
        of_head: what the head takes.
        of_backbone: what a budget in per cent is a share of.
    """

    one: str
    of_unit: Callable[[Unit], int]
    of_head: Callable[[TargetHead], int]
    of_backbone: Callable[[Pretrained], int]

    @property
    def many(self) -> str:
        """What it is called, in the plural."""
        return f"{self.one}s"


PARAMETERS = Cost(
    "parameter",
    of_unit=lambda unit: unit.cost,
    of_head=lambda head: head.cost,
    of_backbone=lambda pretrained: pretrained.parameters,
)
"""What is trainable: the real `numel`."""
