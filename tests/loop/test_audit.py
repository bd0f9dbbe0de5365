"""An audit is an exact, repeatable ablation that leaves the model as it was."""

from __future__ import annotations

import statistics

import pytest
import tiny
import torch
from monai.metrics import compute_dice

from sea_peft.adapters import Adapted
from sea_peft.data.crops import CropSampler
from sea_peft.data.sliding import SlidingWindow
from sea_peft.errors import DataError
from sea_peft.loop.audit import HARD, SOFT, Auditor, patch_dice


def _trained(names=("affine", "lora", "conv_adapter")) -> tuple[Adapted, list[str]]:
    adapted = tiny.model(names=names)
    opened = tiny.one_per_group(adapted)
    tiny.train(adapted, opened)
    adapted.bank.activate(opened)
    return adapted.eval(), opened


def _patches(count: int = 5):
    return CropSampler(
        [tiny.scan(1), tiny.scan(2)], SlidingWindow(patch=(16, 16, 16)), seed=3
    ).fixed(count)


def _auditor(adapted: Adapted, **kwargs) -> Auditor:
    return Auditor(adapted, *_patches(), batch=2, **kwargs)


def _all(units) -> dict[str, float]:
    """Every unit, with its decision turning at 0."""
    return dict.fromkeys(units, 0.0)


# -- Dice of a patch -------------------------------------------------------------------------------


def test_hard_dice_is_monais():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 6, 6, 6, generator=generator)
    label = torch.randint(0, 3, (4, 6, 6, 6), generator=generator)
    onehot = [torch.nn.functional.one_hot(t, 3).movedim(-1, 1) for t in (logits.argmax(1), label)]
    theirs = compute_dice(*onehot, include_background=False).mean(dim=1)
    torch.testing.assert_close(patch_dice(logits, label, HARD), theirs.double())


def test_soft_dice_is_its_formula_and_leaves_out_labels_that_are_absent():
    logits = torch.zeros(1, 3, 1, 1, 2)
    logits[0, 1, 0, 0, 0] = torch.log(torch.tensor(2.0))  # p = (1, 2, 1)/4 and (1, 1, 1)/3
    label = torch.tensor([[[[1, 0]]]])
    expected = 2 * 0.5 / (0.5 + 1 / 3 + 1)
    assert float(patch_dice(logits, label, SOFT)) == pytest.approx(expected)


def test_dice_of_a_perfect_prediction_is_one_of_a_wrong_one_zero_and_of_an_empty_patch_nan():
    label = torch.tensor([[[[1, 2]]], [[[1, 1]]], [[[0, 0]]]])
    right = 50.0 * torch.nn.functional.one_hot(label, 3).movedim(-1, 1).float()
    for kind in (SOFT, HARD):
        values = patch_dice(right, label, kind)
        assert values[:2].tolist() == pytest.approx([1.0, 1.0])
        assert bool(values[2].isnan())
        assert patch_dice(right.roll(1, dims=1), label, kind)[:2].tolist() == pytest.approx(
            [0.0, 0.0]
        )


# -- audits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dice", [SOFT, HARD])
def test_an_audit_is_what_forwards_without_the_unit_give(dice):
    adapted, opened = _trained()
    opened = opened[::5]
    result = _auditor(adapted, dice=dice).audit(_all(opened))
    images, labels = _patches()
    with torch.no_grad():
        # in the auditor's own mini-batches: the size of a batch can move the last bits
        whole = torch.cat(
            [patch_dice(adapted(images[i : i + 2]), labels[i : i + 2], dice) for i in (0, 2, 4)]
        )
        for row in result.rows:
            with adapted.bank.without(row.unit):
                off = torch.cat(
                    [
                        patch_dice(adapted(images[i : i + 2]), labels[i : i + 2], dice)
                        for i in (0, 2, 4)
                    ]
                )
            delta = whole - off
            assert row.delta == float(delta.mean())
            assert row.standard_error == pytest.approx(float(delta.std()) / len(delta) ** 0.5)
            assert row.patches == 5
            assert row.deltas == tuple(delta.tolist())
    assert result.dice_on == float(whole.mean())
    assert result.forwards == 5 * (1 + len(opened))
    assert {row.unit for row in result.rows} == set(opened)


def test_reuse_changes_no_number():
    adapted, opened = _trained(tiny.every_family())
    opened = opened[::3]
    assert _auditor(adapted).audit(_all(opened)) == _auditor(adapted, reuse=False).audit(
        _all(opened)
    )


def test_the_same_state_audited_twice_gives_the_same_numbers_and_draws_nothing():
    adapted, opened = _trained()
    opened = opened[::4]
    auditor, rng = _auditor(adapted), torch.get_rng_state()
    first = auditor.audit(_all(opened))
    assert auditor.audit(_all(opened)) == first
    assert _auditor(adapted).audit(_all(opened)) == first
    assert auditor.audit(_all(opened[::-1])).rows == first.rows[::-1]
    assert torch.equal(torch.get_rng_state(), rng)


