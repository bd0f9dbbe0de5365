"""The network of hippodeep (Thyreau et al. 2018, doi 10.1016/j.media.2017.11.004): the hippocampus
on one side of a T1-weighted head.

At the input's resolution, it has a 3³ kernel in three one-dimensional parts and a 3³ convolution.
Below are two residual blocks behind max pooling; the first layer of each is a batch norm, which the
skip bypasses. A decoder without skips leads to a first map of the structure, which the authors
trained as a separate output. That map, blurred by a learnt 7³ kernel, gates the features at the
input's resolution, from which the second map, the output, is made. Module names are those of the
authors' checkpoint.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from sea_peft.backbones.registry import Architecture, register


class HippodeepNet(nn.Module):
    """`[B, in, D, H, W]` → logits `[B, out, D, H, W]`, sides multiples of 4.

    The authors' first kernels are unpadded and lose two voxels on each side. Here they are padded
    with zeros, which affects only voxels near a side.
    """

    def __init__(self, in_channels: int, out_channels: int, stem: int, width: int) -> None:
        super().__init__()
        self.conv0a_0 = nn.Conv3d(in_channels, stem, (1, 1, 3), padding=(0, 0, 1))
        self.conv0a_1 = nn.Conv3d(stem, stem, (1, 3, 1), padding=(0, 1, 0))
        self.conv0a = nn.Conv3d(stem, stem, (3, 1, 1), padding=(1, 0, 0))
        self.convf1 = _conv(stem, width)
        self.bn1, self.bn2 = nn.BatchNorm3d(width), nn.BatchNorm3d(width)
        self.convout0, self.convout1 = _conv(width, width), _conv(width, width)
        self.convout2p, self.convout2 = _conv(width, width), _conv(width, width)
        self.convlx3, self.convlx5 = _conv(width, width), _conv(width, width)
        self.convlx7, self.convlx8 = _conv(width, stem), nn.Conv3d(stem, 1, 1)
        self.blur = nn.Conv3d(1, 1, 7, padding=3)
        self.conv_extract = _conv(width, width - 1)
        self.convmix, self.convout1x = _conv(width, stem), nn.Conv3d(stem, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.conv0a_0, self.conv0a_1, self.conv0a, self.convf1):
            x = F.relu(layer(x))
        fine = x
        for norm, first, second in (
            (self.bn1, self.convout0, self.convout1),
            (self.bn2, self.convout2p, self.convout2),
        ):
            pooled = F.max_pool3d(x, 2)
            x = F.relu(second(F.relu(first(norm(pooled)))) + pooled)
        x = F.interpolate(F.relu(self.convlx3(x)), scale_factor=2.0)
        x = F.interpolate(F.relu(self.convlx5(x)), scale_factor=2.0)
        rough = torch.sigmoid(self.convlx8(F.relu(self.convlx7(x))))
        gated = fine * torch.sigmoid(self.blur(rough))
        x = torch.cat((rough, F.leaky_relu(self.conv_extract(gated))), dim=1)
        return self.convout1x(F.relu(self.convmix(x)))


def _conv(before: int, after: int) -> nn.Conv3d:
    return nn.Conv3d(before, after, 3, padding=1)


def build(
    in_channels: int = 1, out_channels: int = 2, stem: int = 16, width: int = 48
) -> nn.Module:
    """`[B, in, D, H, W]` → `[B, out, D, H, W]`, sides multiples of 4. With the default widths:
    499,002 parameters.

    `stem`: channels of the first layers, and of the last ones of each map. `width`: of all others.
    """
    return HippodeepNet(in_channels, out_channels, stem, width)


def read_widths(tensors: Mapping[str, torch.Tensor]) -> dict[str, object]:
    """Both widths from the first convolutions."""
    names = ("conv0a_0.weight", "convf1.weight")
    if any(name not in tensors for name in names):
        return {}
    stem, width = (tensors[name].shape[0] for name in names)
    return {"stem": stem, "width": width}


HIPPODEEP = register(
    Architecture(
        name="hippodeep",
        build=build,
        divisor=4,
        minimum=16,
        paper="Thyreau et al. 2018, Medical Image Analysis 43, doi 10.1016/j.media.2017.11.004",
        licence="Apache-2.0 (sea_peft)",
        small={"stem": 2, "width": 4},
        read_widths=read_widths,
    )
)
