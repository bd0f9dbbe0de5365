"""deepbet (Fisch et al. 2024, doi 10.1016/j.compbiomed.2024.108845; PyPI, MIT) by `module:factory`: brain extraction from T1-weighted MR.

deepbet ships TorchScript. A script module runs as a graph, so that hooks on its parts do not fire and no adapter could act on it. This
is the same network in plain torch, with the tensors of the script; `python -m benchmarks.deepbet_backbone` shows that outputs agree.
The script ends in a softmax and this network before it: the loop wants logits.

    pip download --no-deps deepbet && unzip -o deepbet-*.whl 'data/*' -d deepbet
    DEEPBET_MODEL=deepbet/data/models/model.pt seapeft adapt scans/ --backbone benchmarks.deepbet_backbone:linknet --label brain
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from sea_peft.errors import WeightsError

VARIABLE = "DEEPBET_MODEL"


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
                nn.Conv3d(in_channels, out_channels, 1, stride, bias=False), nn.InstanceNorm3d(out_channels)
            )
        else:
            self.downsample = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.double_conv(x) + self.downsample(x))


class Down(nn.Module):
    """Two residual blocks, the first with the stride."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.block1, self.block2 = Block(in_channels, out_channels, stride), Block(out_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block2(self.block1(x))


class Up(nn.Module):
    """Squeeze to a quarter of the channels, upsample by the stride, widen: [B, in, D, H, W] → [B, out, sD, sH, sW]."""

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
    """[B, 1, D, H, W] → logits [B, 2, D, H, W], sides multiples of 32. Module names are the script's; 2.13 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.init = nn.Sequential(
            nn.Conv3d(1, 16, 7, 2, 3, bias=False), nn.InstanceNorm3d(16), nn.ReLU(), nn.MaxPool3d(3, 2, 1)
        )
        self.down0, self.down1 = Down(16, 16, 1), Down(16, 32, 2)
        self.down2, self.down3 = Down(32, 64, 2), Down(64, 128, 2)
        self.up0, self.up1 = Up(128, 64, 2), Up(64, 32, 2)
        self.up2, self.up3 = Up(32, 16, 2), Up(16, 16, 1)
        self.tp_conv1 = _norm_relu(nn.ConvTranspose3d(16, 8, 3, 2, 1, output_padding=1), 8)
        self.conv = _norm_relu(nn.Conv3d(8, 8, 3, 1, 1), 8)
        self.tp_conv2 = nn.ConvTranspose3d(8, 2, 2, 2)

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


def model_file() -> Path | None:
    """The TorchScript file: `$DEEPBET_MODEL`, or that of an installed deepbet; None where there is neither."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    found = importlib.util.find_spec("deepbet")
    file = Path(found.origin).parents[1] / "data" / "models" / "model.pt" if found and found.origin else None
    return file if file is not None and file.is_file() else None


def linknet() -> nn.Module:
    """deepbet's network with its weights. Raises WeightsError where its file is not there."""
    file = model_file()
    if file is None or not file.is_file():
        raise WeightsError(
            f"deepbet's model.pt is not there; install deepbet, or unpack its wheel and set {VARIABLE} to the file."
        )
    network = LinkNet3d()
    network.load_state_dict(torch.jit.load(file, map_location="cpu").state_dict())
    return network


linknet.divisor, linknet.minimum = 32, 64  # type: ignore[attr-defined]
linknet.paper, linknet.licence = "Fisch et al. 2024, deepbet, doi 10.1016/j.compbiomed.2024.108845", "MIT"  # type: ignore[attr-defined]
# deepbet resizes a head to 256 voxels a side, which is about 1 mm, and clips at these percentiles; an instance norm follows the first
# convolution, so that how the rest is scaled makes no difference
linknet.card = {  # type: ignore[attr-defined]
    "labels": ["background", "brain"],
    "channels": ["T1w"],
    "recipe": {
        "orientation": "RAS",
        "spacing": [1.0, 1.0, 1.0],
        "intensity": {"kind": "percentile", "low": 0.5, "high": 99.5},
    },
    "patch": [96, 96, 96],
    "source": "deepbet 1.0.2, PyPI",
}


@torch.no_grad()
def largest_difference(file: Path, side: int = 64) -> float:
    """Between the probabilities of the script and of `linknet`, on one random input of `side` voxels a side."""
    script, network = torch.jit.load(file, map_location="cpu").eval(), linknet().eval()
    x = torch.rand(1, 1, side, side, side, generator=torch.Generator().manual_seed(0))
    return float((script(x) - network(x).softmax(1)).abs().max())


if __name__ == "__main__":
    found = model_file()
    if found is None:
        raise SystemExit(
            f"deepbet's model.pt is not there; install deepbet, or unpack its wheel and set {VARIABLE} to the file."
        )
    print(f"largest difference of probabilities: {largest_difference(found):.1e}")
