"""Bias (BitFit): deltas of the backbone's biases."""

from collections.abc import Mapping

import torch
from torch import nn

from sea_peft.adapters.base import Adapter, along_channels
from sea_peft.adapters.registry import register
from sea_peft.backbones import Site


@register
class Bias(Adapter):
    """y ← y + Δb, Δb = 0 at the start. Offered if the module has a bias or norm shift, and no norm
    removes it again.

    Source: Ben Zaken et al. 2022 (arXiv 2106.10199); learning rate 1e-2 as in FSEFT (arXiv
    2303.17051). Cost C.
    """

    family = "bias"
    order = 4
    kinds = frozenset({"linear", "conv", "transposed", "norm"})
    learning_rate = 1e-2

    @classmethod
    def fits(cls, site: Site, module: nn.Module, level: int, placement: str) -> bool:
        return getattr(module, "bias", None) is not None and not site.normed

    def __init__(
        self, site: Site, module: nn.Module, level: int, placement: str, generator: torch.Generator
    ) -> None:
        super().__init__(site, module, level, placement, generator)
        self.shift = nn.Parameter(torch.zeros(site.out_channels))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + along_channels(self.shift, y, self.channels_last)

    def merged(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"bias": tensors["bias"] + self.shift}
