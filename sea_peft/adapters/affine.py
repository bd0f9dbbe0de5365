"""Affine: the scale and shift of a norm layer, as deltas."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from sea_peft.adapters.base import Adapter, CannotMerge, along_channels, is_channels_last
from sea_peft.adapters.registry import register
from sea_peft.backbones import Site


@register
class Affine(Adapter):
    """norm(x; γ, β) ← norm(x; γ + Δγ, β + Δβ); where the norm has neither, y ← (1 + Δγ)⊙y + Δβ. Δγ = Δβ = 0 at the start.

    Source: Frankle et al. 2020 (arXiv 2003.00152); "affine-LN" of FSEFT (arXiv 2303.17051), learning rate 1e-2. Cost 2·C.
    The norm is computed anew from x, because (y − β)/γ is not exact where γ is near zero; so at a norm with parameters this family
    acts first and replaces y.
    """

    family = "affine"
    kinds = frozenset({"norm"})
    learning_rate = 1e-2

    def __init__(
        self, site: Site, module: nn.Module, level: int, placement: str, generator: torch.Generator
    ) -> None:
        super().__init__(site, module, level, placement, generator)
        self.scale = nn.Parameter(torch.zeros(site.out_channels))
        self.shift = nn.Parameter(torch.zeros(site.out_channels))
        self.channels_last = is_channels_last(module)
        # what the norm is made of, without holding the backbone's module as a child: buffers that no state dict shows
        self.eps = float(module.eps)  # type: ignore[arg-type]
        self.groups = module.num_groups if isinstance(module, nn.GroupNorm) else 0
        self.instance = isinstance(module, nn.InstanceNorm3d) and not module.track_running_stats
        self.normalized_shape = tuple(module.normalized_shape) if isinstance(module, nn.LayerNorm) else ()
        self.weight: torch.Tensor | None
        self.bias: torch.Tensor | None
        self.running_mean: torch.Tensor | None
        self.running_var: torch.Tensor | None
        for name in ("weight", "bias", "running_mean", "running_var"):
            own = getattr(module, name, None)
            self.register_buffer(name, None if own is None else own.detach(), persistent=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.weight is None:
            scale = along_channels(self.scale, y, self.channels_last)
            return y + scale * y + along_channels(self.shift, y, self.channels_last)
        weight, bias = self.weight + self.scale, self.shift if self.bias is None else self.bias + self.shift
        if self.groups:
            return F.group_norm(x, self.groups, weight, bias, self.eps)
        if self.normalized_shape:
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)
        if self.instance:
            return F.instance_norm(x, weight=weight, bias=bias, eps=self.eps)
        # in eval mode: running statistics where the norm keeps them (an instance norm that does is a batch norm then)
        batch = self.running_mean is None
        return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, training=batch, eps=self.eps)

    def merged(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if "weight" not in tensors or "bias" not in tensors:
            raise CannotMerge("affine at a norm that has no scale and shift of its own has no tensor to be folded into")
        return {"weight": tensors["weight"] + self.scale, "bias": tensors["bias"] + self.shift}
