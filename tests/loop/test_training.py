"""Training moves what is open and the head, nothing else, and goes on after a restart as if
there had been none.
"""

from __future__ import annotations

import io
import itertools
import math

import pytest
import tiny
import torch

from sea_peft.data.codes import IGNORED
from sea_peft.data.crops import CropSampler
from sea_peft.data.sliding import SlidingWindow
from sea_peft.errors import DivergedError
from sea_peft.loop import training
from sea_peft.loop.processes import Processes
from sea_peft.loop.training import Trainer, held_sums, loss_from, warm_up, warm_up_cosine

# two known labels, and a third that is added
INDICES = torch.tensor([1, 2]), torch.tensor([3])


def _crops() -> CropSampler:
    return CropSampler([tiny.scan(1)], SlidingWindow(patch=(16, 16, 16)), seed=0)


def _constant(_step: int) -> float:
    return 1.0


def _steps(trainer: Trainer, units, first: int, count: int) -> float:
    return trainer.train(units, _crops(), first, count, _constant, lambda step, loss: None)


def _changed(before, after) -> set[str]:
    return {
        key
        for key, tensor in after.items()
        if key not in before or not torch.equal(tensor, before[key])
    }


# -- schedules -------------------------------------------------------------------------------------


def test_warm_up_rises_in_a_line_and_stays():
    assert [warm_up(i, 4) for i in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert [warm_up(i, over) for i in range(2) for over in (0, 1)] == [1.0] * 4


def test_the_refit_rises_then_falls_to_nothing():
    factors = [warm_up_cosine(i, 20, 4) for i in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[12] == pytest.approx(0.5)
    assert all(a > b > 0 for a, b in itertools.pairwise(factors[4:]))
    assert [warm_up_cosine(i, 20, 4, start=7) for i in range(13)] == factors[7:]
    assert warm_up_cosine(0, 1, 0) == 1.0


# -- steps -----------------------------------------------------------------------------------------


def test_only_open_units_and_the_head_are_trained():
    adapted = tiny.model()
    units = tiny.one_per_group(adapted)
    opened, closed = units[:4], units[4:6]
    tiny.train(adapted, closed, size=0.0)  # built, so that it could change
    before = tiny.state(adapted)
    loss = _steps(Trainer(adapted, 2), opened, 0, 2)
    changed = _changed(before, tiny.state(adapted))
    assert {key.rpartition("/")[0] for key in changed} == {*opened, "head"}
    assert math.isfinite(loss)
    assert adapted.bank.active == set(opened)
    assert not adapted.training
    assert all(p.grad is None for p in adapted.parameters())


def test_a_frozen_head_stays_and_nothing_to_train_takes_no_step():
    adapted = tiny.model()
    unit = tiny.one_per_group(adapted)[0]
    before = tiny.state(adapted)
    steps = []
    frozen = Trainer(adapted, 1, train_head=False)
    assert math.isnan(
        frozen.train((), _crops(), 0, 2, _constant, lambda step, loss: steps.append(step))
    )
    assert math.isnan(
        frozen.train((unit,), _crops(), 0, 0, _constant, lambda step, loss: steps.append(step))
    )
    assert steps == []
    _steps(frozen, (unit,), 0, 1)
    assert {key.rpartition("/")[0] for key in _changed(before, tiny.state(adapted))} == {unit}


def test_steps_are_numbered_from_the_first():
    steps = []
    Trainer(tiny.model(), 1).train(
        (), _crops(), 5, 3, _constant, lambda step, loss: steps.append((step, loss > 0))
    )
    assert steps == [(5, True), (6, True), (7, True)]


def test_the_head_alone_steps_twice_on_what_the_backbone_makes_of_a_batch():
    crops = _crops()

    class Twice:
        def batch(
            self, step: int, batch_size: int, which=None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return crops.batch(step // 2, batch_size, which)

    shared, plain = tiny.model(), tiny.model()
    passes = []
    shared.backbone.register_forward_hook(lambda *_: passes.append(1))
    alone, losses = Trainer(shared, 2, head_alone=True), []
    # from a checkpoint in the middle of a batch too
    for first, count in ((0, 3), (3, 4)):
        alone.train((), crops, first, count, _constant, lambda step, loss: losses.append(loss))
    expected = []
    Trainer(plain, 2).train((), Twice(), 0, 7, _constant, lambda step, loss: expected.append(loss))
    assert losses == pytest.approx(expected, rel=1e-5)
    assert len(passes) == 5
    for name, tensor in plain.head.state_dict().items():
        assert torch.allclose(shared.head.state_dict()[name], tensor, atol=1e-6)


def test_the_rate_is_the_familys_times_the_schedules_factor():
    """Adam's first step is the rate times the gradient's sign."""
    moved = {}
    for factor in (1.0, 0.5):
        adapted = tiny.model()
        units = {adapted.bank.units[u].family: u for u in adapted.bank.units}
        Trainer(adapted, 1).train(
            tuple(units.values()), _crops(), 0, 1, lambda i, f=factor: f, lambda *_: None
        )
        for family, unit in units.items():
            p = getattr(
                adapted.bank[unit],
                {"affine": "shift", "lora": "up", "conv_adapter": "point"}[family],
            )
            moved[family, factor] = float(p.detach().abs().max())
            assert moved[family, factor] == pytest.approx(
                factor * adapted.bank[unit].learning_rate, rel=1e-2
            )


def test_a_unit_that_comes_back_goes_on_with_its_own_momentum():
    a, b = tiny.one_per_group(tiny.model())[:2]
    there, back = tiny.model(), tiny.model()
    alone, both = Trainer(there, 1), Trainer(back, 1)
    _steps(alone, (a,), 0, 2)
    _steps(both, (a,), 0, 2)
    step = [
        both.state_dict()[f"{a}/{n}"]["step"].item() for n, _ in back.bank[a].named_parameters()
    ]
    _steps(both, (b,), 2, 2)
    assert step == [
        both.state_dict()[f"{a}/{n}"]["step"].item() for n, _ in back.bank[a].named_parameters()
    ]
    _steps(both, (a, b), 4, 1)
    assert (
        both.state_dict()[f"{a}/{next(n for n, _ in back.bank[a].named_parameters())}"][
            "step"
        ].item()
        == 3
    )


def test_training_goes_on_from_its_state_as_if_it_had_not_stopped():
    whole, halves = tiny.model(), tiny.model()
    units = tiny.one_per_group(whole)[:4]
    uninterrupted, first = Trainer(whole, 2), Trainer(halves, 2)
    _steps(uninterrupted, units, 0, 2)
    _steps(uninterrupted, units, 2, 2)
    _steps(first, units, 0, 2)
    stored = io.BytesIO()
    torch.save(
        {
            "optimizer": first.state_dict(),
            "units": halves.bank.state_dict(units),
            "head": halves.head.state_dict(),
        },
        stored,
    )
    stored.seek(0)
    state = torch.load(stored, weights_only=True)
    resumed = tiny.model()
    resumed.bank.load_state_dict(state["units"])
    resumed.head.load_state_dict(state["head"])
    second = Trainer(resumed, 2)
    second.load_state_dict(state["optimizer"])
    _steps(second, units, 2, 2)
    assert not _changed(tiny.state(whole), tiny.state(resumed))


def test_a_loss_that_is_no_number_stops_training_with_a_sentence():
    class Broken:
        def batch(self, step, batch_size, which=None):
            return torch.full((1, 1, 16, 16, 16), math.nan), torch.ones(
                1, 16, 16, 16, dtype=torch.uint8
            )

    with pytest.raises(DivergedError, match="Training diverged: the loss is nan at step 3"):
        Trainer(tiny.model(), 1).train((), Broken(), 3, 1, _constant, lambda *_: None)


def test_mixed_precision_reaches_nearly_the_same_loss_and_keeps_float32_tensors():
    models = (
        tiny.model(names=("affine", "lora", "tsa", "conv_adapter")),
        tiny.model(names=("affine", "lora", "tsa", "conv_adapter")),
    )
    units = tuple(models[0].bank.units)
    whole, mixed = (
        Trainer(m, 2, mixed_precision=p).train(units, _crops(), 0, 3, _constant, lambda *_: None)
        for m, p in zip(models, (False, True), strict=True)
    )
    assert mixed == pytest.approx(whole, rel=0.02)
    assert mixed != whole, "bfloat16 was not used"
    assert _changed(tiny.state(models[0]), tiny.state(models[1]))
    assert all(p.dtype == torch.float32 for p in models[1].bank.parameters(units))


# -- saliency --------------------------------------------------------------------------------------


def test_saliency_is_the_rate_times_the_sum_of_the_mean_gradients_sizes():
    adapted = tiny.model()
    unit = next(u for u in adapted.bank.units if u.startswith("lora-2"))
    found = Trainer(adapted, 2).saliency((unit,), _crops(), round=0, count=2)[unit]
    grads: list[torch.Tensor] = []
    with adapted.bank.only([unit]):
        for i in range(2):
            images, labels = _crops().batch(1_000_000 + i, 2)
            loss = training.loss_from(training.loss_sums(adapted(images), labels))
            grads.append(torch.autograd.grad(loss, [adapted.bank[unit].up])[0])
    expected = adapted.bank[unit].learning_rate * float(((grads[0] + grads[1]) / 2).abs().sum())
    assert found == pytest.approx(expected, rel=1e-4)


def test_saliency_changes_nothing_and_repeats_itself():
    adapted = tiny.model()
    units = tiny.one_per_group(adapted)
    tiny.train(adapted, units, size=0.0)
    adapted.bank.activate(units[:2])
    before, rng = tiny.state(adapted), torch.get_rng_state()
    trainer = Trainer(adapted, 2)
    first = trainer.saliency(units, _crops(), 0, 1)
    assert set(first) == set(units)
    assert all(value > 0 for value in first.values())
    assert trainer.saliency(units, _crops(), 0, 1) == first
    assert trainer.saliency(units, _crops(), 1, 1) != first
    assert not _changed(before, tiny.state(adapted))
    assert adapted.bank.active == set(units[:2])
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(p.grad is None for p in adapted.parameters())


def test_saliency_in_several_passes_is_that_of_one(monkeypatch):
    adapted = tiny.model()
    units = tiny.one_per_group(adapted)
    whole = Trainer(adapted, 2).saliency(units, _crops(), 0, 1)
    monkeypatch.setattr(training, "_RANKED_AT_ONCE", 3)
    parts = Trainer(adapted, 2).saliency(units, _crops(), 0, 1)
    assert list(parts) == list(whole)
    assert parts == pytest.approx(whole, rel=1e-5)


def test_saliency_of_a_unit_does_not_depend_on_which_others_are_asked():
    adapted = tiny.model()
    units = tiny.one_per_group(adapted)[:6]
    trainer = Trainer(adapted, 2)
    together = trainer.saliency(units, _crops(), 0, 1)
    alone = {unit: trainer.saliency((unit,), _crops(), 0, 1)[unit] for unit in units}
    assert together == pytest.approx(alone, rel=1e-3)


# -- labels added to what the network knows --------------------------------------------------------


class _Drawn:
    """Crops in which only label 3 is drawn, where tiny's scans have label 1."""

    def batch(self, step: int, batch_size: int, which=None) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = _crops().batch(step, batch_size, which)
        return images, (labels == 1).to(torch.uint8) * 3


def test_what_the_network_says_is_free_and_what_is_drawn_is_asked_for():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 4, 3, generator=generator)
    logits[:, 3] = -30.0  # the new label, not learnt yet
    opinion = logits.index_fill(1, torch.tensor([3]), -torch.inf).softmax(dim=1)
    labels = torch.zeros(2, 5, 4, 3, dtype=torch.uint8)

    def gradient() -> torch.Tensor:
        asked = logits.clone().requires_grad_()
        loss_from(held_sums(asked, labels, opinion, *INDICES), held=2).backward()
        return asked.grad

    assert gradient().abs().max() < 1e-6, "nothing is drawn, and the network is as it was"
    labels[0, 0], labels[1, 4] = 3, IGNORED
    found = gradient()
    assert found[0, 3, 0].max() < -1e-3, "more of the new label where it is drawn"
    assert found[0, :3, 0].sum() > 0
    assert not found[1, :, 4].any(), "what is ignored counts in nothing"
    assert found[1, :, :4].abs().max() < 0.05 * found[0].abs().max(), "elsewhere it hardly moves"
    # by hand: one-hot where it is drawn, else the opinion
    target = torch.where(labels[:, None] == 3, torch.eye(4)[3][None, :, None, None, None], opinion)
    counted = labels != IGNORED
    entropy = -(target * logits.log_softmax(dim=1)).sum(dim=1)[counted].sum()
    sums = held_sums(logits, labels, opinion, *INDICES)
    assert len(sums) == 3 * 3 + 2
    assert torch.isclose(sums[-2], entropy, rtol=1e-5)
    assert sums[-1] == counted.sum()
    true_positives, false_positives, false_negatives = sums[:-2].view(3, 3)
    taken = (logits.softmax(dim=1)[:, 1:3] * (labels == 3)[:, None]).sum((0, 2, 3, 4))
    assert torch.allclose(false_positives[:2], taken, atol=1e-4), (
        "known labels are as they were but where the new one is drawn"
    )
    assert false_negatives[:2].abs().max() < 1e-4
    assert true_positives[2] < 1e-6
    assert false_negatives[2] == (labels == 3).sum()


def test_a_known_structure_of_few_voxels_is_held_as_well_as_a_large_one():
    opinion = torch.full((1, 4, 6, 6, 6), 1e-4)
    opinion[:, 0] = 1 - 3e-4
    opinion[0, :, 0, 0, :2] = torch.tensor([0.1, 0.9, 0.0, 0.0])[:, None]
    opinion[0, :, 3:] = torch.tensor([0.1, 0.0, 0.9, 0.0])[:, None, None, None]
    labels = torch.zeros(1, 6, 6, 6, dtype=torch.uint8)

    def lost(label: int) -> float:
        """What the loss grows by where the network forgets a label: what it said of it becomes
        background.
        """
        forgot = opinion.clone()
        forgot[:, 0] += forgot[:, label] * 0.9
        forgot[:, label] *= 0.1
        losses = [
            loss_from(held_sums(said.clamp_min(1e-8).log(), labels, opinion, *INDICES), held=2)
            for said in (forgot, opinion)
        ]
        return float(losses[0] - losses[1])

    assert 0.3 < lost(1) / lost(2) < 1


def test_a_label_is_learnt_and_the_others_stay_where_they_were():
    images = _Drawn().batch(0, 2)[0]
    shares = {}
    for holds in (True, False):
        adapted = tiny.model(rows=(1, 2, None))
        before = adapted.opinion(images)
        trainer = Trainer(adapted, 2, holds_known=holds)
        units = tiny.one_per_group(adapted)[:6]
        first = trainer.train(units, _Drawn(), 0, 5, _constant, lambda *_: None)
        assert trainer.train(units, _Drawn(), 5, 35, _constant, lambda *_: None) < first
        with torch.no_grad():
            after = adapted(images).softmax(dim=1)
        untouched = (_Drawn().batch(0, 2)[1] == 0)[:, None]
        shares[holds] = float(((after - before).abs() * untouched)[:, 1:3].sum() / untouched.sum())
        assert torch.equal(adapted.opinion(images), before), (
            "the opinion is the frozen network's, whatever was trained"
        )
    assert shares[True] < 0.3 * shares[False]


def test_the_head_alone_is_held_by_the_same_opinion():
    alone, plain = (tiny.model(rows=(1, 2, None)) for _ in range(2))
    losses, expected = [], []
    Trainer(alone, 2, head_alone=True, holds_known=True).train(
        (), _Drawn(), 0, 2, _constant, lambda _, loss: losses.append(loss)
    )

    class Twice(_Drawn):
        def batch(
            self, step: int, batch_size: int, which=None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return super().batch(step // 2, batch_size, which)

    Trainer(plain, 2, holds_known=True).train(
        (), Twice(), 0, 2, _constant, lambda _, loss: expected.append(loss)
    )
    assert losses == pytest.approx(expected, rel=1e-5)


def test_a_process_without_a_crop_adds_as_many_zeros():
    class Second(Processes):
        rank, size = 1, 2

    adapted = tiny.model(rows=(1, 2, None))
    whole, none = (
        Trainer(adapted, 1, holds_known=True, processes=p)._own_sums(_Drawn())(0)
        for p in (Processes(), Second())
    )
    assert whole.shape == none.shape
    assert not none.any()
