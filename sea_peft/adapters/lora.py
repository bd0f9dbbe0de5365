"""LoRA for linear, convolution and transposed convolution: a low-rank change of the weight, computed as a branch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sea_peft.adapters.base import Adapter, kaiming_uniform, pads_with_zeros
from sea_peft.adapters.registry import register
from sea_peft.backbones import Site


@register
class LoRA(Adapter):
    """y ← y + B(A(x)), the same as W ← W + B·A with B·A of rank r.

    Source: Hu et al. 2021 (arXiv 2106.09685), eq. 3, with α = r; for convolutions A keeps the site's kernel, stride and padding
    (in → r) and B is 1×1×1 (r → out), as in the thesis on 3D CNNs and in HF PEFT. A is Kaiming-uniform, B zero, so the unit
    starts as the identity. Cost r·(in·k³ + out). Learning rate 1e-3 to 1e-2 in FSEFT (arXiv 2303.17051); 5e-3 here.

    Shapes: conv A [r, in, k, k, k], B [out, r]; transposed A [in, r, k, k, k], B [out, r]; linear A [r, in], B [out, r].
    """

    family = "lora"
    kinds = frozenset({"linear", "conv", "transposed"})
    levels = (1, 2, 4, 8, 16, 32, 64)
    learning_rate = 5e-3

    @classmethod
    def fits(cls, site: Site, module: nn.Module, level: int, placement: str) -> bool:
        """Ungrouped sites only (a grouped kernel has no channel mixing to approximate), padded with zeros, a rank below full."""
        rank = min(site.in_channels * _taps(module), site.out_channels)
        return getattr(module, "groups", 1) == 1 and pads_with_zeros(module) and level < rank

    def __init__(
        self, site: Site, module: nn.Module, level: int, placement: str, generator: torch.Generator
    ) -> None:
        super().__init__(site, module, level, placement, generator)
        self.kind = site.kind
        kernel = tuple(module.kernel_size) if site.kind != "linear" else ()  # type: ignore[arg-type]
        shape = (site.in_channels, level) if site.kind == "transposed" else (level, site.in_channels)
        self.down = nn.Parameter(kaiming_uniform((*shape, *kernel), generator))
        self.up = nn.Parameter(torch.zeros(site.out_channels, level))
        self.geometry: dict[str, Any] = (
            {name: getattr(module, name) for name in ("stride", "padding", "dilation")} if kernel else {}
        )
        if site.kind == "transposed":
            self.geometry["output_padding"] = module.output_padding

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.kind == "linear":
            return y + F.linear(F.linear(x, self.down), self.up)
        convolve = F.conv_transpose3d if self.kind == "transposed" else F.conv3d
        low = convolve(x, self.down, **self.geometry)
        return y + F.conv3d(low, self.up[:, :, None, None, None])

    @torch.no_grad()
    def inherit(self, smaller: Adapter) -> None:
        """The first ranks are the smaller unit's; the further ones have B = 0, so the function is the smaller unit's exactly."""
        assert isinstance(smaller, LoRA)
        rank = smaller.up.shape[1]
        of_down = (slice(None), slice(rank)) if self.kind == "transposed" else (slice(rank),)
        self.down[of_down] = smaller.down
        self.up[:, :rank] = smaller.up

    def merged(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        order = {"linear": "or,ri->oi", "conv": "or,ri...->oi...", "transposed": "or,ir...->io..."}[self.kind]
        return {"weight": tensors["weight"] + torch.einsum(order, self.up, self.down)}


def _taps(module: nn.Module) -> int:
    """Voxels under the site's kernel."""
    return torch.Size(getattr(module, "kernel_size", ())).numel() or 1
