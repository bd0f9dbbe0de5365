"""What a budget counts, and its name. Every module that adds up costs or writes one in a
sentence uses this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sea_peft.adapters import Unit
    from sea_peft.adapters.head import TargetHead


@dataclasses.dataclass(frozen=True)
class Cost:
    """One kind of cost: whole numbers that add up. Each is counted on a network and an input `[B,
    C, D, H, W]` that it takes.

    Attributes:
        one: its name, in the singular.
        of_units: unit id → cost of the unit, at least 1.
        of_head: cost of the head.
        of_backbone: the whole that a budget in per cent is a share of.
    """

    one: str
    of_units: Callable[[Iterable[Unit], nn.Module, torch.Tensor], dict[str, int]]
    of_head: Callable[[TargetHead, nn.Module, torch.Tensor], int]
    of_backbone: Callable[[nn.Module, torch.Tensor], int]

    @property
    def many(self) -> str:
        """Its name, in the plural."""
        return f"{self.one}s"


PARAMETERS = Cost(
    "parameter",
    of_units=lambda units, _network, _example: {unit.id: unit.cost for unit in units},
    of_head=lambda head, _network, _example: head.cost,
    of_backbone=lambda network, _example: sum(p.numel() for p in network.parameters()),
)
"""Trainable parameters: the real `numel`."""
