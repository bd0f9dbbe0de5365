"""(IA)³: a learnt factor for each channel of an activation."""

from collections.abc import Mapping

import torch
from torch import nn

from sea_peft.adapters.base import Adapter, CannotMerge, modulate
from sea_peft.adapters.registry import register
from sea_peft.backbones import Site


@register
class IA3(Adapter):
    """y ← l⊙y per channel after a linear layer or a convolution; stored as l − 1, zero at the
    start.

    Source: Liu et al. 2022 (arXiv 2205.05638), section 3.3, on keys, values and hidden units of
    MLPs; HF PEFT has it for convolutions too. Here l acts on the site's output, before any
    activation. Not offered in front of a norm that removes it again. Folds into the operation's
    tensors. Cost C. Learning rate 1e-2, as affine's (the paper's is 3e-3 with Adafactor).

    Shapes: scale `[C]`.
    """

    family = "ia3"
    order = 6
    kinds = frozenset({"linear", "conv", "transposed"})
    learning_rate = 1e-2

    @classmethod
    def fits(cls, site: Site, module: nn.Module, level: int, placement: str) -> bool:
        return not site.normed

    def __init__(
        self, site: Site, module: nn.Module, level: int, placement: str, generator: torch.Generator
    ) -> None:
        super().__init__(site, module, level, placement, generator)
        self.scale = nn.Parameter(torch.zeros(site.out_channels))
        self.groups = int(getattr(module, "groups", 1))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return modulate(y, self.scale, None, self.channels_last)

    def merged(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if "weight" not in tensors:
            raise CannotMerge("its site has no tensor that can hold a factor")
        transposed = self.kind == "transposed"
        if transposed and self.groups > 1:
            raise CannotMerge(
                "the weight of a grouped transposed convolution has no axis for its output channels"
            )
        factor = 1.0 + self.scale
        weight = tensors["weight"]
        shape = [1] * weight.ndim
        shape[1 if transposed else 0] = -1
        folded = {"weight": weight * factor.view(shape)}
        return folded | ({"bias": tensors["bias"] * factor} if "bias" in tensors else {})
