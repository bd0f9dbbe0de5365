"""nnU-Net's networks (Isensee et al. 2021, 2024, arXiv 2404.09556): plain and residual-encoder
U-Net, without deep supervision.

They are built by the package `dynamic-network-architectures`, as in nnU-Net itself, so its
checkpoints fit. The package registers each convolution under two names and the encoder once more
inside the decoder; tensors are counted once.
"""

import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sea_peft.backbones.limits import Limits, Settings
from sea_peft.backbones.registry import Architecture, Needed, register
from sea_peft.backbones.strides import Strides, limits_of_strides

_NEEDS = Needed("dynamic_network_architectures", "dynamic-network-architectures")
_FEATURES = (32, 64, 128, 256, 320, 320)
_STRIDES: Strides = (1, 2, 2, 2, 2, 2)


def _as_lists(strides: Strides) -> list[int | list[int]]:
    return [s if isinstance(s, int) else list(s) for s in strides]


def _build(
    network: str,
    decoder_convs: Sequence[int],
    encoder: Mapping[str, Sequence[int]],
    in_channels: int = 1,
    out_channels: int = 2,
    features: Sequence[int] = _FEATURES,
    strides: Strides = _STRIDES,
    kernels: Strides | None = None,
) -> nn.Module:
    """`network`, of the package's U-Nets: `[B, in, D, H, W]` → `[B, out, D, H, W]`.

    `encoder`: its depth per stage, under the package's name. `features`, `strides`, `kernels`: per
    stage from the input down. `decoder_convs`: per stage from the bottom up.
    """
    from dynamic_network_architectures.architectures import unet

    return getattr(unet, network)(
        input_channels=in_channels,
        num_classes=out_channels,
        n_stages=len(features),
        features_per_stage=list(features),
        conv_op=nn.Conv3d,
        kernel_sizes=[3] * len(features) if kernels is None else _as_lists(kernels),
        strides=_as_lists(strides),
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=False,
        n_conv_per_stage_decoder=list(decoder_convs),
        **{name: list(depth) for name, depth in encoder.items()},
    )


def build_plain(
    convs: Sequence[int] = (2,) * 6, decoder_convs: Sequence[int] = (2,) * 5, **plans: Any
) -> nn.Module:
    """The plain U-Net. With the default widths, those of most `3d_fullres` plans: 31.2 M
    parameters.

    `convs`: convolutions per stage from the input down; the rest as for `_build`. Raises UsageError
    if the package is not installed.
    """
    _NEEDS.require("nnunet_plain")
    return _build("PlainConvUNet", decoder_convs, {"n_conv_per_stage": convs}, **plans)


def build_resenc(
    blocks: Sequence[int] = (1, 3, 4, 6, 6, 6),
    decoder_convs: Sequence[int] = (1,) * 5,
    **plans: Any,
) -> nn.Module:
    """The residual-encoder U-Net. With the default widths, those of the ResEnc-M and -L plans: 102
    M parameters.

    `blocks`: residual blocks per stage from the input down; the rest as for `_build`. Raises
    UsageError if the package is not installed.
    """
    _NEEDS.require("nnunet_resenc")
    return _build("ResidualEncoderUNet", decoder_convs, {"n_blocks_per_stage": blocks}, **plans)


def limits(kwargs: Settings) -> Limits:
    """Sides are multiples of the product of the strides along their axis."""
    return limits_of_strides(kwargs.get("strides", _STRIDES))


def _first_convs(tensors: Mapping[str, torch.Tensor], pattern: str) -> list[torch.Tensor]:
    """The weights called `pattern` with 0, 1, … for its `#`, up to the last one there is."""
    found: list[torch.Tensor] = []
    while (weight := tensors.get(pattern.replace("#", str(len(found))))) is not None:
        found.append(weight)
    return found


def _read(setting: str, convolution: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, object]:
    """The plans' network settings, read off the tensors. A stage's stride is the kernel of the
    transposed convolution that reverses it.

    `setting`: name of the encoder's depth. `convolution`: key of the `at`-th convolution or block
    of the encoder's `stage`.
    """
    firsts = _first_convs(tensors, convolution.format(stage="#", at=0))
    if not firsts:
        return {}
    ups = _first_convs(tensors, "decoder.transpconvs.#.weight")
    depth = collections.Counter(
        key.split(".")[2]
        for key in tensors
        if key.startswith("decoder.stages.") and key.endswith(".conv.weight")
    )
    return {
        "features": [w.shape[0] for w in firsts],
        "kernels": [list(w.shape[2:]) for w in firsts],
        "strides": [1, *(list(w.shape[2:]) for w in reversed(ups))],
        "decoder_convs": [depth[str(i)] for i in range(len(ups))],
        setting: [
            len(_first_convs(tensors, convolution.format(stage=i, at="#")))
            for i in range(len(firsts))
        ],
    }


def _register(
    name: str,
    build: Callable[..., nn.Module],
    paper: str,
    setting: str,
    depth: Sequence[int],
    convolution: str,
) -> Architecture:
    return register(
        Architecture(
            name=name,
            build=build,
            divisor=32,
            minimum=32,
            paper=paper,
            licence="Apache-2.0 (dynamic-network-architectures)",
            small={
                "features": (4, 8, 16),
                "strides": (1, 2, 2),
                "decoder_convs": (1, 1),
                setting: depth,
            },
            limits=limits,
            read_widths=functools.partial(_read, setting, convolution),
            needs=_NEEDS,
        )
    )


PLAIN = _register(
    "nnunet_plain",
    build_plain,
    "Isensee et al. 2021, nnU-Net, Nature Methods 18, doi 10.1038/s41592-020-01008-z",
    "convs",
    (2, 2, 2),
    "encoder.stages.{stage}.0.convs.{at}.conv.weight",
)
RESENC = _register(
    "nnunet_resenc",
    build_resenc,
    "Isensee et al. 2024, nnU-Net Revisited (MICCAI), arXiv 2404.09556",
    "blocks",
    (1, 1, 1),
    "encoder.stages.{stage}.blocks.{at}.conv1.conv.weight",
)
