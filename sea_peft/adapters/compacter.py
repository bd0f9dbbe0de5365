"""Compacter: a serial bottleneck whose matrices are sums of Kronecker products."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from sea_peft.adapters.base import Adapter, pointwise, shift_parameter
from sea_peft.adapters.registry import register
from sea_peft.backbones import Site


class _Hypercomplex(nn.Module):
    """A matrix W = Σᵢ Aᵢ ⊗ sᵢtᵢᵀ `[out, in]`, i = 1..n, where ⊗ is Kronecker's product.

    Shapes: rule A `[n, n, n]`, left s `[n, out/n]`, right t `[n, in/n]`.
    """

    def __init__(self, width_in: int, width_out: int, n: int, generator: torch.Generator) -> None:
        """Random, with the variance of a Kaiming-uniform matrix (a = √5)."""
        super().__init__()
        self.rule = nn.Parameter(torch.randn((n, n, n), generator=generator) / math.sqrt(n))
        self.left = nn.Parameter(
            (torch.rand((n, width_out // n), generator=generator) * 2 - 1) * math.sqrt(3)
        )
        self.right = nn.Parameter(
            (torch.rand((n, width_in // n), generator=generator) * 2 - 1) / math.sqrt(width_in)
        )

    def forward(self) -> torch.Tensor:
        """W."""
        n = self.rule.shape[0]
        blocks = torch.einsum("nab,nc,nd->acbd", self.rule, self.left, self.right)
        return blocks.reshape(n * self.left.shape[1], n * self.right.shape[1])


@register
class Compacter(Adapter):
    """y ← y + U·GELU(D·y + d) + u, where D and U are hypercomplex matrices: W = Σᵢ Aᵢ ⊗ sᵢtᵢᵀ with
    n terms. The level is n.

    Source: Mahabadi et al. 2021 (arXiv 2106.04647), eqs. 4 to 8, after attentions, MLPs and single
    layers; here also with 1×1×1 convolutions. Each unit has its own rules Aᵢ instead of sharing
    them, since a unit may not depend on another. The bottleneck is a quarter of the width. U's tᵢ,
    d and u start at zero, so the unit is the identity. FSEFT (arXiv 2303.17051; n = 4, learning
    rate 1e-2) has one such full matrix instead of a bottleneck, which is not the identity at the
    start. Cost 2·(n³ + C + b) + b + C with b = C/4.

    Shapes: down and up each have rule `[n, n, n]`, left `[n, out/n]` and right `[n, in/n]`;
    down_bias `[b]`, up_bias `[C]`.
    """

    family = "compacter"
    order = 9
    kinds = frozenset({"block", "linear", "conv"})
    levels = (2, 4)
    learning_rate = 1e-2

    @classmethod
    def fits(cls, site: Site, module: nn.Module, level: int, placement: str) -> bool:
        return site.out_channels % level == 0 and site.out_channels >= 4 * level

    def __init__(
        self, site: Site, module: nn.Module, level: int, placement: str, generator: torch.Generator
    ) -> None:
        super().__init__(site, module, level, placement, generator)
        width = site.out_channels // (4 * level) * level
        self.down = _Hypercomplex(site.out_channels, width, level, generator)
        self.up = _Hypercomplex(width, site.out_channels, level, generator)
        nn.init.zeros_(self.up.right)
        self.down_bias = nn.Parameter(torch.zeros(width))
        self.up_bias = shift_parameter(site)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        hidden = F.gelu(pointwise(y, self.down(), self.down_bias, self.channels_last))
        return y + pointwise(hidden, self.up(), self.up_bias, self.channels_last)
