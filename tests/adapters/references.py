"""Single modules to compare families at, and the comparison with a changed copy of the module."""

from __future__ import annotations

import copy

import torch
from torch import nn

from sea_peft.adapters import Adapter, families
from sea_peft.backbones import Site
from sea_peft.backbones.sites import module_kind

CONVOLUTIONS = {
    "plain": nn.Conv3d(3, 5, 3, padding=1),
    "strided": nn.Conv3d(3, 5, 3, stride=2, padding=1, bias=False),
    "dilated": nn.Conv3d(3, 5, 3, padding=2, dilation=2),
    "pointwise": nn.Conv3d(3, 5, 1),
    "uneven": nn.Conv3d(3, 5, (3, 1, 5), padding=(1, 0, 2)),
    "same": nn.Conv3d(3, 5, 3, padding="same"),
}
TRANSPOSED = {
    "doubling": nn.ConvTranspose3d(3, 5, 2, stride=2),
    "output padding": nn.ConvTranspose3d(
        3, 5, 3, stride=2, padding=1, output_padding=1, bias=False
    ),
}
NORMS = {
    "group": nn.GroupNorm(2, 4),
    "layer": nn.LayerNorm(4),
    "batch": nn.BatchNorm3d(4),
    "batch without running statistics": nn.BatchNorm3d(4, track_running_stats=False),
    "instance": nn.InstanceNorm3d(4, affine=True),
    "instance with running statistics": nn.InstanceNorm3d(4, affine=True, track_running_stats=True),
}


def random(shape, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def site_at(module: nn.Module, x: torch.Tensor) -> Site:
    """A site at this module, as a probe with x would find it."""
    kind, y = module_kind(module), module(x)
    channels = -1 if isinstance(module, nn.Linear | nn.LayerNorm) else 1
    stride = (
        tuple(a / b for a, b in zip(x.shape[2:], y.shape[2:], strict=True))
        if x.ndim == 5
        else (1.0, 1.0, 1.0)
    )
    return Site(
        path="it",
        kind=kind,
        in_channels=x.shape[channels],
        out_channels=y.shape[channels],
        stride=stride,
        stage="encoder",
        order=0,
    )


def prepared(module: nn.Module) -> nn.Module:
    """A copy in float64 and eval mode, its vectors and running statistics away from ones and
    zeros.
    """
    module = copy.deepcopy(module).double().eval().requires_grad_(False)
    for seed, (name, tensor) in enumerate(module.state_dict().items()):
        if tensor.is_floating_point():
            tensor.copy_(
                random(tensor.shape, seed).abs() + 0.2
                if "var" in name
                else random(tensor.shape, seed)
            )
    return module


def adapter_at(
    family: str, module: nn.Module, x: torch.Tensor, level: int = 0, placement: str = ""
) -> Adapter:
    """A unit of the family for this module, with random parameters."""
    site = site_at(module, x)
    adapter = families()[family](
        site, module, level, placement, torch.Generator().manual_seed(0)
    ).double()
    for seed, p in enumerate(adapter.parameters(), start=100):
        p.data = 0.3 * random(p.shape, seed)
    return adapter


def agree(adapter: Adapter, module: nn.Module, changed: nn.Module, x: torch.Tensor) -> None:
    expected, y = changed(x), module(x)
    assert (expected - y).abs().max() > 0.01, "the reference changes nothing"
    torch.testing.assert_close(adapter(x, y), expected, rtol=1e-9, atol=1e-9)
    merged = copy.deepcopy(module)
    merged.load_state_dict(adapter.merged(dict(module.named_parameters())), strict=False)
    torch.testing.assert_close(merged(x), expected, rtol=1e-9, atol=1e-9)
