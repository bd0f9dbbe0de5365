"""MeshNet (Fedorov et al. 2017, arXiv 1612.00940; brainchop, Masoud et al. 2023): dilated
convolutions at one resolution, without norms.

Each layer but the last is a 3³ convolution and an activation. The field of view grows with the
dilations, to 93 voxels per side with those of brainchop. There are no strides and no skips, so all
layers cost the same.
"""

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from sea_peft.backbones.registry import Architecture, register

DILATIONS = (1, 2, 4, 8, 16, 8, 4, 2, 1)
_ACTIVATIONS: dict[str, type[nn.Module]] = {"elu": nn.ELU, "relu": nn.ReLU}


class MeshNet(nn.Module):
    """[B, in, D, H, W] → [B, out, D, H, W]. Its convolutions are `model.0`, `model.2`, …, as
    brainchop numbers them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int,
        dilations: Sequence[int],
        activation: str,
    ) -> None:
        super().__init__()
        widths = [in_channels, *(width for _ in dilations)]
        layers: list[nn.Module] = []
        for (before, after), dilation in zip(itertools.pairwise(widths), dilations, strict=True):
            layers += [
                nn.Conv3d(before, after, 3, padding=dilation, dilation=dilation),
                _ACTIVATIONS[activation](),
            ]
        self.model = nn.Sequential(*layers, nn.Conv3d(widths[-1], out_channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def build(
    in_channels: int = 1,
    out_channels: int = 2,
    width: int = 21,
    dilations: Sequence[int] = DILATIONS,
    activation: str = "elu",
) -> nn.Module:
    """`[B, in, D, H, W]` → `[B, out, D, H, W]`, any size. With the default width of 21 and 18
    classes: 96,408 parameters.

    `dilations`: of each 3³ convolution from the input on. `activation`: `elu` or `relu`. Raises
    ValueError for another one.
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is none of {', '.join(_ACTIVATIONS)}")
    if not dilations or min(dilations) < 1:
        raise ValueError(f"dilations {list(dilations)} are not whole numbers from 1 up")
    return MeshNet(in_channels, out_channels, width, dilations, activation)


def read_widths(tensors: Mapping[str, torch.Tensor]) -> dict[str, object]:
    """The width from the first convolution; dilations and activation leave no trace in tensors."""
    first = tensors.get("model.0.weight")
    return {} if first is None else {"width": first.shape[0]}


MESHNET = register(
    Architecture(
        name="meshnet",
        build=build,
        divisor=1,
        minimum=32,
        paper=(
            "Fedorov et al. 2017, arXiv 1612.00940; Masoud et al. 2023, brainchop, JOSS 8(83), doi"
            " 10.21105/joss.05098"
        ),
        licence="Apache-2.0 (sea_peft)",
        small={"width": 5, "dilations": (1, 2, 4, 2, 1)},
        read_widths=read_widths,
        traceless={
            "dilations": (
                "put brainchop's model.json beside the file, or give the setting"
                " dilations=[1,2,4,8,16,8,4,2,1] or what they were"
            ),
            "activation": (
                "put brainchop's model.json beside the file, or give the setting activation=elu or"
                " relu"
            ),
        },
    )
)
