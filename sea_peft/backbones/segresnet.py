"""SegResNet: residual encoder-decoder with group norm (Myronenko 2018, arXiv 1810.11654), in
the shape of the SuPreM checkpoints.
"""

from collections.abc import Mapping

import torch
from torch import nn

from sea_peft.backbones.registry import Architecture, register


def build(
    in_channels: int = 1, out_channels: int = 2, init_filters: int = 16, **kwargs: object
) -> nn.Module:
    """[B, in, D, H, W] → [B, out, D, H, W]. With the default 16 filters: 4.70 M parameters, as
    `supervised_suprem_segresnet`.
    """
    from monai.networks.nets import SegResNet

    shape: dict[str, object] = {
        "blocks_down": [1, 2, 2, 4],
        "blocks_up": [1, 1, 1],
        "dropout_prob": 0.0,
    }
    return SegResNet(
        spatial_dims=3,
        init_filters=init_filters,
        in_channels=in_channels,
        out_channels=out_channels,
        **(shape | kwargs),
    )


def read_widths(tensors: Mapping[str, torch.Tensor]) -> dict[str, object]:
    """Width and blocks per stage from the tensors; leaves out those equal to SuPreM's."""
    first = tensors.get("convInit.conv.weight")
    if first is None:
        return {}
    widths: dict[str, object] = {"init_filters": first.shape[0]}
    for name in ("down", "up"):
        stages = [
            key.split(".")[1:3]
            for key in tensors
            if key.startswith(f"{name}_layers.") and key.endswith("conv1.conv.weight")
        ]
        widths[f"blocks_{name}"] = [
            sum(int(s) == i for s, _ in stages) for i in range(1 + max(int(s) for s, _ in stages))
        ]
    return widths


SEGRESNET = register(
    Architecture(
        name="segresnet",
        build=build,
        divisor=8,
        minimum=16,
        paper="Myronenko 2018, arXiv 1810.11654; shape of SuPreM (Li et al., ICLR 2024)",
        licence="Apache-2.0 (MONAI)",
        small={"init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]},
        weights="phantom_segresnet",
        read_widths=read_widths,
    )
)
