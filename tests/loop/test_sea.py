"""The `sea` policy without a network: pure, replayable, within the budget, deaf to a single
noisy audit, fair to what waits.
"""

from __future__ import annotations

import dataclasses
import json
import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import check_allocation, constant, converse, heard, noisy, replay, space

from sea_peft.adapters import total_cost
from sea_peft.loop.policies import make_policy
from sea_peft.loop.policies.sea import Sea, SeaSettings
from sea_peft.loop.ranking import ACTIVE, COOLING, IDLE, PROBE, RankingSettings
from sea_peft.loop.space import Space
from sea_peft.loop.trial import prior
from sea_peft.loop.utility import Estimate, UtilitySettings

CYCLES = 6
SHARES = st.floats(0.003, 0.9)
SEEDS = st.integers(0, 1000)
SETTINGS = st.builds(
    SeaSettings,
    probe_share=st.sampled_from([0.0, 0.15, 0.5]),
    audit_units=st.sampled_from([1, 4, 20, 1000]),
    utility=st.builds(
        UtilitySettings, decay=st.sampled_from([0.0, 0.7, 0.95]), window=st.integers(1, 5)
    ),
    ranking=st.builds(RankingSettings, votes=st.integers(1, 3), guard=st.integers(0, 3)),
)


def _saliency(seed: int):
    rng = random.Random(seed)
    return lambda _unit: rng.choice((0.0, rng.random()))


@given(share=SHARES, seed=SEEDS, rules=SETTINGS)
@settings(max_examples=60)
def test_open_units_never_exceed_the_budget_and_decisions_have_reasons(share, seed, rules):
    """`converse` checks every allocation: budget, one unit a (site, family), reasons, gap."""
    audit_space = space(share=share, seed=seed)
    said = converse(Sea(audit_space, rules), audit_space, CYCLES, _saliency(seed), noisy(seed))
    for rows in said.ranked:
        assert all(row.reason for row in rows)
        assert all(row.state in (IDLE, PROBE, ACTIVE, COOLING) for row in rows)
    final = said.allocations[-1]
    assert {d.unit for d in final.decisions} == set(audit_space.by_id), (
        "every unit on offer gets its final word"
    )
    assert len(final.decisions) == len(audit_space.units)


@given(share=SHARES, seed=SEEDS)
@settings(max_examples=25)
def test_recorded_saliencies_and_audits_replay_every_allocation(share, seed):
    audit_space = space(share=share, seed=seed)
    said = converse(
        Sea(audit_space, SeaSettings()), audit_space, CYCLES, _saliency(seed), noisy(seed)
    )
    assert replay(Sea(audit_space, SeaSettings()), said, CYCLES) == said.allocations


@given(seed=SEEDS, until=st.integers(0, CYCLES))
@settings(max_examples=25)
def test_state_written_as_json_and_read_back_goes_on_as_if_nothing_had_been(seed, until):
    audit_space = space(seed=seed)
    said = converse(
        Sea(audit_space, SeaSettings()), audit_space, CYCLES, _saliency(seed), noisy(seed)
    )
    policy = Sea(audit_space, SeaSettings())
    for cycle in range(CYCLES):
        if cycle == until:
            state = json.loads(json.dumps(policy.state_dict()))
            policy = Sea(audit_space, SeaSettings())
            policy.load_state_dict(state)
        if cycle in said.saliencies:
            policy.told_saliency(cycle, said.saliencies[cycle])
        assert policy.allocate(cycle) == said.allocations[cycle]
        policy.audited(cycle, said.audits[cycle])
    assert policy.final() == said.allocations[-1]


@given(seed=SEEDS)
@settings(max_examples=20)
def test_the_order_of_the_units_on_offer_does_not_matter(seed):
    here = space(seed=seed)
    there = Space(tuple(sorted(here.units, key=lambda u: u.id)), here.limit, here.head)
    saliencies = {u.id: i * 0.01 for i, u in enumerate(here.units)}
    deltas = {u.id: random.Random(u.id).gauss(0, 0.01) for u in here.units}

    def run(audit_space):
        return converse(
            Sea(audit_space, SeaSettings()),
            audit_space,
            CYCLES,
            saliencies.__getitem__,
            lambda u, _: (deltas[u], 0.0),
        )

    ours, theirs = run(here), run(there)
    assert [a.open for a in ours.allocations] == [a.open for a in theirs.allocations]


