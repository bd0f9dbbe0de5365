"""Variants of LoRA with another start, another scale, or a rank that follows the site. They are
families of their own, offered by name only.
"""

import math

import torch
from torch import nn

from sea_peft.adapters.lora import LoRA
from sea_peft.adapters.registry import register
from sea_peft.backbones import Site


@register
class LoRAFromWeights(LoRA):
    """LoRA whose A starts as the first r principal components of the site's own filters (centred
    rows of W), at unit length.

    Source: the "PCA" initialisation of the thesis "PEFT of CNN-based 3D CT segmentation models"
    (0.63 against 0.62 for Kaiming at r = 16 on its UNet). B is zero, so the unit starts as the
    identity. Formula, shapes, cost and learning rate are LoRA's.
    """

    family = "lora_pca"

    def initial_down(
        self, site: Site, module: nn.Module, rank: int, generator: torch.Generator
    ) -> torch.Tensor:
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        weight = weight.detach().float().cpu()
        filters = (weight.transpose(0, 1) if site.kind == "transposed" else weight).flatten(1)
        components = torch.linalg.svd(filters - filters.mean(0), full_matrices=False).Vh[:rank]
        # an SVD leaves the signs open: make the largest entry positive on every machine
        largest = components.gather(1, components.abs().argmax(1, keepdim=True))
        components = components * largest.sign()
        shape = (rank, site.in_channels, *weight.shape[2:])
        down = components.reshape(shape)
        return down.transpose(0, 1).contiguous() if site.kind == "transposed" else down.contiguous()


@register
class LoRAOfHalfTheWidth(LoRA):
    """LoRA whose rank at each site is half the site's output channels: the thesis's "dynamic" rank,
    one size per site.

    Source: the thesis "PEFT of CNN-based 3D CT segmentation models", table 5.1. Formula, shapes,
    start, learning rate and cost are LoRA's at r = C_out/2.
    """

    family = "lora_half"
    levels = (0,)

    @classmethod
    def rank(cls, site: Site, level: int) -> int:
        return site.out_channels // 2


@register
class RankStabilisedLoRA(LoRA):
    """LoRA with s = α/√r instead of α/r, so that the branch learns equally fast at every rank; α =
    4, which is s = 1 at r = 16.

    Source: Kalajdzievski 2023 (arXiv 2312.03732), eq. 3; HF PEFT's `use_rslora`. Formula, shapes,
        start, cost and learning rate are LoRA's.
    """

    family = "lora_rs"
    alpha = 4.0

    @classmethod
    def scaling(cls, rank: int) -> float:
        assert cls.alpha is not None
        return cls.alpha / math.sqrt(rank)
