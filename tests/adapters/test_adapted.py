"""The bank, the head and the two together, beyond what every family must keep."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from benches import bench
from torch import nn

from sea_peft.adapters import Adapted, Bank, Offer, TargetHead, units_for
from sea_peft.adapters.adapted import join
from sea_peft.adapters.registry import Unit, register, unit_at
from sea_peft.errors import UsageError, WeightsError


def _units(offers: dict[str, Offer], path: str | None = None) -> tuple[Unit, ...]:
    held = bench("segresnet")
    return tuple(
        u for u in units_for(held.network, held.sites, offers) if path in (None, u.site.path)
    )


def _adapted(rows=(2, None), offers=None) -> tuple[Adapted, torch.Tensor]:
    held = bench("segresnet")
    network, x = held.fresh()
    units = _units(offers or {"affine": Offer()})
    return Adapted(network, held.sites, units, rows, 3, x), x


def _train(bank: Bank, unit_ids) -> None:
    generator = torch.Generator().manual_seed(5)
    for p in bank.parameters(unit_ids):
        p.data += 0.1 * torch.randn(p.shape, generator=generator).to(p)


# -- registry --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offers", "sentence"),
    [
        ({"lorra": Offer()}, "No adapter family is called 'lorra'"),
        ({"lora": Offer(levels=(3,))}, "lora has no level 3; it has "),
        (
            {"conv_adapter": Offer(placements=("beside",))},
            "conv_adapter has no placement beside; it has parallel, sequential",
        ),
        ({"affine": Offer(kinds=("conv",))}, "affine has no kind of site conv; it has norm"),
    ],
)
def test_an_unknown_offer_is_refused_with_what_there_is(offers, sentence):
    with pytest.raises(UsageError, match=sentence):
        _units(offers)


def test_units_come_in_execution_order_and_none_at_the_head():
    units = _units({"lora": Offer(), "affine": Offer(), "bias": Offer()})
    orders = [unit.site.order for unit in units]
    assert orders == sorted(orders)
    assert "head" not in {unit.site.stage for unit in units}


def test_an_offer_narrows_levels_placements_and_kinds():
    units = _units({"conv_adapter": Offer(levels=(4,), placements=("parallel",), kinds=("block",))})
    assert {(u.level, u.placement, u.site.kind) for u in units} == {(4, "parallel", "block")}


def test_initial_values_depend_on_seed_and_id_alone():
    network, _ = bench("segresnet").fresh()
    first, second = _units({"lora": Offer(levels=(2,))})[:2]
    alone, late = Bank(network, [first], seed=3), Bank(network, [first, second], seed=3)
    late.activate([second.id])
    torch.rand(3)
    assert torch.equal(alone[first.id].down, late[first.id].down)
    assert not torch.equal(alone[first.id].down, Bank(network, [first], seed=4)[first.id].down)


def test_a_family_cannot_be_registered_twice():
    from sea_peft.adapters.lora import LoRA

    with pytest.raises(ValueError, match="twice"):
        register(LoRA)


def test_a_unit_of_another_backbone_is_refused():
    held = bench("segresnet")
    conv = next(site for site in held.sites if site.kind == "conv")
    assert unit_at(held.network, held.sites, "lora", 2, "", conv.path).cost > 0
    for family, path in (("lora", "nowhere"), ("affine", conv.path), ("unheard", conv.path)):
        with pytest.raises(WeightsError, match="no place for"):
            unit_at(held.network, held.sites, family, 2, "", path)


def test_joined_labels_share_what_added_ones_leave():
    drawn = torch.Generator().manual_seed(0)
    logits, opinion = (
        torch.randn(1, 4, 2, 2, 2, generator=drawn),
        torch.rand(1, 4, 2, 2, 2, generator=drawn),
    )
    opinion[:, 2] = 0
    opinion /= opinion.sum(dim=1, keepdim=True)
    found = join(logits, opinion, torch.tensor([2])).softmax(dim=1).numpy()
    exp = np.exp(logits.numpy())
    added = (exp / exp.sum(axis=1, keepdims=True))[:, 2]
    np.testing.assert_allclose(found[:, 2], added, rtol=1e-5)
    for label in (0, 1, 3):
        np.testing.assert_allclose(
            found[:, label], opinion.numpy()[:, label] * (1 - added), rtol=1e-5
        )


# -- bank ------------------------------------------------------------------------------------------


def test_families_at_one_site_act_together_and_merge_together():
    held = bench("segresnet")
    network, x = held.fresh(torch.float64)
    norm = next(site for site in held.sites if site.kind == "norm").path
    conv = next(site for site in held.sites if site.kind == "conv" and site.stage == "encoder").path
    offers = {"lora": Offer(levels=(2,)), "full": Offer(), "bias": Offer(), "affine": Offer()}
    units = [*_units(offers, norm), *_units(offers, conv)]
    assert {unit.family for unit in units} == {"bias", "affine", "lora", "full"}
    bank = Bank(network, units)
    ids = [unit.id for unit in units]
    for unit_id in ids:
        bank[unit_id].double()
    _train(bank, ids)
    bank.activate(ids)
    merged = copy.deepcopy(held.network).double()
    merged.load_state_dict(bank.merged(ids), strict=False)
    torch.testing.assert_close(merged(x), network(x), rtol=1e-9, atol=1e-9)


def test_the_order_in_which_gates_are_opened_does_not_matter():
    network, x = bench("segresnet").fresh()
    units = _units(
        {"affine": Offer(), "bias": Offer(), "conv_adapter": Offer(levels=(4,), kinds=("conv",))}
    )
    ids = [unit.id for unit in units]
    bank = Bank(network, units)
    _train(bank, ids)
    bank.activate(ids)
    expected = network(x)
    bank.activate(())
    bank.activate(ids[::-1])
    assert torch.equal(network(x), expected)


def test_the_bank_refuses_what_it_does_not_hold():
    network, _ = bench("segresnet").fresh()
    units = _units({"affine": Offer()})
    bank = Bank(network, units)
    bank.activate([units[0].id])
    with pytest.raises(KeyError):
        bank.activate(["affine@nowhere"])
    assert bank.active == {units[0].id}, "a refused set must leave the gates as they were"
    with pytest.raises(KeyError):
        bank.load_state_dict({"affine@nowhere/scale": torch.zeros(8)})
    with pytest.raises(RuntimeError, match="size mismatch"):
        bank.load_state_dict(
            {f"{units[0].id}/scale": torch.zeros(1), f"{units[0].id}/shift": torch.zeros(8)}
        )
    with pytest.raises(RuntimeError, match="Missing key"):
        bank.load_state_dict({f"{units[0].id}/scale": torch.zeros(8)})


def test_a_bank_leaves_no_trace_on_a_closed_backbone():
    network, _ = bench("segresnet").fresh()
    bank = Bank(network, _units({"affine": Offer()}))
    with bank.only(list(bank.units)):
        assert any(module._forward_hooks for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())


# -- head ------------------------------------------------------------------------------------------


def test_known_labels_are_the_backbones_own_probabilities_summed():
    model, x = _adapted(rows=(2,))
    ours, theirs = model(x).softmax(1), model.backbone(x).softmax(1)
    torch.testing.assert_close(ours[:, 1], theirs[:, 2])
    torch.testing.assert_close(ours[:, 0], theirs[:, 0] + theirs[:, 1])


def test_a_new_label_starts_with_a_share_of_the_backgrounds_odds_and_moves_no_other():
    known, x = _adapted(rows=(2,))
    both, _ = _adapted(rows=(2, None))
    before, after = known(x).softmax(1), both(x).softmax(1)
    background = both.backbone(x).softmax(1)[:, 0]
    odds = after[:, 2] / after[:, 1] * before[:, 1] / background
    torch.testing.assert_close(odds, torch.full_like(odds, 0.05), rtol=1e-3, atol=1e-4)


def test_the_head_counts_what_it_trains_and_gets_gradients_everywhere():
    model, x = _adapted(rows=(None, 1))
    model(x).square().mean().backward()
    parameters = list(model.head.parameters())
    assert model.head.cost == sum(p.numel() for p in parameters)
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in parameters)
    assert all(p.grad is None for p in model.backbone.parameters())


def test_a_head_that_keeps_the_known_rows_counts_and_fits_the_new_ones_only():
    model, x = _adapted(rows=(None, 1))
    whole = model.head.cost
    model.head.keeps_known = True
    assert model.head.cost * (model.head.classes + 1) == whole
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=0.1, weight_decay=0.0)
    (model(x) - 1.0).square().mean().backward()
    optimizer.step()
    for tensor in (model.head.weight, model.head.bias):
        assert not tensor[: model.head.classes].any()
        assert bool(tensor[model.head.classes :].abs().gt(0).all())


def test_the_head_acts_on_the_last_convolutions_features_only_where_nothing_follows_it():
    assert _adapted()[0].head.on_features

    class Followed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 3, 1)

        def forward(self, x):
            return self.last(torch.relu(self.first(x))) * 2.0

    from sea_peft.backbones import find_sites

    network, x = Followed().eval(), torch.rand(1, 1, 6, 6, 6)
    model = Adapted(network, find_sites(network, x), (), (1, None), 3, x)
    assert not model.head.on_features
    assert model.head.weight.shape == (4, 3, 1, 1, 1)
    with torch.no_grad():
        expected = model(x)
        model.head.weight += 0.1
        assert not torch.equal(model(x), expected)


def test_rows_follow_the_order_of_the_labels():
    head = TargetHead((None, 2, None), classes=3, module=None)
    logits = torch.randn(1, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    head.bias.data = torch.tensor([0.0, 0.0, 0.0, 5.0, 7.0])
    out = head(logits, logits)
    fresh = logits[:, 0] + torch.log(torch.tensor(0.05))
    torch.testing.assert_close(out[:, 1:], torch.stack([fresh + 5, logits[:, 2], fresh + 7], dim=1))


# -- adapted ---------------------------------------------------------------------------------------


def test_the_backbone_stays_frozen_and_in_eval_mode():
    model, _ = _adapted()
    model.train()
    assert model.training
    assert not any(module.training for module in model.backbone.modules())
    assert not any(p.requires_grad for p in model.backbone.parameters())


def test_unadapted_closes_everything_for_a_while_also_when_it_ends_by_an_exception():
    model, x = _adapted(rows=(2, 1))
    ids = list(model.bank.units)
    with torch.no_grad():
        plain = model(x)
        _train(model.bank, ids)
        model.head.weight += 0.1
        model.bank.activate(ids)
        changed = model(x)
        assert not torch.equal(changed, plain)
        with model.unadapted():
            assert torch.equal(model(x), plain)
        with pytest.raises(InterruptedError), model.unadapted():
            raise InterruptedError
        assert torch.equal(model(x), changed)
    assert model.bank.active == set(ids)