def test_a_unit_without_any_effect_is_worth_exactly_nothing():
    adapted, opened = _trained()
    idle = next(
        u for u in adapted.bank.units if u not in opened and adapted.bank.units[u].family == "lora"
    )
    adapted.bank.activate([*opened, idle])
    row = _auditor(adapted).audit(_all([idle])).rows[0]
    assert (row.delta, row.standard_error) == (0.0, 0.0)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    adapted, opened = _trained()
    adapted.train(training)
    before, active = tiny.state(adapted), adapted.bank.active
    modes = {name: module.training for name, module in adapted.named_modules()}
    _auditor(adapted).audit(_all(opened[:3]))
    _auditor(adapted).dice_of(opened[:2], head=False)
    with pytest.raises(ValueError, match="only open units can be ablated; closed: nothing"):
        _auditor(adapted).audit(_all(["nothing"]))
    assert {name: module.training for name, module in adapted.named_modules()} == modes
    assert adapted.bank.active == active
    assert adapted.head_gate
    assert all(torch.equal(tensor, before[key]) for key, tensor in tiny.state(adapted).items())


@pytest.mark.parametrize("fails_at", [0, 2])
def test_an_audit_that_fails_half_way_leaves_gates_mode_and_forwards_as_they_were(fails_at):
    adapted, opened = _trained()
    adapted.train()
    calls = []

    def fail(_module, _inputs):
        calls.append(1)
        if len(calls) > fails_at:
            raise MemoryError

    last = next(site.path for site in reversed(adapted.sites) if site.stage == "head")
    handle = adapted.backbone.get_submodule(last).register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        _auditor(adapted).audit(_all(opened))
    calls.clear()
    calls[:] = [1] * fails_at
    with pytest.raises(MemoryError):
        _auditor(adapted).dice_of(opened[:1], head=False)
    handle.remove()
    assert adapted.training
    assert adapted.head_gate
    assert adapted.bank.active == set(opened)
    assert not any("forward" in module.__dict__ for module in adapted.backbone.modules())


def test_patches_without_a_label_are_left_out():
    adapted, opened = _trained()
    images, labels = _patches()
    labels = labels.clone()
    labels[[1, 3]] = 0
    result = Auditor(adapted, images, labels, batch=2).audit(_all(opened[:1]))
    assert result.patches == result.rows[0].patches == 3


def test_patches_without_any_label_cannot_be_audited():
    adapted, opened = _trained()
    images, labels = _patches()
    auditor = Auditor(adapted, images, torch.zeros_like(labels), batch=2)
    for ask in (lambda: auditor.audit(_all(opened[:1])), lambda: auditor.dice_of(opened[:1])):
        with pytest.raises(DataError, match="no labelled voxel"):
            ask()


def test_a_single_patch_has_no_spread():
    adapted, opened = _trained()
    images, labels = _patches(1)
    row = Auditor(adapted, images, labels, batch=2).audit(_all(opened[:1])).rows[0]
    assert (row.standard_error, row.patches) == (None, 1)


def test_repeated_patches_count_once():
    adapted, opened = _trained()
    images, labels = _patches(1)
    auditor = Auditor(adapted, images.repeat(3, 1, 1, 1, 1), labels.repeat(3, 1, 1, 1), batch=2)
    assert auditor.audit(_all(opened[:1])).patches == 1


def test_dice_of_a_set_is_that_of_a_model_with_only_it_open():
    adapted, opened = _trained()
    auditor = _auditor(adapted)
    adapted.bank.activate(opened[:2])
    expected = auditor.audit({}).hard_dice
    adapted.bank.activate(opened)
    assert statistics.fmean(auditor.dice_of(opened[:2])) == pytest.approx(expected)
    with adapted.unadapted():
        plain = auditor.audit({}).hard_dice
    assert statistics.fmean(auditor.dice_of((), head=False)) == pytest.approx(plain)
    assert len(auditor.dice_of(())) == auditor.patches


# -- effort ----------------------------------------------------------------------------------------


def test_units_clear_of_their_cutoff_are_left_alone_and_the_others_measured_as_before():
    adapted, opened = _trained()
    opened = opened[::3]
    images, labels = CropSampler(
        [tiny.scan(1), tiny.scan(2)], SlidingWindow(patch=(16, 16, 16)), seed=3
    ).fixed(12)
    auditor = Auditor(adapted, images, labels, batch=2)
    whole = {row.unit: row for row in auditor.audit(_all(opened)).rows}
    far = {unit: whole[unit].delta + 1e3 * (whole[unit].standard_error + 1e-3) for unit in opened}
    spared = auditor.audit(far, error=0.1)
    assert [row.patches for row in spared.rows] == [2] * len(opened)
    for row in spared.rows:
        assert row.deltas == whole[row.unit].deltas[: row.patches]
    at_the_edge = {unit: whole[unit].delta for unit in opened}
    assert {row.patches for row in auditor.audit(at_the_edge, error=0.01).rows} == {auditor.patches}
    assert spared.dice_on == auditor.audit({}).dice_on, (
        "the baseline is on every patch, whatever is spared"
    )
    assert spared.forwards == auditor.patches + 2 * len(opened)
