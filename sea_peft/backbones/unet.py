"""Residual U-Net (Kerfoot et al. 2019): MONAI's UNet with two residual units per level, several
times faster than SegResNet on a CPU.
"""

from collections.abc import Sequence

from torch import nn

from sea_peft.backbones.limits import Limits, Settings
from sea_peft.backbones.registry import Architecture, register
from sea_peft.backbones.strides import limits_of_strides

_CHANNELS = (16, 32, 64, 128, 256)


def build(
    in_channels: int = 1, out_channels: int = 2, channels: Sequence[int] = _CHANNELS
) -> nn.Module:
    """[B, in, D, H, W] → [B, out, D, H, W]. With the default widths: 4.8 M parameters."""
    from monai.networks.nets import UNet

    return UNet(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        channels=tuple(channels),
        strides=(2,) * (len(channels) - 1),
        num_res_units=2,
        norm="instance",
    )


def limits(kwargs: Settings) -> Limits:
    """Each stage but the first halves the input."""
    return limits_of_strides((2,) * (len(kwargs.get("channels", _CHANNELS)) - 1))


UNET = register(
    Architecture(
        name="unet",
        build=build,
        divisor=16,
        minimum=16,
        paper=(
            "Kerfoot et al. 2019, Left-Ventricle Quantification Using Residual U-Net (STACOM 2018)"
        ),
        licence="Apache-2.0 (MONAI)",
        small={"channels": (4, 8, 16)},
        weights="phantom_unet",
        limits=limits,
    )
)
