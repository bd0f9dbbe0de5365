"""DynUNet: MONAI's U-Net in the shape of nnU-Net (Isensee et al. 2021, doi
10.1038/s41592-020-01008-z), deep supervision off.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from sea_peft.backbones.limits import Limits, Settings
from sea_peft.backbones.registry import Architecture, register
from sea_peft.backbones.strides import Strides, limits_of_strides

_STRIDES: Strides = (1, 2, 2, 2, 2)


def build(
    in_channels: int = 1,
    out_channels: int = 2,
    filters: Sequence[int] = (32, 64, 128, 256, 320),
    strides: Strides = _STRIDES,
    kernels: Strides | None = None,
    res_block: bool = False,
) -> nn.Module:
    """`[B, in, D, H, W]` → `[B, out, D, H, W]`. With the default widths: 16.5 M parameters.

    `filters`: channels of each stage. `strides`: of each stage, one number or three. `kernels`: of
    each stage; 3 by default.
    """
    from monai.networks.nets import DynUNet

    plain = [stride if isinstance(stride, int) else list(stride) for stride in strides]
    return DynUNet(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=[3] * len(strides) if kernels is None else list(kernels),
        strides=plain,
        upsample_kernel_size=plain[1:],
        filters=list(filters),
        norm_name=("instance", {"affine": True}),
        deep_supervision=False,
        res_block=res_block,
    )


def limits(kwargs: Settings) -> Limits:
    """Sides are multiples of the product of the strides along their axis."""
    return limits_of_strides(kwargs.get("strides", _STRIDES))


def read_widths(tensors: Mapping[str, torch.Tensor]) -> dict[str, object]:
    """Filters, strides and kernels from the tensors. A stage's stride is the kernel of the
    transposed convolution that reverses it.
    """
    first = "input_block.conv1.conv.weight"
    downs = sum(f"downsamples.{i}.conv1.conv.weight" in tensors for i in range(10))
    blocks = [
        first,
        *(f"downsamples.{i}.conv1.conv.weight" for i in range(downs)),
        "bottleneck.conv1.conv.weight",
    ]
    ups = [f"upsamples.{i}.transp_conv.conv.weight" for i in reversed(range(downs + 1))]
    if any(key not in tensors for key in (*blocks, *ups)):
        return {}
    return {
        "filters": [tensors[key].shape[0] for key in blocks],
        "strides": [1, *(list(tensors[key].shape[2:]) for key in ups)],
        "kernels": [list(tensors[key].shape[2:]) for key in blocks],
        "res_block": any(".conv3." in key for key in tensors),
    }


DYNUNET = register(
    Architecture(
        name="dynunet",
        build=build,
        divisor=16,
        minimum=16,
        paper="Isensee et al. 2021, nnU-Net, Nature Methods 18, doi 10.1038/s41592-020-01008-z",
        licence="Apache-2.0 (MONAI)",
        small={"filters": (4, 8, 16), "strides": (1, 2, 2)},
        limits=limits,
        read_widths=read_widths,
    )
)
