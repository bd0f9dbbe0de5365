"""Affine: the scale and shift of a norm layer, as deltas."""

from collections.abc import Mapping

import torch
from torch import nn

from sea_peft.adapters.base import Adapter, modulate
from sea_peft.adapters.registry import register
from sea_peft.backbones import Site


@register
class Affine(Adapter):
    """norm(x; γ, β) ← norm(x; γ + Δγ, β + Δβ); y ← (1 + Δγ)⊙y + Δβ if the norm has neither. Δγ = Δβ
    = 0 at the start.

    Source: Frankle et al. 2020 (arXiv 2003.00152); "affine-LN" of FSEFT (arXiv 2303.17051),
    learning rate 1e-2. The norm is computed again from x, because (y − β)/γ is not exact for γ near
    zero. At a norm with parameters this family therefore acts first and replaces y. Merged into a
    norm that has neither, Δγ and Δβ become its own. Cost 2·C.

    Shapes: scale `[C]`, shift `[C]`.
    """

    family = "affine"
    order = 0
    kinds = frozenset({"norm"})
    learning_rate = 1e-2

    def __init__(
        self, site: Site, module: nn.Module, level: int, placement: str, generator: torch.Generator
    ) -> None:
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
