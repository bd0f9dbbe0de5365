"""Families against independent computations: HF PEFT, changed copies of the module, formulas."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
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
    "output padding": nn.ConvTranspose3d(3, 5, 3, stride=2, padding=1, output_padding=1, bias=False),
}
NORMS = {
    "group": nn.GroupNorm(2, 4),
    "layer": nn.LayerNorm(4),
    "batch": nn.BatchNorm3d(4),
    "batch without running statistics": nn.BatchNorm3d(4, track_running_stats=False),
    "instance": nn.InstanceNorm3d(4, affine=True),
    "instance with running statistics": nn.InstanceNorm3d(4, affine=True, track_running_stats=True),
}


def _random(shape, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _site(module: nn.Module, x: torch.Tensor) -> Site:
    """A site at this module, as a probe with x would find it."""
    kind, y = module_kind(module), module(x)
    channels = -1 if isinstance(module, nn.Linear | nn.LayerNorm) else 1
    stride = tuple(a / b for a, b in zip(x.shape[2:], y.shape[2:], strict=True)) if x.ndim == 5 else (1.0, 1.0, 1.0)
    return Site("it", kind, x.shape[channels], y.shape[channels], stride, "encoder", 0)


def _prepared(module: nn.Module) -> nn.Module:
    """A copy in float64 and eval mode, its vectors and running statistics away from ones and zeros."""
    module = copy.deepcopy(module).double().eval().requires_grad_(False)
    for seed, (name, tensor) in enumerate(module.state_dict().items()):
        if tensor.is_floating_point():
            tensor.copy_(_random(tensor.shape, seed).abs() + 0.2 if "var" in name else _random(tensor.shape, seed))
    return module


def _adapter(family: str, module: nn.Module, x: torch.Tensor, level: int = 0, placement: str = "") -> Adapter:
    """A unit of the family for this module, with random parameters."""
    site = _site(module, x)
    adapter = families()[family](site, module, level, placement, torch.Generator().manual_seed(0)).double()
    for seed, p in enumerate(adapter.parameters(), start=100):
        p.data = 0.3 * _random(p.shape, seed)
    return adapter


def _agree(adapter: Adapter, module: nn.Module, changed: nn.Module, x: torch.Tensor) -> None:
    expected, y = changed(x), module(x)
    assert (expected - y).abs().max() > 0.01, "the reference changes nothing"
    torch.testing.assert_close(adapter(x, y), expected, rtol=1e-9, atol=1e-9)
    merged = copy.deepcopy(module)
    merged.load_state_dict(adapter.merged(dict(module.named_parameters())), strict=False)
    torch.testing.assert_close(merged(x), expected, rtol=1e-9, atol=1e-9)


# -- LoRA against HF PEFT ----------------------------------------------------------------------------------


# HF PEFT 0.21 leaves the dilation out of its branch, and cannot merge a 1×1×1 convolution
@pytest.mark.parametrize("name", [*(n for n in CONVOLUTIONS if n != "dilated"), "linear"])
def test_lora_is_that_of_hf_peft(name):
    peft = pytest.importorskip("peft")
    module = _prepared(CONVOLUTIONS[name] if name in CONVOLUTIONS else nn.Linear(7, 5))
    x = _random((2, 3, 8, 6, 6) if name in CONVOLUTIONS else (2, 4, 7), seed=1)
    ours = _adapter("lora", module, x, level=2)
    # HF PEFT scales by alpha / r
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["0"], init_lora_weights=False)
    theirs = peft.get_peft_model(nn.Sequential(copy.deepcopy(module)), config).double().eval()
    layer = theirs.base_model.model[0]
    layer.lora_A["default"].weight.data = ours.down.detach().clone()
    layer.lora_B["default"].weight.data = ours.up.detach().clone().view_as(layer.lora_B["default"].weight)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, module(x)), theirs(x), rtol=1e-10, atol=1e-10)
        if name == "pointwise":
            return
        folded = theirs.merge_and_unload()[0].weight
    merged = ours.merged(dict(module.named_parameters()))["weight"]
    torch.testing.assert_close(merged, folded, rtol=1e-10, atol=1e-10)


def test_lora_costs_what_hf_peft_trains():
    peft = pytest.importorskip("peft")
    module = CONVOLUTIONS["plain"]
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["0"])
    theirs = peft.get_peft_model(nn.Sequential(copy.deepcopy(module)), config)
    ours = _adapter("lora", _prepared(module), _random((1, 3, 6, 6, 6), 1), level=2)
    assert sum(p.numel() for p in ours.parameters()) == theirs.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("name", [*CONVOLUTIONS, "linear"])
def test_lora_is_the_module_with_another_weight(name):
    module = _prepared(CONVOLUTIONS[name] if name in CONVOLUTIONS else nn.Linear(7, 5))
    x = _random((2, 3, 8, 6, 6) if name in CONVOLUTIONS else (2, 4, 7), seed=1)
    adapter = _adapter("lora", module, x, level=2)
    changed = copy.deepcopy(module)
    changed.weight += (adapter.up @ adapter.down.flatten(1)).detach().view_as(changed.weight)
    _agree(adapter, module, changed, x)


@pytest.mark.parametrize("name", TRANSPOSED)
def test_lora_on_a_transposed_convolution_changes_its_weight_by_a_matrix_of_its_rank(name):
    module, x = _prepared(TRANSPOSED[name]), _random((2, 3, 4, 4, 4), seed=1)
    adapter = _adapter("lora", module, x, level=2)
    changed = copy.deepcopy(module)
    for i in range(module.in_channels):
        for o in range(module.out_channels):
            changed.weight[i, o] += sum(adapter.up[o, r] * adapter.down[i, r] for r in range(2)).detach()
    _agree(adapter, module, changed, x)
    by_output = (changed.weight - module.weight).transpose(0, 1).flatten(1)
    assert int(torch.linalg.matrix_rank(by_output)) == 2


# -- affine, bias, full against the module's own tensors, changed ------------------------------------------


@pytest.mark.parametrize("name", NORMS)
def test_affine_is_the_norm_with_other_scale_and_shift(name):
    module = _prepared(NORMS[name])
    x = _random((2, 9, 4) if name == "layer" else (2, 4, 5, 5, 5), seed=1)
    adapter = _adapter("affine", module, x)
    changed = copy.deepcopy(module)
    changed.weight += adapter.scale.detach()
    changed.bias += adapter.shift.detach()
    _agree(adapter, module, changed, x)


def test_affine_is_exact_where_the_scale_is_zero():
    module, x = _prepared(NORMS["group"]), _random((2, 4, 5, 5, 5), seed=1)
    module.weight[0] = 0.0
    adapter = _adapter("affine", module, x)
    changed = copy.deepcopy(module)
    changed.weight += adapter.scale.detach()
    changed.bias += adapter.shift.detach()
    _agree(adapter, module, changed, x)


def test_affine_without_scale_and_shift_of_the_norms_own():
    module, x = nn.InstanceNorm3d(4).double(), _random((2, 4, 5, 5, 5), seed=1)
    adapter = _adapter("affine", module, x)
    expected = module(x) * (1 + adapter.scale)[:, None, None, None] + adapter.shift[:, None, None, None]
    torch.testing.assert_close(adapter(x, module(x)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [*CONVOLUTIONS, *TRANSPOSED, *NORMS, "linear"])
def test_bias_is_the_module_with_another_bias(name):
    module = _prepared((CONVOLUTIONS | TRANSPOSED | NORMS | {"linear": nn.Linear(7, 5)})[name])
    x = _random({"linear": (2, 6, 7), "layer": (2, 9, 4)}.get(name, (2, 4 if name in NORMS else 3, 6, 6, 6)), seed=1)
    site = _site(module, x)
    assert families()["bias"].fits(site, module, 0, "") == (module.bias is not None)
    if module.bias is None:
        return
    adapter = _adapter("bias", module, x)
    changed = copy.deepcopy(module)
    changed.bias += adapter.shift.detach()
    _agree(adapter, module, changed, x)


@pytest.mark.parametrize("name", [*CONVOLUTIONS, *TRANSPOSED, "grouped", "linear"])
def test_full_is_the_module_with_other_tensors(name):
    grouped = nn.Conv3d(4, 4, 3, padding=1, groups=2)
    module = _prepared((CONVOLUTIONS | TRANSPOSED | {"grouped": grouped, "linear": nn.Linear(7, 5)})[name])
    x = _random((2, 6, 7) if name == "linear" else (2, module.in_channels, 6, 6, 6), seed=1)
    adapter = _adapter("full", module, x)
    changed = copy.deepcopy(module)
    changed.weight += adapter.weight.detach()
    if module.bias is not None:
        changed.bias += adapter.bias.detach()
    _agree(adapter, module, changed, x)


@pytest.mark.parametrize("family", ["lora", "full"])
def test_a_convolution_that_does_not_pad_with_zeros_is_not_taken_for_one_that_does(family):
    module, x = nn.Conv3d(3, 5, 3, padding=1, padding_mode="circular"), torch.randn(1, 3, 6, 6, 6)
    assert not families()[family].fits(_site(module, x), module, 2, "")


@pytest.mark.parametrize("level", [1, 2, 4, 8, 16, 32, 64])
def test_lora_fits_only_below_full_rank(level):
    module, x = nn.Conv3d(3, 5, 1), torch.randn(1, 3, 4, 4, 4)
    assert families()["lora"].fits(_site(module, x), module, level, "") == (level < 3)


# -- ConvAdapter against its formula -----------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("placement", ["parallel", "sequential"])
def test_conv_adapter_is_its_formula(placement, stride):
    channels_in, channels_out, level = 8, 12, 4
    module = _prepared(nn.Conv3d(channels_in, channels_out, 3, stride=stride, padding=1))
    x = _random((2, channels_in, 6, 6, 6), seed=1)
    y = module(x)
    adapter = _adapter("conv_adapter", module, x, level, placement)
    z, step = (x, stride) if placement == "parallel" else (y, 1)
    width = z.shape[1] // level
    # a hidden channel sees its own `level` channels of z, an output channel sees every hidden channel
    hidden = [
        F.conv3d(z[:, h * level : (h + 1) * level], adapter.depth[h : h + 1], stride=step, padding=1).clamp_min(0)
        for h in range(width)
    ]
    change = [
        adapter.alpha[o] * sum(adapter.point[o, h] * hidden[h][:, 0] for h in range(width)) for o in range(channels_out)
    ]
    torch.testing.assert_close(adapter(x, y), y + torch.stack(change, dim=1), rtol=1e-9, atol=1e-9)
    assert sum(p.numel() for p in adapter.parameters()) == 27 * z.shape[1] + width * channels_out + channels_out


def test_conv_adapter_does_not_fit_where_a_parallel_branch_cannot_follow():
    up, x = nn.ConvTranspose3d(8, 8, 2, stride=2), torch.randn(1, 8, 4, 4, 4)
    assert not families()["conv_adapter"].fits(_site(up, x), up, 2, "parallel")
    odd, x = nn.Conv3d(6, 8, 3, padding=1), torch.randn(1, 6, 4, 4, 4)
    assert not families()["conv_adapter"].fits(_site(odd, x), odd, 4, "parallel")
    assert families()["conv_adapter"].fits(_site(odd, x), odd, 4, "sequential")
