"""Families that change a module's own tensors, against HF PEFT and against copies with changed
tensors.
"""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from references import CONVOLUTIONS, NORMS, TRANSPOSED, adapter_at, agree, prepared, random, site_at
from torch import nn

from sea_peft.adapters import Bank, CannotMerge, Offer, families, units_for
from sea_peft.backbones import find_sites

# -- (IA)³, SSF and TSA ----------------------------------------------


@pytest.mark.parametrize("name", [*CONVOLUTIONS, "linear"])
def test_ia3_is_that_of_hf_peft(name):
    peft = pytest.importorskip("peft")
    module = prepared(CONVOLUTIONS[name] if name in CONVOLUTIONS else nn.Linear(7, 5))
    x = random((2, 3, 8, 6, 6) if name in CONVOLUTIONS else (2, 4, 7), seed=1)
    ours = adapter_at("ia3", module, x)
    config = peft.IA3Config(target_modules=["0"], feedforward_modules=[])
    theirs = peft.get_peft_model(nn.Sequential(copy.deepcopy(module)), config).double().eval()
    factor = theirs.base_model.model[0].ia3_l["default"]
    factor.data = (1.0 + ours.scale.detach()).view_as(factor)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, module(x)), theirs(x), rtol=1e-10, atol=1e-10)
    assert sum(p.numel() for p in ours.parameters()) == theirs.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize(
    "name", ["plain", "pointwise", "doubling", "group", "layer", "batch", "linear"]
)
def test_ssf_is_the_module_with_scaled_and_shifted_tensors(name):
    module = prepared((CONVOLUTIONS | TRANSPOSED | NORMS | {"linear": nn.Linear(7, 5)})[name])
    x = random(
        {"linear": (2, 6, 7), "layer": (2, 9, 4)}.get(
            name, (2, 4 if name in NORMS else 3, 6, 6, 6)
        ),
        seed=1,
    )
    adapter = adapter_at("ssf", module, x)
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
    agree(adapter, module, changed, x)


def test_ssf_without_a_bias_cannot_be_merged():
    module, x = prepared(CONVOLUTIONS["strided"]), random((2, 3, 8, 6, 6), seed=1)
    with pytest.raises(CannotMerge, match="no bias"):
        adapter_at("ssf", module, x).merged(dict(module.named_parameters()))


@pytest.mark.parametrize("family", ["ssf", "ia3", "bias"])
def test_what_a_norm_takes_away_again_is_not_offered(family):
    module, x = nn.Conv3d(3, 5, 3, padding=1), torch.randn(1, 3, 6, 6, 6)
    site = site_at(module, x)
    assert families()[family].fits(site, module, 0, "")
    assert not families()[family].fits(dataclasses.replace(site, normed=True), module, 0, "")


@pytest.mark.parametrize(
    ("name", "tap"), [("plain", 1), ("strided", 1), ("dilated", 1), ("same", 1), ("patches", 0)]
)
def test_tsa_is_the_convolution_with_another_tap(name, tap):
    module = prepared((CONVOLUTIONS | {"patches": nn.Conv3d(3, 5, 2, stride=2)})[name])
    x = random((2, 3, 7, 6, 9), seed=1)
    adapter = adapter_at("tsa", module, x)
    changed = copy.deepcopy(module)
    changed.weight[:, :, tap, tap, tap] += adapter.weight.detach()
    agree(adapter, module, changed, x)


def test_tsa_does_not_fit_a_pointwise_kernel_nor_one_whose_output_is_larger():
    for module in (CONVOLUTIONS["pointwise"], nn.Conv3d(3, 5, 3, padding=2)):
        site = site_at(module, torch.randn(1, 3, 6, 6, 6))
        assert not families()["tsa"].fits(site, module, 0, "")


@pytest.mark.parametrize("groups", [2, 4])
def test_tsa_beside_a_grouped_convolution_is_one_without_groups(groups):
    module, x = (
        prepared(nn.Conv3d(4, 8, 3, padding=1, groups=groups)),
        random((2, 4, 6, 6, 6), seed=1),
    )
    adapter = adapter_at("tsa", module, x)
    dense = nn.Conv3d(4, 8, 3, padding=1).double()
    dense.load_state_dict({"bias": module.bias, **adapter.merged(dict(module.named_parameters()))})
    torch.testing.assert_close(dense(x), adapter(x, module(x)), rtol=1e-12, atol=1e-12)


# -- affine, bias, full against the module's own tensors, changed ----------------------------------


@pytest.mark.parametrize("name", [*NORMS, "group, a scale of zero"])
def test_affine_is_the_norm_with_other_scale_and_shift(name):
    kind, _, zero = name.partition(", ")
    module = prepared(NORMS[kind])
    if zero:
        module.weight[0] = 0.0
    x = random((2, 9, 4) if kind == "layer" else (2, 4, 5, 5, 5), seed=1)
    adapter = adapter_at("affine", module, x)
    changed = copy.deepcopy(module)
    changed.weight += adapter.scale.detach()
    changed.bias += adapter.shift.detach()
    agree(adapter, module, changed, x)


