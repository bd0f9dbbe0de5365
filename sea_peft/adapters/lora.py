"""LoRA for linear layers, convolutions and transposed convolutions: a low-rank delta of the weight,
computed as a branch.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from sea_peft.adapters.base import Adapter, convolution_geometry, kaiming_uniform, pads_with_zeros
from sea_peft.adapters.registry import register
from sea_peft.backbones import Site


@register
class LoRA(Adapter):
    """y ← y + s·B(A(x)), the same as W ← W + s·B·A with B·A of rank r.

    Source: Hu et al. 2021 (arXiv 2106.09685), eq. 3, s = α/r with α = r. For convolutions A keeps
    the site's kernel, stride and padding (in → r) and B is 1×1×1 (r → out), as in the thesis on 3D
    CNNs and in HF PEFT. A is Kaiming-uniform and B zero, so the unit starts as the identity. Cost
    r·(in·k³ + out). Learning rate 1e-3 to 1e-2 in FSEFT (arXiv 2303.17051), for 200 epochs; 1.5e-2
    here, for hundreds of steps (`python -m benchmarks learning_rates` compares rates).

    Shapes: conv A `[r, in, k, k, k]`, B `[out, r]`; transposed A `[in, r, k, k, k]`, B `[out, r]`;
    linear A `[r, in]`, B `[out, r]`.

    Variants (lora_variants.py) are families of their own that override `alpha`, `scaling`, `rank`
    or `initial_down`.
    """

    family = "lora"
    order = 1
    kinds = frozenset({"linear", "conv", "transposed"})
    levels: ClassVar[tuple[int, ...]] = (1, 2, 4, 8, 16, 32, 64)
    learning_rate = 1.5e-2
    alpha: ClassVar[float | None] = None

    @classmethod
    def scaling(cls, rank: int) -> float:
        """s, the factor of the branch: α/r. `alpha` None stands for α = r, so that s = 1."""
        return 1.0 if cls.alpha is None else cls.alpha / rank

    @classmethod
    def rank(cls, site: Site, level: int) -> int:
        """r at this site."""
        return level

    @classmethod
    def fits(cls, site: Site, module: nn.Module, level: int, placement: str) -> bool:
        """Ungrouped sites only (a grouped kernel has no channel mixing to approximate), padded with
        zeros, with a rank below full.
        """
        full = min(site.in_channels * _taps(module), site.out_channels)
        return (
            getattr(module, "groups", 1) == 1
            and pads_with_zeros(module)
            and 0 < cls.rank(site, level) < full
        )

    def __init__(
        self, site: Site, module: nn.Module, level: int, placement: str, generator: torch.Generator
    ) -> None:
        super().__init__(site, module, level, placement, generator)
        rank = self.rank(site, level)
        self.factor = self.scaling(rank)
        self.down = nn.Parameter(self.initial_down(site, module, rank, generator))
        self.up = nn.Parameter(torch.zeros(site.out_channels, rank))
        self.geometry = convolution_geometry(module)

    def initial_down(
        self, site: Site, module: nn.Module, rank: int, generator: torch.Generator
    ) -> torch.Tensor:
        """The initial A, in the shape for the site's kind."""
        shape = (site.in_channels, rank) if site.kind == "transposed" else (rank, site.in_channels)
        return kaiming_uniform((*shape, *getattr(module, "kernel_size", ())), generator)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # scales the small matrix: scaling the volume would cost a pass over it
        up = self.up if self.factor == 1.0 else self.factor * self.up
        if self.kind == "linear":
            return y + F.linear(F.linear(x, self.down), up)
        convolve = F.conv_transpose3d if self.kind == "transposed" else F.conv3d
        low = convolve(x, self.down, **self.geometry)
        return y + F.conv3d(low, up[:, :, None, None, None])

    @torch.no_grad()
    def inherit(self, smaller: Adapter) -> None:
        """Take over the smaller unit's ranks. The added ones have B = 0, so the function is exactly
        the smaller unit's.
        """
        assert isinstance(smaller, LoRA)
        rank = smaller.up.shape[1]
        of_down = (slice(None), slice(rank)) if self.kind == "transposed" else (slice(rank),)
        self.down[of_down] = smaller.down
        self.up[:, :rank] = smaller.up * (smaller.factor / self.factor)

    def merged(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        order = {"linear": "or,ri->oi", "conv": "or,ri...->oi...", "transposed": "or,ir...->io..."}[
            self.kind
        ]
        return {"weight": tensors["weight"] + torch.einsum(order, self.factor * self.up, self.down)}


def _taps(module: nn.Module) -> int:
    """Voxels under the site's kernel."""
    return torch.Size(getattr(module, "kernel_size", ())).numel() or 1
