"""Affine: the scale and shift of a norm layer, as deltas."""

from collections.abc import Mapping

import torch
from torch import nn

from sea_peft.adapters.base import Adapter, modulate
from sea_peft.adapters.registry import register
from sea_peft.backbones import Site


@register
class Affine(Adapter):
    """norm(x; γ, β) ← norm(x; γ + Δγ, β + Δβ); where the norm has neither, y ← (1 + Δγ)⊙y + Δβ. Δγ = Δβ = 0 at the start.

    Source: Frankle et al. 2020 (arXiv 2003.00152); "affine-LN" of FSEFT (arXiv 2303.17051), learning rate 1e-2. Cost 2·C.
    The norm is computed anew from x, because (y − β)/γ is not exact where γ is near zero; so at a norm with parameters this family
    acts first and replaces y. Merged into a norm that has neither, they become its own.

    Shapes: scale [C], shift [C].
    """

    family = "affine"
    order = 0
    kinds = frozenset({"norm"})
    learning_rate = 1e-2

    def __init__(self, site: Site, module: nn.Module, level: int, placement: str, generator: torch.Generator) -> None:
        super().__init__(site, module, level, placement, generator)
        self.scale = nn.Parameter(torch.zeros(site.out_channels))
        self.shift = nn.Parameter(torch.zeros(site.out_channels))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        own = self.site_tensors()
        if "weight" not in own:
            return modulate(y, self.scale, self.shift, self.channels_last)
        shift = own["bias"] + self.shift if "bias" in own else self.shift
        return self.recomputed(x, {"weight": own["weight"] + self.scale, "bias": shift})

    def merged(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"weight": tensors["weight"] + self.scale, "bias": tensors["bias"] + self.shift}
