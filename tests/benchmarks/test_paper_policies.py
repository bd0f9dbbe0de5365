"""`sea` without one of its parts is `sea` in everything else, and decides without that part;
the policies of other papers decide as they say.
"""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.policies import SEA_VARIANTS
from sea_peft.adapters import total_cost
from sea_peft.loop.policies import make_policy, policy_entry
from sea_peft.loop.policies.sea import SeaSettings
from tests.loop.worlds import constant, converse, heard, noisy, replay, space

WHOLE = SeaSettings(cycles=5)


def said_by(name, seed=0):
    """What a variant says in a world of noisy audits."""
    audit_space = space(share=0.05)
    policy = make_policy(name, audit_space, seed=seed, cycles=5)
    return converse(policy, audit_space, 5, lambda unit: float(len(unit)), noisy(seed))


@pytest.mark.parametrize("name", SEA_VARIANTS)
def test_a_variant_differs_in_its_part_alone(name):
    variant = SEA_VARIANTS[name]
    whole, changed = (dataclasses.asdict(s) for s in (WHOLE, variant.settings(5, None)))
    assert {key for key in whole if whole[key] != changed[key]} == set(variant.changes)
    assert bool(variant.changes) + (variant.cycles is not None) == 1
    said_by(name)


def test_without_smoothing_the_last_audit_is_the_score():
    said = said_by("sea_no_smoothing")
    measured = [row for rows in said.ranked for row in rows if row.delta is not None]
    assert measured
    assert all(row.score == row.ema == row.delta for row in measured)


def test_without_ranking_one_audit_is_enough():
    units = {
        u for allocation in said_by("sea_no_ranking").allocations[1:2] for u in allocation.active
    }
    assert units, "promoted after the first audit"
    assert not said_by("sea").allocations[1].active, "one noisy audit promotes nobody"


def test_without_probes_fewer_units_are_ever_tried():
    def tried(name):
        return {unit for allocation in said_by(name).allocations[:-1] for unit in allocation.open}

    assert len(tried("sea_no_probes")) < len(tried("sea"))


def test_in_turn_whatever_is_untried_comes_before_what_is_on():
    def newcomers(name):
        first, second = said_by(name).allocations[:2]
        return len(set(second.open) - set(first.open))

    assert newcomers("sea_in_turn") > newcomers("sea") > 0


def test_without_audits_nothing_is_measured_but_the_budget_is_trained_and_something_is_chosen():
    said = said_by("sea_no_audits")
    assert not any(said.audits.values())
    assert said.allocations[0].open
    assert said.allocations[-1].active


PAPERS = ("spt", "arena", "sea_paper")


def cycles_of(name):
    """As many as the policy asks for, otherwise three."""
    return policy_entry(name).cycles or 3


def heard_by(name, audit_space, seed=0, saliency=len):
    """What one of the papers' policies says in a world of noisy audits."""
    cycles = cycles_of(name)
    policy = make_policy(name, audit_space, seed=seed, cycles=cycles)
    return converse(policy, audit_space, cycles, saliency, noisy(seed))


@pytest.mark.parametrize("name", PAPERS)
@given(share=st.floats(0.01, 0.9), seed=st.integers(0, 100), sites=st.integers(1, 20))
def test_a_paper_s_policy_is_never_above_the_budget(name, share, seed, sites):
    heard_by(
        name, space(sites=sites, share=share, head=200, seed=seed), seed
    )  # `converse` checks every allocation


@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_s_policy_repeats_and_can_be_replayed(name):
    audit_space = space(share=0.1)
    said = heard_by(name, audit_space)
    assert heard_by(name, audit_space) == said
    fresh = make_policy(name, audit_space, seed=0, cycles=cycles_of(name))
    assert replay(fresh, said, cycles_of(name)) == said.allocations


@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_s_policy_goes_on_from_its_state_as_if_it_had_not_been_stopped(name):
    audit_space, cycles = space(share=0.1), cycles_of(name)
    whole = heard_by(name, audit_space)
    stopped = make_policy(name, audit_space, seed=0, cycles=cycles)
    for cycle in range(cycles):
        if stopped.needs_saliency(cycle):
            stopped.told_saliency(cycle, whole.saliencies[cycle])
        assert stopped.allocate(cycle) == whole.allocations[cycle]
        assert list(stopped.to_audit(cycle)) == [row.unit for row in whole.audits[cycle]]
        assert stopped.audited(cycle, whole.audits[cycle]) == whole.ranked[cycle]
        state = json.loads(json.dumps(stopped.state_dict()))
        stopped = make_policy(name, audit_space, seed=0, cycles=cycles)
        stopped.load_state_dict(state)
    assert stopped.final() == whole.allocations[-1]


