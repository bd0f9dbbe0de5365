"""LoRA and its variants against HF PEFT, and against modules with another weight."""

from __future__ import annotations

import copy

import pytest
import torch
from references import CONVOLUTIONS, TRANSPOSED, adapter_at, agree, prepared, random, site_at
from torch import nn

from sea_peft.adapters import Unit, families

# HF PEFT 0.21 leaves the dilation out of its branch, and cannot merge a 1×1×1 convolution
_LORA = [
    ("lora", alpha, name)
    for alpha in (None, 8.0)
    for name in (*CONVOLUTIONS, "linear")
    if name != "dilated"
]
_LORA += [("lora_rs", 4.0, name) for name in ("plain", "strided", "linear")]


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize(("family", "alpha", "name"), _LORA)
def test_lora_is_that_of_hf_peft(family, alpha, name, rank, monkeypatch):
    peft = pytest.importorskip("peft")
    monkeypatch.setattr(families()[family], "alpha", alpha)
    module = prepared(CONVOLUTIONS[name] if name in CONVOLUTIONS else nn.Linear(7, 5))
    x = random((2, 3, 8, 6, 6) if name in CONVOLUTIONS else (2, 4, 7), seed=1)
    ours = adapter_at(family, module, x, level=rank)
    settings = {"lora_alpha": alpha or rank, "use_rslora": family == "lora_rs"}
    config = peft.LoraConfig(r=rank, target_modules=["0"], init_lora_weights=False, **settings)
    theirs = peft.get_peft_model(nn.Sequential(copy.deepcopy(module)), config).double().eval()
    layer = theirs.base_model.model[0]
    layer.lora_A["default"].weight.data = ours.down.detach().clone()
    layer.lora_B["default"].weight.data = (
        ours.up.detach().clone().view_as(layer.lora_B["default"].weight)
    )
    with torch.no_grad():
        torch.testing.assert_close(ours(x, module(x)), theirs(x), rtol=1e-10, atol=1e-10)
        if name == "pointwise":
            return
        folded = theirs.merge_and_unload()[0].weight
    merged = ours.merged(dict(module.named_parameters()))["weight"]
    torch.testing.assert_close(merged, folded, rtol=1e-10, atol=1e-10)


def test_lora_from_weights_starts_from_the_principal_components_of_the_filters():
    module, x = prepared(CONVOLUTIONS["plain"]), random((2, 3, 6, 6, 6), seed=1)
    adapter = families()["lora_pca"](site_at(module, x), module, 2, "", torch.Generator())
    filters = module.weight.flatten(1)
    covariance = torch.cov(filters.T, correction=0)
    variance = torch.linalg.eigvalsh(covariance).flip(0)
    down = adapter.down.detach().double().flatten(1)
    torch.testing.assert_close(
        down @ down.T, torch.eye(2, dtype=torch.float64), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        torch.diag(down @ covariance @ down.T), variance[:2], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("width", "rank"), [(8, 4), (12, 6)])
def test_lora_of_half_the_width_has_the_rank_of_half_the_outputs(width, rank):
    module, x = (
        prepared(nn.ConvTranspose3d(width, width, 2, stride=2)),
        random((2, width, 3, 3, 3), seed=1),
    )
    assert adapter_at("lora_half", module, x).up.shape == (width, rank)
    assert (
        "-"
        not in Unit(family="lora_half", level=0, placement="", site=site_at(module, x), cost=0).id
    )


def test_lora_costs_what_hf_peft_trains():
    peft = pytest.importorskip("peft")
    module = CONVOLUTIONS["plain"]
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["0"])
    theirs = peft.get_peft_model(nn.Sequential(copy.deepcopy(module)), config)
    ours = adapter_at("lora", prepared(module), random((1, 3, 6, 6, 6), 1), level=2)
    assert sum(p.numel() for p in ours.parameters()) == theirs.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("name", [*CONVOLUTIONS, "linear"])
def test_lora_is_the_module_with_another_weight(name):
    module = prepared(CONVOLUTIONS[name] if name in CONVOLUTIONS else nn.Linear(7, 5))
    x = random((2, 3, 8, 6, 6) if name in CONVOLUTIONS else (2, 4, 7), seed=1)
    adapter = adapter_at("lora", module, x, level=2)
    changed = copy.deepcopy(module)
    changed.weight += (adapter.up @ adapter.down.flatten(1)).detach().view_as(changed.weight)
    agree(adapter, module, changed, x)


@pytest.mark.parametrize("name", TRANSPOSED)
def test_lora_on_a_transposed_convolution_changes_its_weight_by_a_matrix_of_its_rank(name):
    module, x = prepared(TRANSPOSED[name]), random((2, 3, 4, 4, 4), seed=1)
    adapter = adapter_at("lora", module, x, level=2)
    changed = copy.deepcopy(module)
    for i in range(module.in_channels):
        for o in range(module.out_channels):
            changed.weight[i, o] += sum(
                adapter.up[o, r] * adapter.down[i, r] for r in range(2)
            ).detach()
    agree(adapter, module, changed, x)
    by_output = (changed.weight - module.weight).transpose(0, 1).flatten(1)
    assert int(torch.linalg.matrix_rank(by_output)) == 2
