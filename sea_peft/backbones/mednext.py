"""MedNeXt S, B, M and L (Roy et al. 2023, arXiv 2303.09975): MONAI's, without deep supervision.

MONAI's ends in a transposed convolution of kernel 1, which equals a 1³ convolution with its weight
transposed. Here it is one, so that a target's head can read the features in front of it.
Checkpoints of both shapes can be imported (`keymaps.mednext`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sea_peft.backbones.limits import Limits, Settings
from sea_peft.backbones.registry import Architecture, register
from sea_peft.backbones.strides import limits_of_strides

_Sizes = dict[str, Any]

_SIZES: dict[str, _Sizes] = {
    "s": {"expansion": (2, 2, 2, 2, 2, 2, 2, 2, 2), "blocks": (2, 2, 2, 2, 2, 2, 2, 2, 2)},
    "b": {"expansion": (2, 3, 4, 4, 4, 4, 4, 3, 2), "blocks": (2, 2, 2, 2, 2, 2, 2, 2, 2)},
    "m": {"expansion": (2, 3, 4, 4, 4, 4, 4, 3, 2), "blocks": (3, 4, 4, 4, 4, 4, 4, 4, 3)},
    "l": {"expansion": (3, 4, 8, 8, 8, 8, 8, 4, 3), "blocks": (3, 4, 8, 8, 8, 8, 8, 4, 3)},
}
"""Per stage from the input to the output: expansion ratio and number of blocks (paper, table 1)."""


def builder(size: str) -> Callable[..., nn.Module]:
    """The build function of one size."""

    def build(
        in_channels: int = 1,
        out_channels: int = 2,
        init_filters: int = 32,
        kernel_size: int = 3,
        expansion: Sequence[int] = _SIZES[size]["expansion"],
        blocks: Sequence[int] = _SIZES[size]["blocks"],
        down_expansion: Sequence[int] | None = None,
    ) -> nn.Module:
        """`[B, in, D, H, W]` → `[B, out, D, H, W]`.

        `expansion`, `blocks`: per stage, listing encoder, bottleneck and decoder. `down_expansion`:
        of the downsampling blocks, from the input on; by default that of the stage above, as in
        MONAI. Raises ValueError if their lengths do not match.
        """
        from monai.networks.blocks.mednext_block import MedNeXtDownBlock
        from monai.networks.nets.mednext import MedNeXt

        middle = len(blocks) // 2
        if (
            len(expansion) != len(blocks)
            or len(blocks) % 2 == 0
            or len(down_expansion or blocks[:middle]) != middle
        ):
            raise ValueError(
                f"expansion {expansion}, blocks {blocks} and down_expansion {down_expansion} do not"
                " fit each other"
            )
        network = MedNeXt(
            spatial_dims=3,
            init_filters=init_filters,
            in_channels=in_channels,
            out_channels=out_channels,
            encoder_expansion_ratio=tuple(expansion[:middle]),
            bottleneck_expansion_ratio=expansion[middle],
            decoder_expansion_ratio=tuple(expansion[middle + 1 :]),
            kernel_size=kernel_size,
            use_residual_connection=True,
            blocks_down=tuple(blocks[:middle]),
            blocks_bottleneck=blocks[middle],
            blocks_up=tuple(blocks[middle + 1 :]),
            norm_type="group",
        )
        for i, ratio in enumerate(down_expansion or ()):
            network.down_blocks[i] = MedNeXtDownBlock(
                init_filters * 2**i,
                init_filters * 2 ** (i + 1),
                ratio,
                kernel_size,
                use_residual_connection=True,
            )
        network.out_0.conv_out = nn.Conv3d(init_filters, out_channels, kernel_size=1)
        return network

    return build


def _ratios(tensors: Mapping[str, torch.Tensor], block: str) -> list[int]:
    """Expansion ratios of the blocks called `block` with 0, 1, … in its braces, up to the last
    one there is.
    """
    found: list[int] = []
    while (weight := tensors.get(f"{block.format(len(found))}.conv2.weight")) is not None:
        found.append(weight.shape[0] // weight.shape[1])
    return found


def read_widths(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The architecture's settings, from the tensors alone; the size's letter decides nothing.

    Width and kernel come from the stem and the first depth-wise convolution, expansion ratios and
    numbers of blocks from the stages. The authors' own networks downsample with the expansion ratio
    of the stage below and MONAI's with that of the stage above, which differs in B, M and L.
    """
    stem, first = tensors.get("stem.weight"), tensors.get("enc_stages.0.0.conv1.weight")
    downs = _ratios(tensors, "down_blocks.{}")
    halvings = range(len(downs))
    stages = [
        *(f"enc_stages.{i}.{{}}" for i in halvings),
        "bottleneck.{}",
        *(f"dec_stages.{i}.{{}}" for i in halvings),
    ]
    rows = [_ratios(tensors, stage) for stage in stages]
    if stem is None or first is None or not all(rows):
        return {}
    expansion = [row[0] for row in rows]
    widths = {
        "init_filters": stem.shape[0],
        "kernel_size": first.shape[-1],
        "expansion": expansion,
        "blocks": [len(row) for row in rows],
    }
    return widths if downs == expansion[: len(downs)] else widths | {"down_expansion": downs}


def limits(kwargs: Settings) -> Limits:
    """Each stage down to the bottleneck halves the input; its group norms have one channel per
    group.
    """
    return limits_of_strides((2,) * (len(kwargs.get("blocks", _SIZES["s"]["blocks"])) // 2))


for _size, _row in _SIZES.items():
    register(
        Architecture(
            name=f"mednext_{_size}",
            build=builder(_size),
            divisor=16,
            minimum=16,
            paper="Roy et al. 2023, MedNeXt (MICCAI), arXiv 2303.09975",
            licence="Apache-2.0 (MONAI)",
            # the size's own expansion ratios over fewer stages and blocks
            small={
                "init_filters": 4,
                "expansion": (
                    *_row["expansion"][:2],
                    _row["expansion"][4],
                    *_row["expansion"][-2:],
                ),
                "blocks": (1, 1, 1, 1, 1),
            },
            limits=limits,
            read_widths=read_widths,
            weights="phantom_mednext" if _size == "s" else None,
        )
    )
