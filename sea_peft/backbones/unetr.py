"""UNETR (Hatamizadeh et al. 2022, arXiv 2103.10504): MONAI's. A vision transformer at a 16th of the
resolution, with convolutions around it.

Its position embeddings have one row per token, so a network takes patches of one size only. All of
the transformer runs at the lowest resolution, so its `bottleneck` is what other networks call the
encoder.

MONAI builds the transformer's blocks with a norm, and in 1.4 and 1.5 with weights, for
cross-attention, which a UNETR does not use. They are left out here: outputs do not depend on them,
and checkpoints from before MONAI 1.4 do not hold them.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from sea_peft.backbones.limits import Limits, Settings, per_axis
from sea_peft.backbones.registry import Architecture, register

_TOKEN = 16


def build(
    in_channels: int = 1,
    out_channels: int = 2,
    img_size: int | Sequence[int] = 96,
    feature_size: int = 16,
    hidden_size: int = 768,
    mlp_dim: int = 3072,
    num_heads: int = 12,
    proj_type: str = "conv",
) -> nn.Module:
    """`[B, in, D, H, W]` → `[B, out, D, H, W]` with D, H, W = `img_size`. With the default widths:
    92.8 M parameters.

    `proj_type`: how a token is made of 16³ voxels, `conv` (MONAI's default) or `perceptron` (the
    paper's). Raises ValueError for another one, or if `img_size` is no multiple of 16.
    """
    from monai.networks.nets import UNETR

    size = per_axis(img_size)
    if any(n % _TOKEN for n in size):
        raise ValueError(f"img_size {size} is not made of multiples of {_TOKEN}")
    network = UNETR(
        in_channels=in_channels,
        out_channels=out_channels,
        img_size=size,
        feature_size=feature_size,
        hidden_size=hidden_size,
        mlp_dim=mlp_dim,
        num_heads=num_heads,
        proj_type=proj_type,
    )
    for block in network.vit.blocks:
        del block.norm_cross_attn, block.cross_attn
    return network


def limits(kwargs: Settings) -> Limits:
    """The one size that the position embeddings belong to."""
    return Limits(per_axis(_TOKEN), per_axis(_TOKEN), exact=per_axis(kwargs.get("img_size", 96)))


def read_widths(tensors: Mapping[str, torch.Tensor]) -> dict[str, object]:
    """Widths and the kind of token projection from the tensors, and the patch if the number of
    tokens is that of a cube.
    """
    tokens = tensors.get("vit.patch_embedding.position_embeddings")
    first, inner = (
        tensors.get("encoder1.layer.conv1.conv.weight"),
        tensors.get("vit.blocks.0.mlp.linear1.weight"),
    )
    if tokens is None or first is None or inner is None:
        return {}
    side = round(tokens.shape[1] ** (1 / 3))
    found: dict[str, object] = (
        {"img_size": [_TOKEN * side] * 3} if side**3 == tokens.shape[1] else {}
    )
    if "vit.patch_embedding.patch_embeddings.1.weight" in tensors:
        found["proj_type"] = "perceptron"
    return found | {
        "feature_size": first.shape[0],
        "hidden_size": tokens.shape[2],
        "mlp_dim": inner.shape[0],
    }


UNETR = register(
    Architecture(
        name="unetr",
        build=build,
        divisor=_TOKEN,
        minimum=_TOKEN,
        paper="Hatamizadeh et al. 2022, UNETR (WACV), arXiv 2103.10504",
        licence="Apache-2.0 (MONAI)",
        small={"img_size": 32, "feature_size": 2, "hidden_size": 8, "mlp_dim": 8, "num_heads": 2},
        limits=limits,
        read_widths=read_widths,
        traceless={
            "num_heads": "it is 12 in MONAI's default; give the setting num_heads=12 or what it was"
        },
    )
)
