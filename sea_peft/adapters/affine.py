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
    The normalised input is computed once more, because (y − β)/γ is not exact where γ is near zero.
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
        self.has_scale = getattr(module, "weight", None) is not None
        # what `_normalised` needs, without holding the backbone's module as a child
        self.eps = float(module.eps)  # type: ignore[arg-type]
        self.groups = module.num_groups if isinstance(module, nn.GroupNorm) else 0
        self.instance = isinstance(module, nn.InstanceNorm3d) and not module.track_running_stats
        self.normalized_shape = tuple(module.normalized_shape) if isinstance(module, nn.LayerNorm) else ()
        running = isinstance(module, nn.BatchNorm3d | nn.InstanceNorm3d) and module.running_mean is not None
        self.running_mean: torch.Tensor | None
        self.running_var: torch.Tensor | None
        self.register_buffer("running_mean", module.running_mean if running else None, persistent=False)  # type: ignore[arg-type]
        self.register_buffer("running_var", module.running_var if running else None, persistent=False)  # type: ignore[arg-type]

    def _normalised(self, x: torch.Tensor) -> torch.Tensor:
        """x̂: the norm's output before scale and shift, as the frozen backbone computes it in eval mode."""
        if self.groups:
            return F.group_norm(x, self.groups, eps=self.eps)
        if self.normalized_shape:
            return F.layer_norm(x, self.normalized_shape, eps=self.eps)
        if self.instance:
            return F.instance_norm(x, eps=self.eps)
        return F.batch_norm(x, self.running_mean, self.running_var, training=self.running_mean is None, eps=self.eps)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        normalised = self._normalised(x) if self.has_scale else y
        scale = along_channels(self.scale, y, self.channels_last)
        return y + scale * normalised + along_channels(self.shift, y, self.channels_last)

    def merged(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if "weight" not in tensors or "bias" not in tensors:
            raise CannotMerge("affine at a norm that has no scale and shift of its own has no tensor to be folded into")
        return {"weight": tensors["weight"] + self.scale, "bias": tensors["bias"] + self.shift}
