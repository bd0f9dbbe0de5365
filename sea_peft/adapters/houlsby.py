"""Serial bottleneck adapter (Houlsby): a residual bottleneck after a sub-layer."""

import torch
import torch.nn.functional as F
from torch import nn

from sea_peft.adapters.bottleneck import Bottleneck
from sea_peft.adapters.registry import register
from sea_peft.backbones import Site


@register
class Houlsby(Bottleneck):
    """y ← y + U·GELU(D·y + d) + u. The level is b, the width of the bottleneck.

    Source: Houlsby et al. 2019 (arXiv 1902.00751), figure 2: after the attention and after the MLP
    of a transformer block. Here also after a single linear layer and, with 1×1×1 convolutions for D
    and U, after a residual block or a convolution. U and u start at zero (near zero in the paper),
    so the unit is the identity. Cost 2·b·C + b + C. Learning rate 1e-2, as FSEFT's (arXiv
    2303.17051) for adapters. Shapes: those of `Bottleneck`.
    """

    family = "houlsby"
    order = 8
    kinds = frozenset({"block", "linear", "conv"})

    @classmethod
    def fits(cls, site: Site, module: nn.Module, level: int, placement: str) -> bool:
        """The bottleneck must be narrower than its site."""
        return level < site.out_channels

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + self.raised(F.gelu(self.hidden(y)))
