"""Full: a full-rank delta of a site's weight. Fine-tuning as units, for comparison; no budget
profile offers it.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from sea_peft.adapters.base import Adapter, convolution_geometry, pads_with_zeros, shift_parameter
from sea_peft.adapters.registry import register
from sea_peft.backbones import Site
from sea_peft.backbones.growth import without_groups

_OPERATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "linear": F.linear,
    "conv": F.conv3d,
    "transposed": F.conv_transpose3d,
}


@register
class Full(Adapter):
    """y ← y + ΔW⊗x + Δb, where ΔW and Δb are shaped as the site's own weight and bias and start at
    zero.

    There is no Δb if a norm would remove it again. At every site, together with `affine` at every
    norm, this is full fine-tuning of the backbone, written as deltas so that its tensors stay
    untouched; at decoder sites it is decoder fine-tuning.

    Source: the comparison of FSEFT (arXiv 2303.17051), which fine-tunes with 1e-4 over many more
    steps; learning rate 1e-3 here, for AdamW on zero-initialised deltas. Cost: the site's own
    parameters, as far as they act.
    """

    family = "full"
    order = 12
    kinds = frozenset({"linear", "conv", "transposed"})
    learning_rate = 1e-3

    @classmethod
    def fits(cls, site: Site, module: nn.Module, level: int, placement: str) -> bool:
        return pads_with_zeros(module)

    def __init__(
        self, site: Site, module: nn.Module, level: int, placement: str, generator: torch.Generator
    ) -> None:
        super().__init__(site, module, level, placement, generator)
        self.weight = nn.Parameter(torch.zeros_like(module.weight, requires_grad=True))  # type: ignore[arg-type]
        self.bias = None if module.bias is None else shift_parameter(site)
        self.geometry = convolution_geometry(module)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + _OPERATIONS[self.kind](x, self.weight, self.bias, **self.geometry)

    def merged(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weight = tensors["weight"]
        grown = weight.shape != self.weight.shape  # another unit has made the kernel dense
        folded = {
            "weight": (
                weight
                + (without_groups(self.weight, self.geometry["groups"]) if grown else self.weight)
            )
        }
        if self.bias is not None:
            folded["bias"] = tensors["bias"] + self.bias
        return folded
