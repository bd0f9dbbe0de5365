"""Spatial black-box adapter: two convolutions on the features that the last layer classifies."""

import torch
import torch.nn.functional as F
from torch import nn

from sea_peft.adapters.base import Adapter, kaiming_uniform
from sea_peft.adapters.registry import register
from sea_peft.backbones import Site


@register
class BlackBox(Adapter):
    """x ← x + W₂ ⊗ ReLU(W₁ ⊗ x) on the input x of the backbone's last convolution, W₁ and W₂ 3×3×3
    and C → C.

    Source: the spatial adapter of FSEFT (arXiv 2303.17051), which needs nothing of the backbone but
    its features. Learning rate 1e-4 there over many more steps, 1e-3 here. W₁ is Kaiming-uniform
    and W₂ zero, so the unit starts as the identity. The target head sees the adapted features. Cost
    54·C².

    Shapes: first and second `[C, C, 3, 3, 3]`.
    """

    family = "black_box"
    order = 11
    kinds = frozenset({"conv"})
    stages = frozenset({"head"})
    on_input = True
    learning_rate = 1e-3

    def __init__(
        self, site: Site, module: nn.Module, level: int, placement: str, generator: torch.Generator
    ) -> None:
        super().__init__(site, module, level, placement, generator)
        shape = (site.in_channels, site.in_channels, 3, 3, 3)
        self.first = nn.Parameter(kaiming_uniform(shape, generator))
        self.second = nn.Parameter(torch.zeros(shape))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + F.conv3d(F.relu(F.conv3d(x, self.first, padding=1)), self.second, padding=1)