def test_a_budget_that_binds_is_used():
    audit_space = space(share=0.1)
    said = converse(
        Sea(audit_space, SeaSettings()), audit_space, CYCLES, lambda u: 1.0, constant(0.01)
    )
    used = total_cost(audit_space.by_id[u] for u in said.allocations[-1].active)
    assert used > 0.9 * audit_space.capacity


def test_the_first_cycle_asks_for_the_saliency_of_the_smallest_levels_and_probes_the_most_salient():
    audit_space = space(share=0.05)
    policy = Sea(audit_space, SeaSettings())
    asked = [audit_space.by_id[u] for u in policy.needs_saliency(0)]
    assert len({(u.group, u.placement) for u in asked}) == len(asked)
    for unit in asked:
        siblings = [
            u for u in audit_space.units if (u.group, u.placement) == (unit.group, unit.placement)
        ]
        assert unit.cost == min(u.cost for u in siblings)
    best = max((u for u in asked if u.cost <= audit_space.capacity), key=lambda u: u.site.order)
    policy.told_saliency(0, {u.id: float(u == best) * 1e6 for u in asked})
    first = policy.allocate(0)
    assert first.active == ()
    assert best.group in {audit_space.by_id[u].group for u in first.probes}


def test_a_roomy_budget_buys_larger_levels_and_a_tight_one_the_smallest():
    def levels(share):
        audit_space = space(share=share)
        policy = Sea(audit_space, SeaSettings())
        policy.told_saliency(0, dict.fromkeys(policy.needs_saliency(0), 1.0))
        return {
            audit_space.by_id[u].level for u in policy.allocate(0).probes if u.startswith("lora")
        }

    assert levels(0.02) <= {1, 2}
    assert 8 in levels(0.9)


def test_the_prior_is_halfway_between_one_and_the_saliency_over_its_familys_mean():
    audit_space = space(sites=2, levels=(1,))
    lora, affine = ([u.id for u in audit_space.units if u.family == f] for f in ("lora", "affine"))
    found = prior(audit_space.by_id, {lora[0]: 1.0, lora[1]: 3.0, affine[0]: 500.0}, 0.5)
    assert found == {lora[0]: 0.75, lora[1]: 1.25, affine[0]: 1.0}
    assert prior(audit_space.by_id, dict.fromkeys(lora, 0.0), 0.5) == dict.fromkeys(lora, 1.0)
    assert prior(audit_space.by_id, {lora[0]: 1.0, lora[1]: 3.0}, 0.0) == dict.fromkeys(lora, 1.0)


@pytest.mark.parametrize(
    ("steps", "units"), [(None, 20), (1, 1), (6, 1), (30, 5), (119, 19), (120, 20), (5000, 20)]
)
def test_a_short_run_has_smaller_audits(steps, units):
    audit_space = space(share=0.3)
    policy = make_policy("sea", audit_space, seed=0, cycles=3, steps=steps)
    said = converse(policy, audit_space, 3, lambda u: 1.0, constant(0.01))
    assert policy.most_audited == units
    assert {sum(row.delta is not None for row in rows) for rows in said.ranked} == {units}


# -- coverage --------------------------------------------------------------------------------------


def test_what_the_cycles_cannot_try_is_left_out_by_saliency_and_says_so():
    audit_space = space(share=0.02)
    policy = Sea(audit_space, SeaSettings(cycles=3))
    said = converse(
        policy,
        audit_space,
        3,
        lambda u: float(audit_space.by_id[u].cost * (u.startswith("lora"))),
        noisy(0),
    )
    starting = set(said.saliencies[0])
    assert 0 < len(policy.trial) < len({audit_space.by_id[u].group for u in starting})
    assert total_cost(audit_space.by_id[u] for u in policy.trial) <= 3 * audit_space.capacity
    reasons = {d.unit: d.reason for d in said.allocations[-1].decisions}
    left_out = starting - set(policy.trial)
    assert any(f"cycles have room for {len(policy.trial)} units" in reasons[u] for u in left_out)


def test_every_unit_on_trial_is_tried_when_the_cycles_suffice():
    audit_space = space(share=0.1)
    cycles = 12
    policy = Sea(audit_space, SeaSettings(cycles=cycles, probe_share=0.3))
    said = converse(policy, audit_space, cycles, lambda u: 1.0, constant(0.0))
    tried = {u for allocation in said.allocations[:-1] for u in allocation.open}
    assert set(policy.trial) <= tried


