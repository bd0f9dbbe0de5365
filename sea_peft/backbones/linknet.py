"""LinkNet in 3D (Chaurasia and Culurciello 2017, arXiv 1707.03718), in the shape of deepbet (Fisch
et al. 2024): residual encoder, added skips.

The stem and the first stage shrink the input by 4, three more stages by 8. Its instance norms have
no affine parameters. Module names are those of deepbet's TorchScript, so its tensors fit.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from sea_peft.backbones.registry import Architecture, register


def _norm_relu(layer: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(layer, nn.InstanceNorm3d(channels), nn.ReLU())


class Block(nn.Module):
    """Residual block: [B, in, D, H, W] → [B, out, D/s, H/s, W/s]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, 3, stride, 1, bias=False),
            nn.InstanceNorm3d(out_channels),
            nn.ReLU(),
            nn.Conv3d(out_channels, out_channels, 3, 1, 1, bias=False),
            nn.InstanceNorm3d(out_channels),
        )
        if stride > 1:
            self.downsample: nn.Module = nn.Sequential(
                nn.Conv3d(in_channels, out_channels, 1, stride, bias=False),
                nn.InstanceNorm3d(out_channels),
            )
        else:
            self.downsample = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.double_conv(x) + self.downsample(x))


class Down(nn.Module):
    """Two residual blocks, the first with the stride."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.block1, self.block2 = (
            Block(in_channels, out_channels, stride),
            Block(out_channels, out_channels, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block2(self.block1(x))


class Up(nn.Module):
    """Reduce to a quarter of the channels, upsample by the stride, widen: `[B, in, D, H, W]` → `[B,
    out, sD, sH, sW]`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        inner = in_channels // 4
        self.conv1 = _norm_relu(nn.Conv3d(in_channels, inner, 1, bias=False), inner)
        up = nn.ConvTranspose3d(inner, inner, 3, stride, 1, output_padding=stride - 1, bias=False)
        self.tp_conv = _norm_relu(up, inner)
        self.conv2 = _norm_relu(nn.Conv3d(inner, out_channels, 1, bias=False), out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.tp_conv(self.conv1(x)))


class LinkNet3d(nn.Module):
    """[B, in, D, H, W] → logits [B, out, D, H, W], sides multiples of 32. Module names are
    those of deepbet's script.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int) -> None:
        super().__init__()
        w = width
        self.init = nn.Sequential(
            nn.Conv3d(in_channels, w, 7, 2, 3, bias=False),
            nn.InstanceNorm3d(w),
            nn.ReLU(),
            nn.MaxPool3d(3, 2, 1),
        )
        self.down0, self.down1 = Down(w, w, 1), Down(w, 2 * w, 2)
        self.down2, self.down3 = Down(2 * w, 4 * w, 2), Down(4 * w, 8 * w, 2)
        self.up0, self.up1 = Up(8 * w, 4 * w, 2), Up(4 * w, 2 * w, 2)
        self.up2, self.up3 = Up(2 * w, w, 2), Up(w, w, 1)
        self.tp_conv1 = _norm_relu(nn.ConvTranspose3d(w, w // 2, 3, 2, 1, output_padding=1), w // 2)
        self.conv = _norm_relu(nn.Conv3d(w // 2, w // 2, 3, 1, 1), w // 2)
        self.tp_conv2 = nn.ConvTranspose3d(w // 2, out_channels, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = self.init(x)
        first = self.down0(start)
        second = self.down1(first)
        third = self.down2(second)
        x = self.up0(self.down3(third)) + third
        x = self.up1(x) + second
        x = self.up2(x) + first
        x = self.up3(x) + start
        return self.tp_conv2(self.conv(self.tp_conv1(x)))


def build(in_channels: int = 1, out_channels: int = 2, width: int = 16) -> nn.Module:
    """`[B, in, D, H, W]` → `[B, out, D, H, W]`, sides multiples of 32. With the default width of
    16: 2.13 M parameters, deepbet's shape.

    Raises ValueError if the width is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"width {width} is no multiple of 4")
    return LinkNet3d(in_channels, out_channels, width)


def read_widths(tensors: Mapping[str, torch.Tensor]) -> dict[str, object]:
    """The width from the stem."""
    first = tensors.get("init.0.weight")
    return {} if first is None else {"width": first.shape[0]}


LINKNET = register(
    Architecture(
        name="linknet",
        build=build,
        divisor=32,
        minimum=64,
        paper=(
            "Chaurasia and Culurciello 2017, arXiv 1707.03718; shape of Fisch et al. 2024, deepbet,"
            " doi 10.1016/j.compbiomed.2024.108845"
        ),
        licence="Apache-2.0 (sea_peft)",
        small={"width": 4},
        read_widths=read_widths,
    )
)
