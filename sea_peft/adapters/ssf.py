"""SSF: a scale and a shift of features after each operation."""

from collections.abc import Mapping

import torch
from torch import nn

from sea_peft.adapters.base import CannotMerge, modulate
from sea_peft.adapters.ia3 import IA3
from sea_peft.adapters.registry import register
from sea_peft.backbones import Site


@register
class SSF(IA3):
    """y ← γ⊙y + β per channel after a linear layer, a convolution or a norm; stored as γ − 1 and β,
    both zero at the start.

    Source: Lian et al. 2022 (arXiv 2210.08823), eq. 3, as in the thesis "PEFT of CNN-based 3D CT
    segmentation models", eq. 3.3 (there γ and β start as N(1, 0.02) and N(0, 0.02), which is not
    the identity). Not offered in front of a norm that removes both again. Folds into the
    operation's own tensors if it has a bias. Cost 2·C. Learning rate 1e-2, as affine's.

    Shapes: scale `[C]`, shift `[C]`.
    """

    family = "ssf"
    order = 5
    kinds = frozenset({"linear", "conv", "transposed", "norm"})

    def __init__(
        self, site: Site, module: nn.Module, level: int, placement: str, generator: torch.Generator
    ) -> None:
        super().__init__(site, module, level, placement, generator)
        self.shift = nn.Parameter(torch.zeros(site.out_channels))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return modulate(y, self.scale, self.shift, self.channels_last)

    def merged(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if "bias" not in tensors:
            raise CannotMerge("its site has no bias that can hold the shift")
        folded = super().merged(tensors)
        return folded | {"bias": folded["bias"] + self.shift}
