"""The shared part of AdaptFormer and Houlsby's adapter: down to a few channels, an activation,
up again.
"""

import torch
from torch import nn

from sea_peft.adapters.base import Adapter, kaiming_uniform, pointwise, shift_parameter
from sea_peft.backbones import Site


class Bottleneck(Adapter):
    """U·a(D·z + d) + u, at every token or voxel of z. The level is b, the width of the bottleneck.

    D is Kaiming-uniform; U, d and u are zero, so the branch starts as zero. There is no u if a norm
    would remove it again.

    Shapes: down `[b, C]`, down_bias `[b]`, up `[C_out, b]`, up_bias `[C_out]`. Cost b·(C + C_out) +
    b + C_out.
    """

    levels = (4, 8, 16, 32, 64)
    learning_rate = 1e-2

    def __init__(
        self, site: Site, module: nn.Module, level: int, placement: str, generator: torch.Generator
    ) -> None:
        super().__init__(site, module, level, placement, generator)
        self.down = nn.Parameter(kaiming_uniform((level, self.channels(site)), generator))
        self.down_bias = nn.Parameter(torch.zeros(level))
        self.up = nn.Parameter(torch.zeros(site.out_channels, level))
        self.up_bias = shift_parameter(site)

    @classmethod
    def channels(cls, site: Site) -> int:
        """C, the channels of z: those of the output, unless the family gives it the site's
        input.
        """
        return site.out_channels

    def hidden(self, z: torch.Tensor) -> torch.Tensor:
        """D·z + d."""
        return pointwise(z, self.down, self.down_bias, self.channels_last)

    def raised(self, hidden: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
        """factor·(U·hidden + u)."""
        up: torch.Tensor = self.up
        bias: torch.Tensor | None = self.up_bias
        if factor != 1.0:
            up = factor * up
            bias = None if bias is None else factor * bias
        return pointwise(hidden, up, bias, self.channels_last)

    @torch.no_grad()
    def inherit(self, smaller: Adapter) -> None:
        """Take over the smaller unit's hidden units. The added ones have U = 0, so the function
        is the same.
        """
        assert isinstance(smaller, Bottleneck)
        width = smaller.down.shape[0]
        self.down[:width], self.down_bias[:width], self.up[:, :width] = (
            smaller.down,
            smaller.down_bias,
            smaller.up,
        )
        if self.up_bias is not None and smaller.up_bias is not None:
            self.up_bias.copy_(smaller.up_bias)
