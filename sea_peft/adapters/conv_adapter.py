"""ConvAdapter: a depth-wise, then a point-wise convolution, beside or after a residual block or
a convolution.
"""

import torch
import torch.nn.functional as F
from torch import nn

from sea_peft.adapters.base import Adapter, kaiming_uniform, keeps_up, pointwise
from sea_peft.adapters.registry import register
from sea_peft.backbones import Site
from sea_peft.backbones.sites import is_channels_last

# Up to this many channels, a dense convolution with zeros outside of the groups is faster than a
# grouped one, since oneDNN rounds the channels of every group up to sixteen. Measured, forward and
# backward: 2 times at 16 channels, 3 at 32 to 64, 2 at 128.
_DENSE = 256


@register
class ConvAdapter(Adapter):
    """h ← h + α ⊙ (W_point ⊗ ReLU(W_depth ⊗ z)), where z is the site's input ("parallel") or its
    output ("sequential").

    Source: Conv-Adapter (Chen et al. 2022, arXiv 2208.07463), eq. 2, as used for 3D CNNs by the
    thesis "PEFT of CNN-based 3D CT segmentation models". W_depth is a grouped 3×3×3 convolution C →
    C/γ, W_point is 1×1×1, C/γ → C_out, and α is a learnt vector of ones. W_point starts at zero
    (not in the thesis), so the unit starts as the identity. The level is γ, the reduction. Cost
    27·C + (C/γ)·C_out + C_out. Learning rate 1e-2 in FSEFT for its residual adapters; 3e-2 here
    (`python -m benchmarks learning_rates` compares rates).

    Shapes: depth `[C/γ, γ, 3, 3, 3]`, point `[C_out, C/γ]`, alpha `[C_out]`.
    """

    family = "conv_adapter"
    order = 2
    kinds = frozenset({"block", "conv"})
    levels = (2, 4, 8, 16)
    placements = ("parallel", "sequential")
    learning_rate = 3e-2

    @classmethod
    def fits(cls, site: Site, module: nn.Module, level: int, placement: str) -> bool:
        """The reduced width divides the input's channels and is at least two. A parallel branch
        must keep up with the site's stride.
        """
        channels = site.in_channels if placement == "parallel" else site.out_channels
        divides = channels % level == 0 and channels // level >= 2
        return divides and keeps_up(site) and not is_channels_last(module)

    def __init__(
        self, site: Site, module: nn.Module, level: int, placement: str, generator: torch.Generator
    ) -> None:
        super().__init__(site, module, level, placement, generator)
        self.parallel = placement == "parallel"
        channels = site.in_channels if self.parallel else site.out_channels
        self.stride = tuple(int(s) for s in site.stride) if self.parallel else (1, 1, 1)
        self.groups = channels // level
        self.depth = nn.Parameter(kaiming_uniform((self.groups, level, 3, 3, 3), generator))
        self.point = nn.Parameter(torch.zeros(site.out_channels, self.groups))
        self.alpha = nn.Parameter(torch.ones(site.out_channels))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = x if self.parallel else y
        hidden = F.relu(self._depth_wise(z))
        # α scales the point-wise rows: the same sum, and cheaper than scaling the volume
        return y + pointwise(hidden, self.alpha[:, None] * self.point, None, channels_last=False)

    def _depth_wise(self, z: torch.Tensor) -> torch.Tensor:
        """W_depth ⊗ z, [B, C/γ, ...]."""
        if z.shape[1] > _DENSE:
            return F.conv3d(z, self.depth, stride=self.stride, padding=1, groups=self.groups)
        blocks = torch.diag_embed(self.depth.movedim(0, -1)).permute(4, 5, 0, 1, 2, 3)
        return F.conv3d(z, blocks.flatten(1, 2), stride=self.stride, padding=1)