def test_a_probe_that_audits_speak_for_stays_and_one_that_they_say_nothing_of_makes_room():
    audit_space = space(share=0.05)
    policy = Sea(audit_space, SeaSettings(cycles=8, probe_share=0.4))
    policy.told_saliency(0, dict.fromkeys(policy.needs_saliency(0), 1.0))
    first = policy.allocate(0).open
    good = policy.to_audit(0).keys() & set(first)
    good = max(good, key=lambda u: (audit_space.by_id[u].cost, u))
    policy.audited(0, [heard(u, 0.05 if u == good else 0.0, 0.0) for u in policy.to_audit(0)])
    second = policy.allocate(1).open
    assert good in second
    assert set(second) - set(first), "nobody new was tried"


@given(seed=SEEDS)
@settings(max_examples=15)
def test_coverage_grows_with_the_cycles(seed):
    audit_space = space(share=0.15, seed=seed)
    said = converse(Sea(audit_space, SeaSettings()), audit_space, 12, lambda u: 1.0, noisy(seed))
    assert said.coverage == sorted(said.coverage)
    assert said.coverage[-1] > said.coverage[0]


def test_a_unit_that_cools_is_tried_again():
    audit_space = space(sites=3, levels=(2,), share=0.3)
    said = converse(
        Sea(audit_space, SeaSettings()), audit_space, 12, lambda u: 1.0, constant(-0.02)
    )
    cooled = {row.unit for rows in said.ranked for row in rows if row.state == COOLING}
    back = {
        row.unit for rows in said.ranked for row in rows if row.was == COOLING and row.state == IDLE
    }
    assert cooled
    assert back
    last = {u: max(c for c, a in enumerate(said.allocations[:-1]) if u in a.open) for u in cooled}
    demoted = {
        row.unit: c
        for c, rows in reversed(list(enumerate(said.ranked)))
        for row in rows
        if row.state == COOLING
    }
    assert any(last[u] > demoted[u] for u in cooled), "nothing that cooled was ever tried again"


# -- votes and guards ------------------------------------------------------------------------------


def test_being_left_out_of_an_audit_loses_no_vote():
    """REFERENCE §1.4: the published code loses votes and guards with every audit."""
    audit_space = space(sites=4, share=0.9)
    policy = Sea(audit_space, dataclasses.replace(SeaSettings(), ranking=RankingSettings(votes=3)))
    policy.told_saliency(0, dict.fromkeys(policy.needs_saliency(0), 1.0))
    opened = policy.allocate(0).open
    watched, *others = opened
    policy.audited(0, [heard(watched, 0.02, 0.0)])
    votes = policy.state_dict()["standing"][watched]["votes"]
    assert votes == 1
    policy.allocate(1)
    policy.audited(1, [heard(u, 0.02, 0.0) for u in others[:2]])
    assert policy.state_dict()["standing"][watched]["votes"] == votes


def _world_of_two() -> Space:
    """Two norms that both fit, so that nothing competes."""
    audit_space = space(sites=2, levels=(1,), share=0.9)
    units = tuple(u for u in audit_space.units if u.family == "affine")
    return Space(units, 1000 + total_cost(units), 0)


def _states(deltas: list[float]) -> list[str]:
    """The state of a unit after every audit, and again after every allocation that follows,
    with these ΔDice.
    """
    audit_space = _world_of_two()
    policy = Sea(audit_space, SeaSettings())
    policy.told_saliency(0, dict.fromkeys(policy.needs_saliency(0), 1.0))
    unit = audit_space.units[0].id
    states = []
    for cycle, delta in enumerate(deltas):
        policy.allocate(cycle)
        states.append(policy.state_dict()["standing"][unit]["state"])
        policy.audited(cycle, [heard(unit, delta, 0.0)] if unit in policy.to_audit(cycle) else [])
        states.append(policy.state_dict()["standing"][unit]["state"])
    return states


OUTLIER = st.floats(-1.0, 1.0, allow_nan=False)


@given(good=st.floats(0.004, 0.05), outlier=OUTLIER, at=st.integers(0, 7))
@settings(max_examples=200)
def test_one_noisy_audit_does_not_demote_a_unit_that_all_others_speak_for(good, outlier, at):
    deltas = [good] * 8
    deltas[at] = outlier
    states = _states(deltas)
    assert COOLING not in states
    assert ACTIVE not in states or states[states.index(ACTIVE) :] == [ACTIVE] * (
        len(states) - states.index(ACTIVE)
    )


@given(bad=st.floats(-0.05, 0.0), outlier=OUTLIER, at=st.integers(0, 7))
@settings(max_examples=200)
def test_one_noisy_audit_does_not_promote_a_unit_that_no_other_speaks_for(bad, outlier, at):
    deltas = [bad] * 8
    deltas[at] = outlier
    assert ACTIVE not in _states(deltas)


