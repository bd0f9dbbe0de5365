"""AdaptFormer: a bottleneck beside the MLP of a transformer block."""

import torch
import torch.nn.functional as F
from torch import nn

from sea_peft.adapters.bottleneck import Bottleneck
from sea_peft.adapters.registry import register
from sea_peft.backbones import Site
from sea_peft.backbones.sites import is_channels_last

_SCALE = 0.1


@register
class AdaptFormer(Bottleneck):
    """y ← MLP(x) + 0.1·(U·ReLU(D·x + d) + u), x the MLP's own, already normed input. The level is b, the width of the bottleneck.

    Source: Chen et al. 2022 (arXiv 2205.13535), eqs. 4 and 5; FSEFT (arXiv 2303.17051) uses b = 16 with learning rate 1e-2, on the input before
    the norm. U and u start at zero, so the unit is the identity. Cost 2·b·C + b + C. Shapes: those of `Bottleneck`.
    """

    family = "adaptformer"
    order = 7
    kinds = frozenset({"block"})

    @classmethod
    def channels(cls, site: Site) -> int:
        return site.in_channels

    @classmethod
    def fits(cls, site: Site, module: nn.Module, level: int, placement: str) -> bool:
        """Only at an MLP, and narrower than it."""
        return level < site.in_channels and _is_mlp(module, site.in_channels)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + self.raised(F.relu(self.hidden(x)), _SCALE)


def _is_mlp(block: nn.Module, channels: int) -> bool:
    """Whether a block is linear–activation–linear and back to its channels; a gated activation halves the width between the two. In an
    attention the first layer makes three tensors of what the second takes."""
    layers = [m for m in block.modules() if isinstance(m, nn.Linear)]
    if len(layers) != 2 or not is_channels_last(block):
        return False
    first, second = layers
    between = first.out_features in (second.in_features, 2 * second.in_features)
    return between and first.in_features == second.out_features == channels
