"""Families against independent computations: HF PEFT, changed copies of the module, formulas."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sea_peft.adapters import Adapted, Adapter, CannotMerge, Offer, Unit, families, units_for
from sea_peft.backbones import Site, find_sites
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


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("name", ["plain", "strided", "linear"])
def test_rank_stabilised_lora_scales_as_hf_peft_does(name, rank):
    peft = pytest.importorskip("peft")
    module = _prepared(CONVOLUTIONS[name] if name in CONVOLUTIONS else nn.Linear(7, 5))
    x = _random((2, 3, 8, 6, 6) if name in CONVOLUTIONS else (2, 4, 7), seed=1)
    ours = _adapter("lora_rs", module, x, level=rank)
    alpha = families()["lora_rs"].alpha
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, use_rslora=True, target_modules=["0"], init_lora_weights=False)
    theirs = peft.get_peft_model(nn.Sequential(copy.deepcopy(module)), config).double().eval()
    layer = theirs.base_model.model[0]
    layer.lora_A["default"].weight.data = ours.down.detach().clone()
    layer.lora_B["default"].weight.data = ours.up.detach().clone().view_as(layer.lora_B["default"].weight)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, module(x)), theirs(x), rtol=1e-10, atol=1e-10)
        folded = theirs.merge_and_unload()[0].weight
    merged = ours.merged(dict(module.named_parameters()))["weight"]
    torch.testing.assert_close(merged, folded, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("alpha", [None, 1.0, 8.0])
def test_lora_scales_by_alpha_over_the_rank(alpha, monkeypatch):
    monkeypatch.setattr(families()["lora"], "alpha", alpha)
    module, x = _prepared(nn.Linear(7, 5)), _random((2, 4, 7), seed=1)
    adapter = _adapter("lora", module, x, level=2)
    changed = copy.deepcopy(module)
    changed.weight += (1.0 if alpha is None else alpha / 2) * (adapter.up @ adapter.down).detach()
    _agree(adapter, module, changed, x)


def test_lora_from_weights_starts_from_the_principal_components_of_the_filters():
    module, x = _prepared(CONVOLUTIONS["plain"]), _random((2, 3, 6, 6, 6), seed=1)
    adapter = families()["lora_pca"](_site(module, x), module, 2, "", torch.Generator())
    filters = module.weight.flatten(1)
    covariance = torch.cov(filters.T, correction=0)
    variance = torch.linalg.eigvalsh(covariance).flip(0)
    down = adapter.down.detach().double().flatten(1)
    torch.testing.assert_close(down @ down.T, torch.eye(2, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.diag(down @ covariance @ down.T), variance[:2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("width", "rank"), [(8, 4), (12, 6)])
def test_lora_of_half_the_width_has_the_rank_of_half_the_outputs(width, rank):
    module, x = _prepared(nn.ConvTranspose3d(width, width, 2, stride=2)), _random((2, width, 3, 3, 3), seed=1)
    assert _adapter("lora_half", module, x).up.shape == (width, rank)
    assert "-" not in Unit("lora_half", 0, "", _site(module, x), 0).id


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


# -- (IA)³ against HF PEFT, SSF and TSA against changed copies ----------------------------------------------


@pytest.mark.parametrize("name", [*CONVOLUTIONS, "linear"])
def test_ia3_is_that_of_hf_peft(name):
    peft = pytest.importorskip("peft")
    module = _prepared(CONVOLUTIONS[name] if name in CONVOLUTIONS else nn.Linear(7, 5))
    x = _random((2, 3, 8, 6, 6) if name in CONVOLUTIONS else (2, 4, 7), seed=1)
    ours = _adapter("ia3", module, x)
    config = peft.IA3Config(target_modules=["0"], feedforward_modules=[])
    theirs = peft.get_peft_model(nn.Sequential(copy.deepcopy(module)), config).double().eval()
    factor = theirs.base_model.model[0].ia3_l["default"]
    factor.data = (1.0 + ours.scale.detach()).view_as(factor)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, module(x)), theirs(x), rtol=1e-10, atol=1e-10)
    assert sum(p.numel() for p in ours.parameters()) == theirs.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("name", ["plain", "pointwise", "doubling", "group", "layer", "batch", "linear"])
def test_ssf_is_the_module_with_scaled_and_shifted_tensors(name):
    module = _prepared((CONVOLUTIONS | TRANSPOSED | NORMS | {"linear": nn.Linear(7, 5)})[name])
    x = _random({"linear": (2, 6, 7), "layer": (2, 9, 4)}.get(name, (2, 4 if name in NORMS else 3, 6, 6, 6)), seed=1)
    adapter = _adapter("ssf", module, x)
    gamma = 1.0 + adapter.scale.detach()
    changed = copy.deepcopy(module)
    if name == "doubling":
        changed.weight *= gamma[:, None, None, None]
    else:
        changed.weight.copy_(
            (changed.weight.flatten(1).T * gamma).T.view_as(changed.weight)
            if changed.weight.ndim > 1
            else changed.weight * gamma
        )
    changed.bias.copy_(changed.bias * gamma + adapter.shift.detach())
    _agree(adapter, module, changed, x)


def test_ssf_without_a_bias_cannot_be_merged():
    module, x = _prepared(CONVOLUTIONS["strided"]), _random((2, 3, 8, 6, 6), seed=1)
    with pytest.raises(CannotMerge, match="no bias"):
        _adapter("ssf", module, x).merged(dict(module.named_parameters()))


@pytest.mark.parametrize("family", ["ssf", "ia3", "bias"])
def test_what_a_norm_takes_away_again_is_not_offered(family):
    module, x = nn.Conv3d(3, 5, 3, padding=1), torch.randn(1, 3, 6, 6, 6)
    site = _site(module, x)
    assert families()[family].fits(site, module, 0, "")
    assert not families()[family].fits(dataclasses.replace(site, normed=True), module, 0, "")


@pytest.mark.parametrize(("name", "tap"), [("plain", 1), ("strided", 1), ("dilated", 1), ("same", 1), ("patches", 0)])
def test_tsa_is_the_convolution_with_another_tap(name, tap):
    module = _prepared((CONVOLUTIONS | {"patches": nn.Conv3d(3, 5, 2, stride=2)})[name])
    x = _random((2, 3, 7, 6, 9), seed=1)
    adapter = _adapter("tsa", module, x)
    changed = copy.deepcopy(module)
    changed.weight[:, :, tap, tap, tap] += adapter.weight.detach()
    _agree(adapter, module, changed, x)


def test_tsa_does_not_fit_a_pointwise_kernel_nor_one_whose_output_is_larger():
    for module in (CONVOLUTIONS["pointwise"], nn.Conv3d(3, 5, 3, padding=2)):
        site = _site(module, torch.randn(1, 3, 6, 6, 6))
        assert not families()["tsa"].fits(site, module, 0, "")


def test_tsa_beside_a_grouped_convolution_cannot_be_merged():
    module, x = _prepared(nn.Conv3d(4, 4, 3, padding=1, groups=4)), _random((2, 4, 6, 6, 6), seed=1)
    with pytest.raises(CannotMerge, match="grouped"):
        _adapter("tsa", module, x).merged(dict(module.named_parameters()))


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


# -- bottlenecks and blocks against their formulae ---------------------------------------------------------


class MLP(nn.Module):
    """linear–activation–linear, as in a transformer."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(channels, 3 * channels), nn.Linear(3 * channels, channels)

    def forward(self, x):
        return self.second(F.gelu(self.first(x)))


