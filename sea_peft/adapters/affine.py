"""Affine: the scale and shift of a norm layer, as deltas."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from sea_peft.adapters.base import Adapter, CannotMerge, modulate
from sea_peft.adapters.registry import register
from sea_peft.backbones import Site
from sea_peft.backbones.sites import is_channels_last


@register
class Affine(Adapter):
    """norm(x; γ, β) ← norm(x; γ + Δγ, β + Δβ); where the norm has neither, y ← (1 + Δγ)⊙y + Δβ. Δγ = Δβ = 0 at the start.

    Source: Frankle et al. 2020 (arXiv 2003.00152); "affine-LN" of FSEFT (arXiv 2303.17051), learning rate 1e-2. Cost 2·C.
    The norm is computed anew from x, because (y − β)/γ is not exact where γ is near zero; so at a norm with parameters this family
    acts first and replaces y.

    Shapes: scale [C], shift [C].
    """

    family = "affine"
    kinds = frozenset({"norm"})
    learning_rate = 1e-2

    def __init__(self, site: Site, module: nn.Module, level: int, placement: str, generator: torch.Generator) -> None:
        super().__init__(site, module, level, placement, generator)
        self.scale = nn.Parameter(torch.zeros(site.out_channels))
        self.shift = nn.Parameter(torch.zeros(site.out_channels))
        self.channels_last = is_channels_last(module)
        # in a tuple, since the norm's tensors are the backbone's: a child's would be saved with the unit
        self.norm = () if getattr(module, "weight", None) is None else (_own(module),)

    def _apply(self, fn: Any, recurse: bool = True) -> Affine:
        for norm in self.norm:
            norm._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if not self.norm:
            return modulate(y, self.scale, self.shift, self.channels_last)
        (norm,) = self.norm
        changed = {
            "weight": norm.get_parameter("weight") + self.scale,
            "bias": norm.get_parameter("bias") + self.shift,
        }
        computed: torch.Tensor = functional_call(norm, changed, (x,))
        return computed

    def merged(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if "weight" not in tensors or "bias" not in tensors:
            raise CannotMerge("affine at a norm that has no scale and shift of its own has no tensor to be folded into")
        return {"weight": tensors["weight"] + self.scale, "bias": tensors["bias"] + self.shift}


def _own(norm: nn.Module) -> nn.Module:
    """A copy that computes what the norm's class computes, with a shift of zero where it has none, and with no hook."""
    own = copy.deepcopy(norm).eval().requires_grad_(False)
    own._forward_hooks.clear()
    own._forward_pre_hooks.clear()
    if own.bias is None:
        own.bias = nn.Parameter(torch.zeros_like(own.get_parameter("weight")), requires_grad=False)
    return own
