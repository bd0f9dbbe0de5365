"""The all-convolution U-Net that Heinrich et al. 2019 compare OBELISK-Net with (Medical Image
Analysis 54, doi 10.1016/j.media.2019.02.006).

It has six resolutions: one convolution at the input's, then for each further one a convolution of
stride 2 and one of stride 1. The decoder upsamples trilinearly to the skip's size, appends the
skip, and has one convolution; at the input's resolution a second one is the classifier. Every
convolution is 3³, with batch norm and a leaky ReLU of slope 0.1, except for the classifier. Module
names are those of the authors' checkpoints.
"""

import itertools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from sea_peft.backbones.registry import Architecture, register

_CHANNELS = (5, 14, 28, 42, 56, 70)
_UP = ("6dU", "6cU", "6bU", "6U", "7U")
_SLOPE = 0.1


class ObeliskUNet(nn.Module):
    """[B, in, D, H, W] → [B, out, D, H, W], any size from 32 up."""

    def __init__(
        self, in_channels: int, out_channels: int, channels: Sequence[int], last: int
    ) -> None:
        super().__init__()
        self._block("0", in_channels, channels[0], 1)
        for level, (before, after) in enumerate(itertools.pairwise(channels), start=1):
            self._block(f"{level}", before, after, 2)
            self._block(f"{level}{level}", after, after, 1)
        below = channels[-1]
        for name, skip in zip(_UP, reversed(channels[:-1]), strict=True):
            after = last if name == _UP[-1] else skip
            self._block(name, below + skip, after, 1)
            below = after
        self.conv77U = nn.Conv3d(last, out_channels, 3, padding=1)

    def _block(self, name: str, before: int, after: int, stride: int) -> None:
        self.add_module(f"conv{name}", nn.Conv3d(before, after, 3, stride, 1))
        self.add_module(f"batch{name}", nn.BatchNorm3d(after))

    def _run(self, name: str, x: torch.Tensor) -> torch.Tensor:
        convolution, norm = self.get_submodule(f"conv{name}"), self.get_submodule(f"batch{name}")
        return F.leaky_relu(norm(convolution(x)), _SLOPE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self._run("0", x)
        skips = []
        for level in range(1, len(_CHANNELS)):
            skips.append(x)
            x = self._run(f"{level}{level}", self._run(f"{level}", x))
        for name, skip in zip(_UP, reversed(skips), strict=True):
            up = F.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=False)
            x = self._run(name, torch.cat((up, skip), dim=1))
        return self.conv77U(x)


def build(
    in_channels: int = 1, out_channels: int = 2, channels: Sequence[int] = _CHANNELS, last: int = 9
) -> nn.Module:
    """`[B, in, D, H, W]` → `[B, out, D, H, W]`. With the default widths and 9 classes: 883,740
    parameters.

    `channels`: at the six resolutions. `last`: channels before the classifier; in the authors'
    networks as many as classes. Raises ValueError for another number of resolutions.
    """
    if len(channels) != len(_CHANNELS):
        raise ValueError(
            f"channels {list(channels)} are not {len(_CHANNELS)}, one for each resolution"
        )
    return ObeliskUNet(in_channels, out_channels, channels, last)


def read_widths(tensors: Mapping[str, torch.Tensor]) -> dict[str, object]:
    """Every width from the convolutions."""
    names = [
        "conv0.weight",
        *(f"conv{level}.weight" for level in range(1, len(_CHANNELS))),
        "conv7U.weight",
    ]
    if any(name not in tensors for name in names):
        return {}
    *channels, last = (tensors[name].shape[0] for name in names)
    return {"channels": channels, "last": last}


OBELISK = register(
    Architecture(
        name="obelisk",
        build=build,
        divisor=16,
        minimum=32,
        probe=(64, 64, 32),  # 32 leaves one voxel at the lowest resolution, where a ReLU may be 0
        paper=(
            "Heinrich et al. 2019, OBELISK-Net, Medical Image Analysis 54, doi"
            " 10.1016/j.media.2019.02.006"
        ),
        licence="Apache-2.0 (sea_peft)",
        small={"channels": (2, 3, 4, 5, 6, 7), "last": 3},
        read_widths=read_widths,
    )
)