# -- SPT -------------------------------------------------------------------------------------------


def test_spt_takes_what_is_most_sensitive_for_its_cost_and_keeps_it():
    audit_space = space(share=0.1)
    costliest = max(
        (u for u in audit_space.units if u.family == "lora" and u.level == 4), key=lambda u: u.cost
    )
    said = heard_by("spt", audit_space, saliency=lambda unit: 1e6 if unit == costliest.id else 1.0)
    assert {allocation.active for allocation in said.allocations} == {said.allocations[0].active}
    assert costliest.id in said.allocations[0].active
    assert {audit_space.by_id[u].level for u in said.allocations[0].active} <= {0, 4}
    assert list(said.saliencies) == [0]


# -- ARENA -----------------------------------------------------------------------------------------


def test_arena_lets_ranks_in_where_the_gradient_is_and_a_level_at_a_time():
    audit_space = space(share=0.3)
    by_id = audit_space.by_id
    said = heard_by(
        "arena", audit_space, saliency=lambda u: by_id[u].level * (9.0 if "conv7" in u else 1.0)
    )
    *searched, _ = [
        {by_id[u].site.path: by_id[u].level for u in a.active if by_id[u].family == "lora"}
        for a in said.allocations
    ]
    assert [ranks["conv7"] for ranks in searched[:3]] == [1, 2, 4]
    assert {u.id for u in audit_space.units if u.family == "affine"} <= set(
        said.allocations[0].active
    )
    assert said.allocations[-1].active == said.allocations[-2].active, (
        "ships what the last cycle trained"
    )


def test_arena_spends_an_equal_part_of_the_budget_a_cycle():
    audit_space = space(share=0.1)
    spent = [
        total_cost(audit_space.by_id[u] for u in a.active)
        for a in heard_by("arena", audit_space).allocations
    ]
    assert spent == sorted(spent)
    assert all(s <= audit_space.capacity * (i + 1) / 5 for i, s in enumerate(spent[:-1]))
    left = audit_space.capacity - spent[-1]
    assert left < max(u.cost for u in audit_space.units if u.family == "lora" and u.level == 1)


# -- SEA-PEFT as published -------------------------------------------------------------------------


def active_under(deltas, share=0.1):
    """The active sets of `sea_paper` if every unit of a cycle's audit measures the same, cycle
    by cycle.
    """
    policy = make_policy("sea_paper", space(levels=(1,), share=share), seed=0, cycles=10)
    active = []
    for cycle, delta in enumerate(deltas):
        active.append(set(policy.allocate(cycle).active))
        policy.audited(cycle, [heard(unit, delta, 0.001) for unit in policy.to_audit(cycle)])
    return active


def test_sea_paper_takes_three_votes_to_let_a_unit_in_and_after_its_guard_three_to_put_it_out():
    active = active_under([0.05] * 3 + [-1.0] * 7)
    assert not any(active[:3])
    assert active[3], "wanted by allocations 1, 2 and 3"
    assert all(active[3] <= later for later in active[4:8]), (
        "guarded until 6, voted on by 6, 7 and 8"
    )
    assert not active[3] & active[8]


def test_sea_paper_keeps_a_unit_that_harms_by_less_than_the_hysteresis_while_there_is_room():
    mild, clear = ([0.001] * 3 + [harm] * 7 for harm in (-0.01, -0.1))
    active = active_under(mild, share=2.0)
    assert active[3] <= active[9]
    assert not active[3] <= active_under(clear, share=2.0)[9]


def test_sea_paper_audits_a_fifth_and_tries_every_place():
    audit_space = space(share=0.1)
    said = converse(
        make_policy("sea_paper", audit_space, seed=0, cycles=10),
        audit_space,
        10,
        len,
        constant(0.01),
    )
    assert {len(rows) for rows in said.audits.values()} == {16}, "of 76 units"
    tried = {audit_space.by_id[u].group for a in said.allocations[:-1] for u in a.open}
    assert tried == {u.group for u in audit_space.units}


def test_sea_paper_ships_what_scores_best_as_a_whole():
    said = heard_by("sea_paper", space(share=0.1))
    scores = {row.unit: row.score for rows in said.ranked for row in rows}
    *_, last, final = (sum(scores[u] for u in allocation.active) for allocation in said.allocations)
    assert final >= max(last, 0)
