"""How far a network looks: the voxels of its input that can change one voxel of its output."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from sea_peft.backbones.limits import Limits, Size
from sea_peft.backbones.unet3d import BatchStatisticsNorm

_LONG = (64, 128, 256)
_SHORT = 32  # voxels along the two axes that are not measured


@dataclasses.dataclass(frozen=True)
class FieldOfView:
    """The voxels that one voxel of the output depends on.

    Attributes:
        extent: voxels along D, H, W.
        bounded: whether it ends there; otherwise the network sees at least that much.
        statistics: whether norms also use mean and deviation over the whole input, so that the size
            of a patch changes the output.
    """

    extent: Size
    bounded: bool
    statistics: bool


def field_of_view(network: nn.Module, channels: int, limits: Limits) -> FieldOfView:
    """Measure the extent of the nonzero gradient of one output voxel with respect to a noise input.

    Each axis is measured by itself, in an input that is long along it and short elsewhere, and
    lengthened until the gradient ends within it. Takes a few seconds on a CPU. A network that takes
    one size only is assumed to see all of it.

    Args:
        network: in eval mode; left unchanged.
        channels: of its input.
        limits: the sizes that it takes.
    """
    statistics = any(_over_all(module) for module in network.modules())
    if limits.exact is not None:
        return FieldOfView(limits.exact, False, statistics)
    with _fixed_statistics(network):
        found = [_along(network, channels, limits, axis) for axis in range(3)]
    d, h, w = (extent for extent, _ in found)
    return FieldOfView((d, h, w), all(bounded for _, bounded in found), statistics)


def _over_all(module: nn.Module) -> bool:
    """Whether a norm computes its statistics from the current input, across space."""
    return isinstance(module, nn.GroupNorm | BatchStatisticsNorm) or (
        isinstance(module, nn.modules.instancenorm._InstanceNorm | nn.modules.batchnorm._BatchNorm)
        and module.running_mean is None
    )


@contextlib.contextmanager
def _fixed_statistics(network: nn.Module) -> Iterator[None]:
    """Let norms over the whole input act as maps of single voxels: their mean and deviation
    pass no gradient.
    """

    def hook(module: Any, inputs: tuple[torch.Tensor, ...], _output: object) -> torch.Tensor:
        x: torch.Tensor = inputs[0]
        groups = module.num_groups if isinstance(module, nn.GroupNorm) else x.shape[1]
        parts = x.detach().reshape(len(x), groups, -1)
        deviation = (
            (parts.var(-1, unbiased=False, keepdim=True) + 1e-5)
            .sqrt()
            .expand(parts.shape)
            .reshape(x.shape)
        )
        scale = (
            1.0
            if module.weight is None
            else module.weight.detach().reshape(1, -1, *(1,) * (x.ndim - 2))
        )
        return x / deviation * scale

    with contextlib.ExitStack() as hooks:
        for module in filter(_over_all, network.modules()):
            hooks.enter_context(module.register_forward_hook(hook))
        yield


def _along(network: nn.Module, channels: int, limits: Limits, axis: int) -> tuple[int, bool]:
    """The extent along one axis, and whether it ends within the longest input."""
    extent = 0
    for side in _LONG:
        d, h, w = (side if other == axis else _SHORT for other in range(3))
        size = limits.holding((d, h, w))
        first, last = _reached(network, channels, size, axis)
        extent = last - first + 1
        if first > 0 and last < size[axis] - 1:
            return extent, True
    return extent, False


@torch.enable_grad()
def _reached(network: nn.Module, channels: int, size: Size, axis: int) -> tuple[int, int]:
    """The first and the last plane across `axis` that the middle voxel of the output depends on."""
    generator = torch.Generator().manual_seed(0)
    like = next(network.parameters())
    noise = torch.randn(1, channels, *size, generator=generator).to(like).requires_grad_()
    middle = [n // 2 for n in size]
    d, h, w = middle
    output = network(noise)[0, :, d, h, w]
    weights = torch.randn(len(output), generator=generator).to(output)
    (gradient,) = torch.autograd.grad((output * weights).sum(), noise)
    touched = (
        gradient[0]
        .abs()
        .amax(0)
        .amax([other for other in range(3) if other != axis])
        .nonzero()
        .ravel()
    )
    return (int(touched[0]), int(touched[-1])) if len(touched) else (middle[axis], middle[axis])
