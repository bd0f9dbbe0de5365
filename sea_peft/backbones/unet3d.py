"""UNet3D: the U-Net of the SuPreM checkpoints (Li et al., ICLR 2024; shape of Çiçek et al. 2016,
arXiv 1606.06650), under their key names.

Two convolutions per stage, max pooling, transposed convolutions, concatenated skips. Its batch norm
uses the statistics of the current batch in training and evaluation alike; the running statistics
have no effect. So the output for one scan depends on the others in its batch, and inference must
use a batch of one.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from sea_peft.backbones.registry import Architecture, register


class BatchStatisticsNorm(nn.BatchNorm3d):
    """y = weight·(x − mean(x)) / √(var(x) + eps) + bias, mean and variance over batch and space
    of this very input, in every mode.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)


class ConvNormRelu(nn.Module):
    """3³ convolution, batch norm, ReLU: [B, in, D, H, W] → [B, out, D, H, W]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.bn1 = BatchStatisticsNorm(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn1(self.conv1(x)))


class DownTransition(nn.Module):
    """Two convolutions; returns `[B, out, D, H, W]` before pooling."""

    def __init__(self, in_channels: int, middle: int, out_channels: int) -> None:
        super().__init__()
        self.ops = nn.Sequential(
            ConvNormRelu(in_channels, middle), ConvNormRelu(middle, out_channels)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ops(x)


class UpTransition(nn.Module):
    """Upsampling by two beside the skip, then two convolutions: [B, in, D, H, W], [B, out, 2D,
    2H, 2W] → [B, out, 2D, 2H, 2W].
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(in_channels, in_channels, 2, stride=2)
        self.ops = nn.Sequential(
            ConvNormRelu(in_channels + out_channels, out_channels),
            ConvNormRelu(out_channels, out_channels),
        )

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.ops(torch.cat([self.up_conv(x), skip], dim=1))


class Out(nn.Module):
    """The classifier, a 1³ convolution; returns logits."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.final_conv = nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.final_conv(x)


class UNet3D(nn.Module):
    """[B, in, D, H, W] → logits [B, out, D, H, W]; stages of `width`, 2, 4 and 8 times `width`
    channels. Module names are SuPreM's.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int) -> None:
        super().__init__()
        w = width
        self.down_tr64 = DownTransition(in_channels, w // 2, w)
        self.down_tr128 = DownTransition(w, w, 2 * w)
        self.down_tr256 = DownTransition(2 * w, 2 * w, 4 * w)
        self.down_tr512 = DownTransition(4 * w, 4 * w, 8 * w)
        self.up_tr256 = UpTransition(8 * w, 4 * w)
        self.up_tr128 = UpTransition(4 * w, 2 * w)
        self.up_tr64 = UpTransition(2 * w, w)
        self.out_tr = Out(w, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip64 = self.down_tr64(x)
        skip128 = self.down_tr128(F.max_pool3d(skip64, 2))
        skip256 = self.down_tr256(F.max_pool3d(skip128, 2))
        x = self.down_tr512(F.max_pool3d(skip256, 2))
        x = self.up_tr256(x, skip256)
        x = self.up_tr128(x, skip128)
        return self.out_tr(self.up_tr64(x, skip64))


def build(in_channels: int = 1, out_channels: int = 2, width: int = 64) -> nn.Module:
    """[B, in, D, H, W] → [B, out, D, H, W], sides multiples of 8. With the default width of 64:
    19.1 M parameters, SuPreM's shape.
    """
    return UNet3D(in_channels, out_channels, width)


def read_widths(tensors: Mapping[str, torch.Tensor]) -> dict[str, object]:
    """The width from the first stage's second convolution."""
    second = tensors.get("down_tr64.ops.1.conv1.weight")
    return {} if second is None else {"width": second.shape[0]}


UNET3D = register(
    Architecture(
        name="unet3d",
        build=build,
        divisor=8,
        minimum=16,
        paper=(
            "Li et al. 2024, SuPreM (ICLR); shape of Çiçek et al. 2016, 3D U-Net, arXiv 1606.06650"
        ),
        licence="Apache-2.0 (sea_peft)",
        small={"width": 4},
        read_widths=read_widths,
    )
)
