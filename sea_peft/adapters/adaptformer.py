"""AdaptFormer: a bottleneck beside the MLP of a transformer block."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from sea_peft.adapters.base import CannotMerge
from sea_peft.adapters.bottleneck import Bottleneck
from sea_peft.adapters.registry import register
from sea_peft.backbones import Site
from sea_peft.backbones.growth import mlp_layers
from sea_peft.backbones.sites import is_channels_last

_SCALE = 0.1
# k of a(k·z)/k ≈ ReLU(z): off by 0.17/k at most with GELU, 0.28/k with SiLU, and still within half
# precision where |z| < 16
_STEEP = 4096.0


@register
class AdaptFormer(Bottleneck):
    """y ← MLP(x) + 0.1·(U·ReLU(D·x + d) + u), where x is the MLP's own, already normed input. The
    level is b, the width of the bottleneck.

    Source: Chen et al. 2022 (arXiv 2205.13535), eqs. 4 and 5. FSEFT (arXiv 2303.17051) uses b = 16
    with learning rate 1e-2, on the input before the norm. U and u start at zero, so the unit is the
    identity. Merged, it becomes b more hidden units of the MLP, whose activation is made steep
    enough there to act as ReLU. Cost 2·b·C + b + C. Shapes: those of `Bottleneck`.
    """

    family = "adaptformer"
    order = 7
    kinds = frozenset({"block"})
    merged_within = 1e-4

    @classmethod
    def channels(cls, site: Site) -> int:
        return site.in_channels

    @classmethod
    def fits(cls, site: Site, module: nn.Module, level: int, placement: str) -> bool:
        """Only at an MLP, and narrower than it."""
        return level < site.in_channels and _is_mlp(module, site.in_channels)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + self.raised(F.relu(self.hidden(x)), _SCALE)

    def merged(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        (block,) = self._site
        layers = mlp_layers(block)
        if layers is None:
            raise CannotMerge(
                "its site is not an MLP of two linear layers and an activation that can imitate"
                " ReLU"
            )
        first, second = layers
        steep = [(f"{first}.weight", self.down), (f"{first}.bias", self.down_bias)]
        grown = {key: torch.cat([tensors[key], _STEEP * more]) for key, more in steep}
        up = self.up * (_SCALE / _STEEP)
        grown[f"{second}.weight"] = torch.cat([tensors[f"{second}.weight"], up], dim=1)
        if self.up_bias is not None:
            grown[f"{second}.bias"] = tensors[f"{second}.bias"] + _SCALE * self.up_bias
        return grown


def _is_mlp(block: nn.Module, channels: int) -> bool:
    """Whether a block is linear–activation–linear and returns to its channels.

    A gated activation halves the width between the two layers. In an attention, the first layer
    makes three tensors of the size that the second takes.
    """
    layers = [m for m in block.modules() if isinstance(m, nn.Linear)]
    if len(layers) != 2 or not is_channels_last(block):
        return False
    first, second = layers
    between = first.out_features in (second.in_features, 2 * second.in_features)
    return between and first.in_features == second.out_features == channels