def test_agreeing_audits_promote_and_demote():
    assert _states([0.01] * 4)[-1] == ACTIVE
    assert COOLING in _states([-0.01] * 4)
    assert COOLING in _states([0.01] * 3 + [-0.02] * 5)


def test_audits_within_the_hysteresis_move_nothing():
    assert set(_states([0.0005, -0.0005] * 4)) == {PROBE}


# -- the final choice ------------------------------------------------------------------------------


def test_the_final_choice_takes_no_unit_whose_audits_speak_against_it():
    audit_space = space(share=0.5)
    harmful = {u.id for i, u in enumerate(audit_space.units) if i % 2}
    said = converse(
        Sea(audit_space, SeaSettings()),
        audit_space,
        CYCLES,
        lambda u: 1.0,
        lambda u, _: (-0.02 if u in harmful else 0.02, 0.0),
    )
    measured = {row.unit for rows in said.audits.values() for row in rows}
    assert measured & harmful
    assert not set(said.allocations[-1].active) & measured & harmful


@pytest.mark.parametrize(("standard_error", "is_left_out"), [(0.002, True), (0.012, False)])
def test_audits_within_two_errors_of_zero_leave_nothing_out(standard_error, is_left_out):
    """One lesion in the audit scan: ΔDice −0.0167 and −0.0182, the second ± 0.012, of the unit
    whose loss cost 3 points of test Dice.
    """
    audit_space = space(share=1.0)
    unit = min(audit_space.units, key=audit_space.cost).id
    policy = Sea(audit_space, SeaSettings())
    policy.told_saliency(0, dict.fromkeys(policy.needs_saliency(0), 1.0))
    for cycle, delta in enumerate((-0.0167, -0.0182)):
        assert unit in policy.allocate(cycle).open
        policy.audited(cycle, [heard(unit, delta, standard_error)])
    said = next(d for d in policy.final().decisions if d.unit == unit)
    assert ("audits found Dice better without it" in said.reason) == is_left_out


def test_without_any_audit_the_final_choice_is_by_saliency():
    audit_space = space(share=0.1)
    policy = Sea(audit_space, SeaSettings())
    policy.told_saliency(0, dict.fromkeys(policy.needs_saliency(0), 1.0))
    final = policy.final()
    check_allocation(final, audit_space)
    assert final.active
    assert all(d.value is None for d in final.decisions), "unmeasured is not a number"


@pytest.mark.parametrize(("standard_error", "changes"), [(0.1, False), (0.0, True)])
def test_audits_change_the_final_choice_by_as_much_as_they_are_more_than_noise(
    standard_error, changes
):
    audit_space = space(share=0.2)
    without = Sea(audit_space, SeaSettings())
    without.told_saliency(0, dict.fromkeys(without.needs_saliency(0), 1.0))
    said = converse(
        Sea(audit_space, SeaSettings()),
        audit_space,
        CYCLES,
        lambda u: 1.0,
        lambda u, _: (0.03 if zlib.crc32(u.encode()) % 4 == 0 else 0.0, standard_error),
    )
    assert len({row.unit for rows in said.audits.values() for row in rows}) > 5
    assert (set(said.allocations[-1].active) != set(without.final().active)) == changes


@pytest.mark.parametrize("placement", ["parallel", "sequential"])
def test_two_placements_of_one_family_are_never_both_shipped(placement):
    audit_space = space(sites=3, share=0.9)
    policy = Sea(audit_space, SeaSettings())
    policy.told_saliency(0, {u: 2.0 if placement in u else 1.0 for u in policy.needs_saliency(0)})
    check_allocation(policy.final(), audit_space)


@given(seed=SEEDS)
@settings(max_examples=15)
def test_units_of_an_earlier_run_are_on_from_the_start_and_not_audited_again(seed):
    audit_space = space(seed=seed)
    before = converse(
        Sea(audit_space, SeaSettings()), audit_space, CYCLES, _saliency(seed), noisy(seed)
    ).allocations[-1]
    carried = dict.fromkeys(before.active, Estimate(0.01, (0.01, 0.01), 0.001, 2))
    rules = SeaSettings(carried=carried)
    said = converse(Sea(audit_space, rules), audit_space, CYCLES, _saliency(seed), noisy(seed + 1))
    first = said.allocations[0]
    assert first.active
    assert set(first.active) <= carried.keys()
    assert set(first.probes).isdisjoint(carried)
    assert not any(row.unit in carried for rows in said.audits.values() for row in rows)
    assert replay(Sea(audit_space, rules), said, CYCLES) == said.allocations
