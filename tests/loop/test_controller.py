"""The whole loop on a tiny network: the same seed gives the same events, a killed run goes on
as if it had not been, budgets hold.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence

import pytest
import tiny
import torch

import benchmarks.policies  # noqa: F401  (adalora is registered there)
from sea_peft.adapters import total_cost
from sea_peft.data.codes import IGNORED
from sea_peft.data.hold_out import hold_out_labels
from sea_peft.data.sliding import SlidingWindow
from sea_peft.errors import BudgetError
from sea_peft.loop import controller, events, training
from sea_peft.loop.controller import Controller
from sea_peft.loop.outcome import Baseline, Outcome
from sea_peft.loop.policies import make_policy
from sea_peft.loop.policies.sea import Sea, SeaSettings
from sea_peft.loop.policy import Allocation, Policy
from sea_peft.loop.settings import LoopSettings, Shots
from sea_peft.loop.space import Space

PATCH = (16, 16, 16)
SETTINGS = LoopSettings(
    steps=20,
    cycles=3,
    window=SlidingWindow(patch=PATCH),
    batch_size=1,
    audit_patches=2,
    saliency_batches=1,
)
SHOTS = Shots.of((tiny.scan(1), tiny.scan(2)), (tiny.scan(3),))


class Curious(Sea):
    """Asks for saliencies before every allocation, not only before the first."""

    def needs_saliency(self, cycle: int) -> Sequence[str]:
        return self._levels.bases


@dataclasses.dataclass
class Run:
    """A run of the loop. `said`: every event without its time; `saved`: (events said by then,
    checkpoint, open units) at every save point.
    """

    controller: Controller
    space: Space
    said: list[events.Event] = dataclasses.field(default_factory=list)
    saved: list[tuple[int, bytes, frozenset[str]]] = dataclasses.field(default_factory=list)
    outcome: Outcome | None = None

    def of(self, kind: type[events.Event]) -> list:
        return [event for event in self.said if isinstance(event, kind)]

    @property
    def tensors(self):
        """What an adapter folder would hold, and the backbone."""
        model = self.controller.model
        state = {
            key: t for key, t in tiny.state(model).items() if key.startswith(("head/", "backbone/"))
        }
        return state | model.bank.state_dict(self.outcome.active)


def _prepared(
    policy="sea",
    settings=SETTINGS,
    shots=SHOTS,
    seed=0,
    share=0.2,
    names=("affine", "lora"),
    **kwargs,
) -> Run:
    model = tiny.model(names=names)
    space = tiny.space_of(model, share)
    made: Policy
    if policy in ("sea", "curious"):
        made = {"sea": Sea, "curious": Curious}[policy](space, SeaSettings(audit_units=6))
    else:
        made = make_policy(policy, space, seed=seed, cycles=settings.cycles)

    def say(event: events.Event) -> None:
        run.said.append(
            dataclasses.replace(event, seconds=0.0) if hasattr(event, "seconds") else event
        )

    def save(state) -> None:
        stored = io.BytesIO()
        torch.save(dict(state), stored)
        run.saved.append((len(run.said), stored.getvalue(), model.bank.active))

    run = Run(Controller(model, space, made, shots, settings, seed, say, save, **kwargs), space)
    return run


def _run(*args, **kwargs) -> Run:
    run = _prepared(*args, **kwargs)
    run.outcome = run.controller.run()
    return run


def _same_tensors(ours, theirs) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[key]) for key, tensor in ours.items()
    )


# -- determinism and resume ------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_events_and_the_same_adapter():
    first, second = _run(), _run()
    assert first.said == second.said
    assert _same_tensors(first.tensors, second.tensors)
    assert _run(seed=1).said != first.said


@pytest.mark.parametrize("global_seed", [1, 2])
def test_the_global_rng_plays_no_part(global_seed):
    torch.manual_seed(global_seed)
    state = torch.get_rng_state()
    run = _run()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    assert _run().said == run.said


@pytest.mark.parametrize("policy", ["sea", "curious", "random"])
def test_killed_at_any_save_point_and_resumed_it_is_as_if_it_had_not_been(policy, monkeypatch):
    monkeypatch.setattr(controller, "_REFIT_CHECKPOINT_EVERY", 6)  # a save point inside the refit
    settings = dataclasses.replace(SETTINGS, cycles=2)
    whole = _run(policy, settings)
    assert len(whole.saved) == 1 + 2 + 1 + 2
    for said_by_then, stored, opened in whole.saved:
        resumed = _prepared(policy, settings)
        resumed.controller.load_state_dict(torch.load(io.BytesIO(stored), weights_only=True))
        assert resumed.controller.model.bank.active == opened
        resumed.outcome = resumed.controller.run()
        assert resumed.said == whole.said[said_by_then:]
        assert _same_tensors(resumed.tensors, whole.tensors)
        assert dataclasses.replace(resumed.outcome, seconds=None) == dataclasses.replace(
            whole.outcome, seconds=None
        )


def test_a_checkpoint_is_a_snapshot_that_training_on_does_not_change():
    run = _prepared()
    states = []
    run.controller._save = states.append
    run.controller.run()
    first = _prepared()
    first.controller.load_state_dict(states[1])
    first.outcome = first.controller.run()
    assert first.of(events.RunFinished) == []
    again = _run()
    assert first.said == again.said[-len(first.said) :]
    assert _same_tensors(first.tensors, again.tensors)


# -- the budget ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.02, 0.3])
@pytest.mark.parametrize(
    "policy",
    [
        "sea",
        "sea_paper",
        "adalora",
        "arena",
        "spt",
        "affine_lora",
        "cheapest",
        "conv_adapter",
        "random",
        "uniform",
    ],
)
def test_nothing_ever_exceeds_the_budget(policy, share):
    run = _run(
        policy,
        dataclasses.replace(SETTINGS, steps=12),
        share=share,
        names=("affine", "lora", "conv_adapter"),
    )
    costs = {u.id: u.cost for u in run.space.units}
    assert run.of(events.Searched)
    for event in (*run.of(events.Searched), *run.of(events.Allocated)):
        used = run.space.head + sum(costs[u] for u in (*event.active, *event.probes))
        assert used <= run.space.limit
        if isinstance(event, events.Allocated):
            assert (event.used, event.limit, event.head) == (used, run.space.limit, run.space.head)
    assert run.outcome.used == run.space.head + total_cost(
        run.space.by_id[u] for u in run.outcome.active
    )
    assert run.controller.model.bank.active == set(run.outcome.active)


def test_a_policy_that_asks_for_too_much_is_stopped_before_it_trains():
    run = _prepared("cheapest", share=0.3)
    greedy = run.controller.policy
    everything = Allocation(active=tuple(tiny.one_per_group(run.controller.model)))
    greedy.allocate = lambda cycle: everything
    with pytest.raises(BudgetError, match=r"Policy cheapest asked for [\d,]+ parameters of [\d,]+"):
        run.controller.run()
    assert {event.phase for event in run.of(events.Searched)} == {"warmup"}


def test_full_fine_tuning_runs_outside_the_budget_as_a_policy_like_any_other():
    run = _run("full", names=("full", "affine"), share=0.01)
    assert run.outcome.used > run.space.limit
    assert set(run.outcome.active) == set(run.space.by_id)


# -- the same loop for every policy ----------------------------------------------------------------


def _skeleton(run: Run) -> list[tuple]:
    """Phases and steps: what must not depend on the policy."""
    return [(e.phase, e.cycle, e.first_step, e.last_step) for e in run.of(events.Searched)]


def test_every_policy_trains_the_same_steps_on_the_same_crops():
    runs = [_run(policy) for policy in ("sea", "cheapest", "head_only")]
    assert _skeleton(runs[0]) == _skeleton(runs[1]) == _skeleton(runs[2])
    warmups = [next(e.loss for e in run.of(events.Searched) if e.phase == "warmup") for run in runs]
    assert warmups[0] == warmups[1], "before the first allocation all policies are one run"
    assert warmups[2] != warmups[0], "the head alone steps several times on a batch"
    assert runs[0].of(events.Audited)
    assert not runs[1].of(events.Audited)
    assert [len(run.of(events.Allocated)) for run in runs] == [SETTINGS.cycles + 1] * 3
    assert [e.final for e in runs[1].of(events.Allocated)] == [False] * SETTINGS.cycles + [True]


@pytest.mark.parametrize(("steps", "cycles"), [(8, 1), (20, 3), (37, 5), (200, 4)])
def test_the_plan_adds_up(steps, cycles):
    warmup, search, refit = dataclasses.replace(SETTINGS, steps=steps, cycles=cycles).plan()
    assert warmup + sum(search) + refit == steps
    assert len(search) == cycles
    assert min(search) >= 1


def test_every_step_is_told_once():
    run = _run()
    assert [event.step for event in run.of(events.TrainingStep)] == list(
        range(1, SETTINGS.steps + 1)
    )


def test_a_frozen_head_is_not_trained_and_costs_nothing():
    run = _run("affine", train_head=False, share=0.5)
    assert not any(bool(tensor.any()) for tensor in run.controller.model.head.state_dict().values())


# -- what the events say ---------------------------------------------------------------------------


def test_coverage_patches_and_comparison_add_up():
    run = _run()
    audits = run.of(events.Audited)
    assert len(audits) == SETTINGS.cycles == len(run.of(events.Ranked))
    for event in audits:
        there = event.naive_patches // (1 + len(run.space.units))
        assert event.patches == there + sum(row.patches for row in event.rows)
        assert all(1 <= row.patches == len(row.deltas) <= there for row in event.rows)
    assert run.outcome.patches == sum(event.patches for event in audits)
    measured = {row.unit for event in audits for row in event.rows}
    coverage = [event.coverage for event in run.of(events.Allocated)]
    assert coverage == sorted(coverage)
    assert coverage[-1] == len(measured) / len(run.space.units)
    compared = run.of(events.Compared)
    assert len(compared) == 1
    assert compared[0].chosen in compared[0].dice
    assert compared[0].dice[compared[0].chosen] >= compared[0].dice["unadapted"]


@pytest.mark.parametrize("dice", [0.999, 0.0])
def test_a_baseline_changes_nothing_but_the_comparison_however_good_it_is(dice):
    patches = _prepared().controller.auditor.patches
    alone, held = _run(), _run(baseline=Baseline("head_only", (dice,) * patches))
    assert _same_tensors(alone.tensors, held.tensors)
    assert [e for e in alone.said if not isinstance(e, events.Compared)] == [
        e for e in held.said if not isinstance(e, events.Compared)
    ]
    compared = held.of(events.Compared)[0]
    assert compared.dice["head_only"] == pytest.approx(dice)
    assert ("head_only is ahead" in compared.reason) == (dice > 0.9)


def test_a_search_ends_where_the_refit_begins_and_the_run_goes_on_from_there():
    run = _prepared()
    run.controller.search()
    as_found = run.controller.as_baseline()
    assert not [e for e in run.of(events.Searched) if e.phase == "refit"]
    assert len(as_found.dice) == run.controller.auditor.patches
    run.outcome = run.controller.run()
    assert run.said == _run().said


def test_audited_and_ranked_units_are_those_that_were_open():
    run = _run()
    opened: set[str] = set()
    for event in run.said:
        if isinstance(event, events.Searched):
            opened = {*event.active, *event.probes}
        elif isinstance(event, events.Audited):
            assert {row.unit for row in event.rows} <= opened


# -- who sees which scan ---------------------------------------------------------------------------

MARK = 1000.0


def _seen_marks(run: Run) -> dict[str, set[bool]]:
    """Phase (of training) or "audit" → whether crops with marked grey values went through the
    network.
    """
    seen: dict[str, set[bool]] = {}
    at = {"phase": "warmup", "training": False}

    def look(_module, inputs) -> None:
        key = at["phase"] if torch.is_grad_enabled() else "audit"
        for crop in inputs[0]:
            seen.setdefault(key, set()).add(bool(crop.abs().max() > MARK / 2))

    run.controller.model.backbone.register_forward_pre_hook(look)
    inner = run.controller._trainer.train

    def train(units, crops, *args):
        at["phase"] = "refit" if crops is run.controller._refit_crops else "search"
        return inner(units, crops, *args)

    run.controller._trainer.train = train
    run.outcome = run.controller.run()
    return seen


def test_audit_cases_are_not_trained_on_before_the_refit_and_all_shots_are_refitted_on():
    shots = Shots.of((tiny.scan(1),), (tiny.scan(3, marked=MARK),))
    seen = _seen_marks(_prepared(shots=shots))
    assert seen == {"search": {False}, "audit": {True}, "refit": {False, True}}


def test_one_shot_audits_count_voxels_that_the_search_does_not_and_say_so(monkeypatch):
    one = tiny.scan(1, size=36)
    kept, held = hold_out_labels(one)
    for part, code in ((kept, 1), (held, 2)):  # label 2: counted by audits alone
        part.label[(part.label > 0) & (part.label != IGNORED)] = code
    one.label[held.label == 2] = 2
    run = _prepared(
        shots=Shots((kept,), (held,), (one,), independent=False),
        settings=dataclasses.replace(SETTINGS, steps=32),
    )
    counted: dict[bool, set[int]] = {False: set(), True: set()}
    sums, train = training.loss_sums, run.controller._trainer.train
    refit = False

    def seen_sums(logits, labels):
        counted[refit].update(labels.unique().tolist())
        return sums(logits, labels)

    def seen_train(units, crops, *args):
        nonlocal refit
        refit = crops is run.controller._refit_crops
        return train(units, crops, *args)

    monkeypatch.setattr(training, "loss_sums", seen_sums)
    run.controller._trainer.train = seen_train
    run.controller.run()
    audited = {
        int(code) for _, labels in run.controller.auditor.batches for code in labels.unique()
    }
    assert counted[False] - {0, IGNORED} == {1}
    assert audited - {0, IGNORED} == {2}
    assert counted[True] == {0, 1, 2}
    assert {event.independent for event in run.of(events.Audited)} == {False}
    assert {event.independent for event in _run().of(events.Audited)} == {True}


def test_the_loop_is_given_no_test_case():
    fields = [field.name for field in dataclasses.fields(Shots)]
    assert fields == ["search", "audit", "all", "independent"]
    assert {scan.id for scan in SHOTS.all} == {"scan1", "scan2", "scan3"}


# -- time ------------------------------------------------------------------------------------------


def test_a_time_limit_ends_the_search_and_leaves_a_sound_refit():
    run = _prepared("affine", dataclasses.replace(SETTINGS, time_limit=1e-9), share=0.5)
    factors: list[float] = []
    inner = run.controller._trainer.train

    def train(units, crops, first, count, schedule, on_step):
        if crops is run.controller._refit_crops:
            factors.extend(schedule(i) for i in range(count))
        return inner(units, crops, first, count, schedule, on_step)

    run.controller._trainer.train = train
    run.controller.run()
    assert min(factors) >= 0, "a negative learning rate climbs the loss"
    assert len(factors) == 1, "no time was left for more"
    assert factors[-1] > 0


def test_a_search_without_time_for_a_cycle_takes_the_cheapest_units_and_not_none():
    run = _run("sea", dataclasses.replace(SETTINGS, time_limit=1e-9), share=0.5)
    assert not run.of(events.Audited)
    assert run.outcome.active
    assert run.outcome.used <= run.space.limit


# -- batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backbone", "together"), [("segresnet", 2), ("unet3d", 1)])
def test_a_network_that_mixes_its_batch_is_audited_one_patch_at_a_time_as_masks_are_made(
    backbone, together
):
    model = tiny.model(backbone)
    space = tiny.space_of(model)
    settings = dataclasses.replace(SETTINGS, audit_patches=6, window=SlidingWindow(patch=(8, 8, 8)))
    audited = Controller(
        model, space, make_policy("affine", space, seed=0, cycles=3), SHOTS, settings, 0
    ).auditor
    assert max(len(images) for images, _ in audited.batches) == together