class Attention(nn.Module):
    """One head, written with two linear layers."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x):
        return self.out(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, dim=-1)))


def _block(channels_in: int, channels_out: int, stride: float = 1.0) -> Site:
    return Site("it", "block", channels_in, channels_out, (stride,) * 3, "encoder", 0)


def _of(family: str, site: Site, module: nn.Module, level: int, placement: str = "") -> Adapter:
    adapter = families()[family](site, module, level, placement, torch.Generator().manual_seed(0)).double()
    for seed, p in enumerate(adapter.parameters(), start=100):
        p.data = 0.3 * _random(p.shape, seed)
    return adapter


def test_adaptformer_is_its_formula_and_stands_beside_mlps_only():
    block, x = MLP().double(), _random((2, 5, 8), seed=1)
    site = _block(8, 8)
    adapter, y = _of("adaptformer", site, block, 4), block(x)
    hidden = (x @ adapter.down.T + adapter.down_bias).clamp_min(0)
    expected = y + 0.1 * (hidden @ adapter.up.T + adapter.up_bias)
    torch.testing.assert_close(adapter(x, y), expected, rtol=1e-9, atol=1e-9)
    fits = families()["adaptformer"].fits
    assert fits(site, block, 4, "")
    assert not fits(site, block, 8, "")
    assert not fits(site, Attention(), 4, "")
    assert not fits(site, nn.Sequential(nn.Conv3d(8, 8, 1), nn.Conv3d(8, 8, 1)), 4, "")


def test_houlsby_is_its_formula_on_tokens_and_on_voxels():
    for block, y in ((MLP(), _random((2, 5, 8), seed=2)), (nn.Conv3d(8, 8, 1), _random((2, 8, 3, 3, 3), seed=2))):
        adapter = _of("houlsby", _block(8, 8), block, 4)
        tokens = y if y.ndim == 3 else y.movedim(1, -1)
        change = F.gelu(tokens @ adapter.down.T + adapter.down_bias) @ adapter.up.T + adapter.up_bias
        expected = y + (change if y.ndim == 3 else change.movedim(-1, 1))
        torch.testing.assert_close(adapter(y, y), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [2, 4])
def test_compacter_is_its_formula_with_kroneckers_product_written_out(n):
    y = _random((2, 5, 16), seed=2)
    adapter = _of("compacter", _block(16, 16), MLP(16), n)

    def matrix(part):
        return sum(torch.kron(part.rule[i], torch.outer(part.left[i], part.right[i])) for i in range(n))

    hidden = F.gelu(y @ matrix(adapter.down).T + adapter.down_bias)
    expected = y + hidden @ matrix(adapter.up).T + adapter.up_bias
    torch.testing.assert_close(adapter(y, y), expected, rtol=1e-9, atol=1e-9)
    assert sum(p.numel() for p in adapter.parameters()) == 2 * (n**3 + 16 + 4) + 4 + 16


@pytest.mark.parametrize("placement", ["sequential", "parallel"])
def test_convnext_is_the_paper_s_block_of_layers(placement):
    stride = 2 if placement == "parallel" else 1
    x, y = _random((2, 6, 8, 8, 8), seed=1), _random((2, 4, 8 // stride, 8 // stride, 8 // stride), seed=2)
    adapter = _of("convnext", _block(6, 4, float(stride)), nn.Conv3d(6, 4, 1), 2, placement)
    z = x if placement == "parallel" else y
    channels = z.shape[1]
    layers = nn.Sequential(
        nn.Conv3d(channels, channels, 3, stride, 1, groups=channels, bias=False), nn.GroupNorm(channels, channels),
        nn.Conv3d(channels, 2 * channels, 1), nn.GELU(), nn.Conv3d(2 * channels, 4, 1),
    ).double()  # fmt: skip
    state = {
        "0.weight": adapter.depth, "1.weight": 1 + adapter.scale, "1.bias": adapter.shift,
        "2.weight": adapter.expand[:, :, None, None, None], "2.bias": adapter.expand_bias,
        "4.weight": adapter.project[:, :, None, None, None], "4.bias": adapter.project_bias,
    }  # fmt: skip
    layers.load_state_dict(state)
    torch.testing.assert_close(adapter(x, y), y + layers(z), rtol=1e-9, atol=1e-9)


def test_what_would_need_space_does_not_fit_a_block_of_tokens():
    for family, placement in (("convnext", "sequential"), ("conv_adapter", "sequential"), ("conv_adapter", "parallel")):
        assert not families()[family].fits(_block(8, 8), MLP(), 2, placement)


def test_a_black_box_gives_the_last_convolution_and_the_head_its_features():
    class Ended(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 3, 1)

        def forward(self, x):
            return self.last(torch.relu(self.first(x)))

    network, x = Ended().double().eval().requires_grad_(False), _random((1, 1, 6, 6, 6), seed=1)
    sites = find_sites(network, x)
    units = units_for(network, sites, {"black_box": Offer()})
    assert [u.site.path for u in units] == ["last"]
    model = Adapted(network, sites, units, (1, None), 3, x).double()
    adapter = model.bank[units[0].id].double()
    for seed, p in enumerate((*adapter.parameters(), *model.head.parameters())):
        p.data = 0.1 * _random(p.shape, seed)
    features = torch.relu(network.first(x))
    adapted = features + F.conv3d(F.relu(F.conv3d(features, adapter.first, padding=1)), adapter.second, padding=1)
    model.bank.activate([units[0].id])
    expected = model.head(adapted, network.last.forward(adapted))
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)
