"""nnU-Net's networks (Isensee et al. 2021, 2024, arXiv 2404.09556): plain and residual-encoder U-Net, deep supervision off.

They are built by the package `dynamic-network-architectures`, which nnU-Net itself builds them with, so that its checkpoints fit. The
package registers each convolution under two names and the encoder once more inside the decoder; tensors are counted once.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sea_peft.backbones.registry import Architecture, Limits, Needed, register
from sea_peft.backbones.strides import Strides, reach

_NEEDS = Needed("dynamic_network_architectures", "dynamic-network-architectures")
_FEATURES = (32, 64, 128, 256, 320, 320)
_STRIDES: Strides = (1, 2, 2, 2, 2, 2)


def _common(
    in_channels: int, out_channels: int, features: Sequence[int], strides: Strides, kernels: Strides | None
) -> dict[str, Any]:
    """What nnU-Net's plans give to both networks."""
    return {
        "input_channels": in_channels,
        "num_classes": out_channels,
        "n_stages": len(features),
        "features_per_stage": list(features),
        "conv_op": nn.Conv3d,
        "kernel_sizes": [3] * len(features)
        if kernels is None
        else [k if isinstance(k, int) else list(k) for k in kernels],
        "strides": [s if isinstance(s, int) else list(s) for s in strides],
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": False,
    }


def _affine(
    factor: float, offset: float, _network: nn.Module, inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    return (factor * inputs[0] + offset, *inputs[1:])


def _rescaled(network: nn.Module, factor: float, offset: float) -> nn.Module:
    """The network behind an affine map of its input. A hook, so that no key of the state dict changes."""
    if (factor, offset) != (1.0, 0.0):
        network.register_forward_pre_hook(functools.partial(_affine, factor, offset))
    return network


def build_plain(
    in_channels: int = 1,
    out_channels: int = 2,
    features: Sequence[int] = _FEATURES,
    strides: Strides = _STRIDES,
    kernels: Strides | None = None,
    convs: Sequence[int] = (2,) * 6,
    decoder_convs: Sequence[int] = (2,) * 5,
    input_factor: float = 1.0,
    input_offset: float = 0.0,
) -> nn.Module:
    """[B, in, D, H, W] → [B, out, D, H, W]. With the default widths, those of most `3d_fullres` plans: 31.2 M parameters.

    `features`, `strides`, `kernels`, `convs`: per stage from the input down. `decoder_convs`: per stage from the bottom up.
    `input_factor`, `input_offset`: the network sees factor·x + offset, for checkpoints whose scaling of grey values no recipe has.
    Raises UsageError where the package is not installed.
    """
    _NEEDS.require("nnunet_plain")
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    network = PlainConvUNet(
        **_common(in_channels, out_channels, features, strides, kernels),
        n_conv_per_stage=list(convs),
        n_conv_per_stage_decoder=list(decoder_convs),
    )
    return _rescaled(network, input_factor, input_offset)


def build_resenc(
    in_channels: int = 1,
    out_channels: int = 2,
    features: Sequence[int] = _FEATURES,
    strides: Strides = _STRIDES,
    kernels: Strides | None = None,
    blocks: Sequence[int] = (1, 3, 4, 6, 6, 6),
    decoder_convs: Sequence[int] = (1,) * 5,
    input_factor: float = 1.0,
    input_offset: float = 0.0,
) -> nn.Module:
    """[B, in, D, H, W] → [B, out, D, H, W]. With the default widths, those of the ResEnc-M and -L plans: 102 M parameters.

    `features`, `strides`, `kernels`, `blocks`: per stage from the input down. `decoder_convs`: per stage from the bottom up.
    `input_factor`, `input_offset`: the network sees factor·x + offset, for checkpoints whose scaling of grey values no recipe has.
    Raises UsageError where the package is not installed.
    """
    _NEEDS.require("nnunet_resenc")
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    network = ResidualEncoderUNet(
        **_common(in_channels, out_channels, features, strides, kernels),
        n_blocks_per_stage=list(blocks),
        n_conv_per_stage_decoder=list(decoder_convs),
    )
    return _rescaled(network, input_factor, input_offset)


def limits(kwargs: Mapping[str, Any]) -> Limits:
    """Sides are multiples of the product of strides; at least two voxels must be left at the bottom for its instance norms."""
    divisor = reach(kwargs.get("strides", _STRIDES))
    return Limits(divisor, 2 * divisor)


def _first_convs(tensors: Mapping[str, torch.Tensor], pattern: str) -> list[torch.Tensor]:
    """The weights called `pattern` with 0, 1, … for its `#`, as far as they go."""
    found: list[torch.Tensor] = []
    while (weight := tensors.get(pattern.replace("#", str(len(found))))) is not None:
        found.append(weight)
    return found


def _decoder(tensors: Mapping[str, torch.Tensor], firsts: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Features, kernels, strides and the decoder's depth. A stage's stride is the kernel of the transposed convolution that undoes it."""
    ups = _first_convs(tensors, "decoder.transpconvs.#.weight")
    depth = collections.Counter(
        key.split(".")[2] for key in tensors if key.startswith("decoder.stages.") and key.endswith(".conv.weight")
    )
    return {
        "features": [w.shape[0] for w in firsts],
        "kernels": [list(w.shape[2:]) for w in firsts],
        "strides": [1, *(list(w.shape[2:]) for w in reversed(ups))],
        "decoder_convs": [depth[str(i)] for i in range(len(ups))],
    }


def read_plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The plans' network settings, read off the tensors."""
    firsts = _first_convs(tensors, "encoder.stages.#.0.convs.0.conv.weight")
    if not firsts:
        return {}
    convs = [len(_first_convs(tensors, f"encoder.stages.{i}.0.convs.#.conv.weight")) for i in range(len(firsts))]
    return _decoder(tensors, firsts) | {"convs": convs}


def read_resenc(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The plans' network settings, read off the tensors."""
    firsts = _first_convs(tensors, "encoder.stages.#.blocks.0.conv1.conv.weight")
    if not firsts:
        return {}
    blocks = [len(_first_convs(tensors, f"encoder.stages.{i}.blocks.#.conv1.conv.weight")) for i in range(len(firsts))]
    return _decoder(tensors, firsts) | {"blocks": blocks}


def _register(
    name: str,
    build: Callable[..., nn.Module],
    read: Callable[[Mapping[str, torch.Tensor]], dict[str, Any]],
    paper: str,
    depth: dict[str, Any],
) -> Architecture:
    return register(
        Architecture(
            name=name,
            build=build,
            divisor=32,
            minimum=64,
            paper=paper,
            licence="Apache-2.0 (dynamic-network-architectures)",
            small={"features": (4, 8, 16), "strides": (1, 2, 2), "decoder_convs": (1, 1), **depth},
            limits=limits,
            read_widths=read,
            needs=_NEEDS,
        )
    )


PLAIN = _register(
    "nnunet_plain",
    build_plain,
    read_plain,
    "Isensee et al. 2021, nnU-Net, Nature Methods 18, doi 10.1038/s41592-020-01008-z",
    {"convs": (2, 2, 2)},
)
RESENC = _register(
    "nnunet_resenc",
    build_resenc,
    read_resenc,
    "Isensee et al. 2024, nnU-Net Revisited (MICCAI), arXiv 2404.09556",
    {"blocks": (1, 1, 1)},
)
