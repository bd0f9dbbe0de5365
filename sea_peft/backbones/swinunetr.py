"""SwinUNETR (Hatamizadeh et al. 2022, arXiv 2201.01266): MONAI's, with both orders of patch merging
that checkpoints were trained with.

MONAI before 1.5 gathered the eight neighbours of a patch in an order that took two of them twice
and omitted two. A network trained that way must run that way: its tensors fit the corrected network
too, but segment wrongly in it. Version 2 (He et al. 2023, SwinUNETR-V2, MICCAI) has a residual
block of convolutions in front of each stage of its transformer.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from sea_peft.backbones.registry import Architecture, register

MERGING_ORDERS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "monai<1.5": (
        (0, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (1, 0, 1),
        (0, 1, 0),
        (0, 0, 1),
        (1, 1, 1),
    ),
    "monai>=1.5": (
        (0, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (1, 1, 0),
        (1, 0, 1),
        (0, 1, 1),
        (1, 1, 1),
    ),
}
"""Offsets along D, H, W of the eight neighbours, in the order in which their channels are
concatenated.
"""


class PatchMergingBefore15(nn.Module):
    """`[B, D, H, W, C]` → `[B, D/2, H/2, W/2, 2C]`: eight neighbours concatenated in the order of
    MONAI before 1.5, norm, linear.

    Interface and state-dict keys are those of `monai.networks.nets.swin_unetr.PatchMerging`, which
    is called through `downsample=`.
    """

    def __init__(
        self, dim: int, norm_layer: type[nn.LayerNorm] = nn.LayerNorm, spatial_dims: int = 3
    ) -> None:
        super().__init__()
        if spatial_dims != 3:
            raise ValueError(f"patch merging is for three spatial dimensions, not {spatial_dims}")
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(8 * dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        d, h, w = x.shape[1:4]
        x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2, 0, d % 2))
        neighbours = [x[:, i::2, j::2, k::2] for i, j, k in MERGING_ORDERS["monai<1.5"]]
        return self.reduction(self.norm(torch.cat(neighbours, dim=-1)))


def build(
    in_channels: int = 1,
    out_channels: int = 2,
    feature_size: int = 48,
    depths: Sequence[int] = (2, 2, 2, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    window_size: int = 7,
    mlp_ratio: float = 4.0,
    merging: str = "monai>=1.5",
    use_v2: bool = False,
) -> nn.Module:
    """[B, in, D, H, W] → [B, out, D, H, W], sides multiples of 32. With the default width of 48:
    62.2 M parameters.

    `merging`: the order of patch merging, a key of `MERGING_ORDERS`. `use_v2`: version 2. Raises
        ValueError for another order.
    """
    from monai.networks.nets import SwinUNETR

    if merging not in MERGING_ORDERS:
        raise ValueError(f"merging {merging!r} is none of {', '.join(MERGING_ORDERS)}")
    old = merging == "monai<1.5"
    return SwinUNETR(
        in_channels=in_channels,
        out_channels=out_channels,
        feature_size=feature_size,
        depths=tuple(depths),
        num_heads=tuple(num_heads),
        window_size=window_size,
        mlp_ratio=mlp_ratio,
        downsample=PatchMergingBefore15 if old else "merging",
        use_v2=use_v2,
    )


def read_widths(tensors: Mapping[str, torch.Tensor]) -> dict[str, object]:
    """Widths, depths, window and version of the transformer from its tensors."""
    patches = tensors.get("swinViT.patch_embed.proj.weight")
    if patches is None:
        return {}
    blocks = [
        {k.split(".")[4] for k in tensors if k.startswith(f"swinViT.layers{i}.0.blocks.")}
        for i in range(1, 5)
    ]
    tables = (
        tensors.get(f"swinViT.layers{i}.0.blocks.0.attn.relative_position_bias_table")
        for i in range(1, 5)
    )
    heads = [table for table in tables if table is not None and table.ndim == 2]
    widths: dict[str, object] = {"feature_size": patches.shape[0]}
    if all(blocks):
        widths["depths"] = [len(found) for found in blocks]
    if len(heads) == len(blocks):
        widths["num_heads"] = [int(table.shape[1]) for table in heads]
        widths["window_size"] = (
            1 + round(len(heads[0]) ** (1 / 3))
        ) // 2  # the table has a row for each of (2w - 1)³ offsets
    if any(key.startswith("swinViT.layers1c.") for key in tensors):
        widths["use_v2"] = True
    inner = tensors.get("swinViT.layers1.0.blocks.0.mlp.linear1.weight")
    if inner is not None:
        widths["mlp_ratio"] = inner.shape[0] / inner.shape[1]
    return widths


# The probe leaves 3 voxels at the bottleneck, the fewest of which instance norms let gradients
# through.
SWINUNETR = register(
    Architecture(
        name="swinunetr",
        build=build,
        divisor=32,
        minimum=64,
        paper="Hatamizadeh et al. 2022, Swin UNETR, arXiv 2201.01266",
        licence="Apache-2.0 (MONAI)",
        small={
            "feature_size": 12,
            "depths": (1, 1, 1, 1),
            "num_heads": (1, 1, 1, 1),
            "window_size": 4,
            "mlp_ratio": 1.0,
        },
        probe=(96, 32, 32),
        read_widths=read_widths,
        traceless={
            "merging": (
                "before MONAI 1.5 patches were merged in another order; give the setting"
                " merging='monai<1.5' or merging='monai>=1.5'"
            )
        },
    )
)
