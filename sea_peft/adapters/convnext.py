"""ConvNeXt-style adapter of PEFT-MedNeXt: a small MedNeXt block after or beside a block of the
backbone.
"""

import torch
import torch.nn.functional as F
from torch import nn

from sea_peft.adapters.base import Adapter, kaiming_uniform, keeps_up, pointwise, shift_parameter
from sea_peft.adapters.registry import register
from sea_peft.backbones import Site
from sea_peft.backbones.sites import is_channels_last

_EPS = 1e-5


@register
class ConvNeXt(Adapter):
    """y ← y + W_project·GELU(W_expand·GN(W_depth ⊗ z) + b) + u, where z is the block's output
    ("sequential") or its input ("parallel").

    Source: PEFT-MedNeXt (arXiv 2412.14100), with the block of MedNeXt (arXiv 2303.09975): a
    depth-wise 3×3×3 convolution, group norm with one group per channel, and 1×1×1 convolutions to
    e·C and to C_out. The level is e, the expansion; the paper has e = 2, sequential, after each
    stage. W_project and u start at zero (not in the paper), so the unit is the identity. The
    depth-wise convolution has no bias, since the norm would remove it; nor is there a u in front of
    such a norm. Cost 27·C + 2·C + e·C·(C + 1 + C_out) + C_out. Learning rate 2e-3, the paper's.

    Shapes: depth `[C, 1, 3, 3, 3]`, scale (γ − 1) and shift of the norm `[C]`, expand `[e·C, C]`,
    expand_bias `[e·C]`, project `[C_out, e·C]`, project_bias `[C_out]`.
    """

    family = "convnext"
    order = 10
    kinds = frozenset({"block"})
    levels = (1, 2, 3, 4)
    placements = ("sequential", "parallel")
    learning_rate = 2e-3

    @classmethod
    def fits(cls, site: Site, module: nn.Module, level: int, placement: str) -> bool:
        """At blocks of convolutions. Beside a block only if a strided convolution can keep up
        with it.
        """
        return not is_channels_last(module) and (placement == "sequential" or keeps_up(site))

    def __init__(
        self, site: Site, module: nn.Module, level: int, placement: str, generator: torch.Generator
    ) -> None:
        super().__init__(site, module, level, placement, generator)
        self.parallel = placement == "parallel"
        channels = site.in_channels if self.parallel else site.out_channels
        self.stride = tuple(int(s) for s in site.stride) if self.parallel else (1, 1, 1)
        self.depth = nn.Parameter(kaiming_uniform((channels, 1, 3, 3, 3), generator))
        self.scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.expand = nn.Parameter(kaiming_uniform((level * channels, channels), generator))
        self.expand_bias = nn.Parameter(torch.zeros(level * channels))
        self.project = nn.Parameter(torch.zeros(site.out_channels, level * channels))
        self.project_bias = shift_parameter(site)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = x if self.parallel else y
        channels = self.scale.numel()
        spread = F.conv3d(z, self.depth, stride=self.stride, padding=1, groups=channels)
        # torch's own, because F.group_norm refuses a single voxel
        normed = torch.group_norm(spread, channels, 1.0 + self.scale, self.shift, _EPS)
        hidden = F.gelu(pointwise(normed, self.expand, self.expand_bias, channels_last=False))
        return y + pointwise(hidden, self.project, self.project_bias, channels_last=False)

    @torch.no_grad()
    def inherit(self, smaller: Adapter) -> None:
        """Take over the smaller unit's hidden channels. The added ones are projected to zero, so
        the function is the same.
        """
        assert isinstance(smaller, ConvNeXt)
        width = smaller.expand.shape[0]
        for name in ("depth", "scale", "shift"):
            getattr(self, name).copy_(getattr(smaller, name))
        self.expand[:width], self.expand_bias[:width], self.project[:, :width] = (
            smaller.expand, smaller.expand_bias, smaller.project,
        )  # fmt: skip
        if self.project_bias is not None and smaller.project_bias is not None:
            self.project_bias.copy_(smaller.project_bias)
