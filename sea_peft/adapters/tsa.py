"""Residual 1×1×1 adapter (TSA): a pointwise convolution beside a convolution."""

from collections.abc import Mapping

import torch
from torch import nn

from sea_peft.adapters.base import Adapter, pointwise
from sea_peft.adapters.registry import register
from sea_peft.backbones import Site
from sea_peft.backbones.growth import without_groups


@register
class TSA(Adapter):
    """y ← y + W⊗x with W 1×1×1 at the site's stride, zero at the start.

    Source: the residual adapters of Rebuffi et al. 2018 (arXiv 1803.10082), eq. 3, as task-specific
    adapters of Li et al. 2022 (arXiv 2107.00358). FSEFT (arXiv 2303.17051) puts them beside each 3D
    convolution with learning rate 1e-2. W sees the voxel under one tap of the site's kernel (its
    centre, if the padding is half the kernel), so it folds into that tap. Cost C_in·C_out.

    Shapes: weight `[C_out, C_in]`.
    """

    family = "tsa"
    order = 3
    kinds = frozenset({"conv"})
    learning_rate = 1e-2

    @classmethod
    def fits(cls, site: Site, module: nn.Module, level: int, placement: str) -> bool:
        """Kernels larger than W whose padding puts a tap on every `stride`-th voxel, with an output
        of at most that many voxels.
        """
        assert isinstance(module, nn.Conv3d)
        return max(module.kernel_size) > 1 and _tap(module) is not None

    def __init__(
        self, site: Site, module: nn.Module, level: int, placement: str, generator: torch.Generator
    ) -> None:
        super().__init__(site, module, level, placement, generator)
        assert isinstance(module, nn.Conv3d)
        tap = _tap(module)
        assert tap is not None
        self.tap, self.stride, self.groups = tap, module.stride, module.groups
        self.weight = nn.Parameter(torch.zeros(site.out_channels, site.in_channels))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        d, h, w = y.shape[2:]  # a kernel without padding leaves out the last voxels
        return (
            y
            + pointwise(x, self.weight, None, channels_last=False, stride=self.stride)[
                :, :, :d, :h, :w
            ]
        )

    def merged(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weight = without_groups(
            tensors["weight"], self.groups
        )  # the adapter mixes channels of all groups
        i, j, k = self.tap
        weight[:, :, i, j, k] += self.weight
        return {"weight": weight}


def _tap(module: nn.Conv3d) -> list[int] | None:
    """The kernel's tap, per axis, that lies on voxels 0, s, 2s, … for outputs 0, 1, 2, … (s the
    stride); None if none does.
    """
    taps = []
    for axis, (size, dilation) in enumerate(zip(module.kernel_size, module.dilation, strict=True)):
        reach = dilation * (size - 1)
        if isinstance(module.padding, str):
            before, both = (reach // 2, reach) if module.padding == "same" else (0, 0)
        else:
            before, both = module.padding[axis], 2 * module.padding[axis]
        if before % dilation or before > reach or both > reach:
            return None
        taps.append(before // dilation)
    return taps