def test_affine_without_scale_and_shift_of_the_norms_own():
    module, x = nn.InstanceNorm3d(4).double(), random((2, 4, 5, 5, 5), seed=1)
    adapter = adapter_at("affine", module, x)
    expected = (
        module(x) * (1 + adapter.scale)[:, None, None, None] + adapter.shift[:, None, None, None]
    )
    torch.testing.assert_close(adapter(x, module(x)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [*CONVOLUTIONS, *TRANSPOSED, *NORMS, "linear"])
def test_bias_is_the_module_with_another_bias(name):
    module = prepared((CONVOLUTIONS | TRANSPOSED | NORMS | {"linear": nn.Linear(7, 5)})[name])
    x = random(
        {"linear": (2, 6, 7), "layer": (2, 9, 4)}.get(
            name, (2, 4 if name in NORMS else 3, 6, 6, 6)
        ),
        seed=1,
    )
    site = site_at(module, x)
    assert families()["bias"].fits(site, module, 0, "") == (module.bias is not None)
    if module.bias is None:
        return
    adapter = adapter_at("bias", module, x)
    changed = copy.deepcopy(module)
    changed.bias += adapter.shift.detach()
    agree(adapter, module, changed, x)


@pytest.mark.parametrize("name", [*CONVOLUTIONS, *TRANSPOSED, "grouped", "linear"])
def test_full_is_the_module_with_other_tensors(name):
    grouped = nn.Conv3d(4, 4, 3, padding=1, groups=2)
    module = prepared(
        (CONVOLUTIONS | TRANSPOSED | {"grouped": grouped, "linear": nn.Linear(7, 5)})[name]
    )
    x = random((2, 6, 7) if name == "linear" else (2, module.in_channels, 6, 6, 6), seed=1)
    adapter = adapter_at("full", module, x)
    changed = copy.deepcopy(module)
    changed.weight += adapter.weight.detach()
    if module.bias is not None:
        changed.bias += adapter.bias.detach()
    agree(adapter, module, changed, x)


@pytest.mark.parametrize("family", ["lora", "full"])
def test_a_convolution_that_does_not_pad_with_zeros_is_not_taken_for_one_that_does(family):
    module, x = nn.Conv3d(3, 5, 3, padding=1, padding_mode="circular"), torch.randn(1, 3, 6, 6, 6)
    assert not families()[family].fits(site_at(module, x), module, 2, "")


class _Standardised(nn.Conv3d):
    def forward(self, x):
        return self._conv_forward(
            x, self.weight - self.weight.mean((1, 2, 3, 4), keepdim=True), self.bias
        )


def _tied():
    first, second = nn.Conv3d(4, 4, 3, padding=1), nn.Conv3d(4, 4, 3, padding=1)
    second.weight = first.weight
    return nn.Sequential(first, nn.ReLU(), second)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (
            lambda: nn.utils.parametrizations.weight_norm(nn.Conv3d(4, 4, 3, padding=1)),
            "weight or spectral",
        ),
        (
            lambda: nn.utils.parametrizations.spectral_norm(nn.Conv3d(4, 4, 3, padding=1)),
            "weight or spectral",
        ),
        (lambda: _Standardised(4, 4, 3, padding=1), "_Standardised"),
        (_tied, "another module"),
    ],
    ids=["weight norm", "spectral norm", "a forward of its own", "shared"],
)
def test_where_a_weight_is_no_tensor_of_the_site_alone_lora_acts_and_cannot_be_merged(make, why):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), make(), nn.GroupNorm(2, 4), nn.Conv3d(4, 2, 1)
    )
    net, x = net.eval().requires_grad_(False), torch.randn(1, 1, 6, 6, 6)
    units = [
        u
        for u in units_for(net, find_sites(net, x), {"lora": Offer((2,))})
        if u.site.path.startswith("1")
    ]
    assert units
    with torch.no_grad():
        before = net(x)
        for unit in units:
            bank, expected = Bank(net, [unit]), Bank(copy.deepcopy(net), [unit], form="branches")
            bank.activate([unit.id])
            torch.testing.assert_close(net(x), before, rtol=0, atol=1e-6)
            bank[unit.id].up.normal_()
            expected.load_state_dict(bank.state_dict([unit.id]))
            expected.activate([unit.id])
            torch.testing.assert_close(net(x), expected.backbone(x))
            assert not torch.allclose(net(x), before)
            with pytest.raises(CannotMerge, match=why):
                bank.merged([unit.id])
            bank.activate([])
            assert torch.equal(net(x), before)


@pytest.mark.parametrize("level", [1, 2, 4, 8, 16, 32, 64])
def test_lora_fits_only_below_full_rank(level):
    module, x = nn.Conv3d(3, 5, 1), torch.randn(1, 3, 4, 4, 4)
    assert families()["lora"].fits(site_at(module, x), module, level, "") == (level < 3)
