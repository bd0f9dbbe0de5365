"""The finite-state ranking: no single audit moves a unit, no vote is lost, what has cooled
comes back, every move has a reason.
"""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sea_peft.loop.ranking import (
    ACTIVE,
    COOLING,
    IDLE,
    PROBE,
    RankingSettings,
    Standing,
    is_demotable,
    is_promotable,
    move,
    tick,
    vote,
)

SETTINGS = RankingSettings(votes=2, guard=1, hysteresis=0.001)
SCORES = st.one_of(
    st.floats(-0.1, 0.1, allow_nan=False), st.sampled_from([0.0, 0.001, -0.001, 0.0011])
)
RULES = st.builds(
    RankingSettings,
    votes=st.integers(2, 4),
    guard=st.integers(0, 3),
    hysteresis=st.sampled_from([0.0, 0.001, 0.02]),
)
STANDINGS = st.builds(
    Standing,
    state=st.sampled_from([IDLE, PROBE, ACTIVE, COOLING]),
    votes=st.integers(-2, 2),
    guard=st.integers(0, 3),
)


@given(st.sampled_from([PROBE, ACTIVE]), SCORES, RULES)
def test_one_audit_neither_promotes_nor_demotes_a_unit_that_has_just_entered_its_state(
    state, score, rules
):
    standing = move(Standing(), state, rules)
    standing, _ = tick(standing)
    standing, _ = vote(standing, score, rules)
    assert not is_promotable(standing, rules)
    assert not is_demotable(standing, rules)


@given(st.sampled_from([PROBE, ACTIVE]), st.lists(SCORES, max_size=12), RULES)
def test_nothing_flips_unless_enough_audits_agreed(state, scores, rules):
    standing = move(Standing(), state, rules)
    net = []
    for score in scores:
        standing, _ = tick(standing)
        standing, _ = vote(standing, score, rules)
        net.append(0 if abs(score) <= rules.hysteresis else 1 if score > 0 else -1)
        if is_promotable(standing, rules):
            assert net.count(1) >= rules.votes
        if is_demotable(standing, rules):
            assert net.count(-1) >= rules.votes
    assert abs(standing.votes) <= rules.votes


@given(STANDINGS, SCORES)
def test_no_vote_is_lost(standing, score):
    """Votes change by at most one, toward the score's sign, and only where the unit is on."""
    after, reason = vote(standing, score, SETTINGS)
    change = after.votes - standing.votes
    on = standing.state in (PROBE, ACTIVE)
    clear = abs(score) > SETTINGS.hysteresis
    at_limit = abs(standing.votes) == SETTINGS.votes and standing.votes * score > 0
    expected = (1 if score > 0 else -1) if on and clear and not at_limit else 0
    assert change == expected
    assert dataclasses.replace(after, votes=standing.votes) == standing
    assert reason


@given(STANDINGS)
def test_a_cycle_without_an_audit_costs_no_vote(standing):
    after, reason = tick(standing)
    if after.state == standing.state:
        assert after.votes == standing.votes
        assert reason is None
    else:
        assert (standing.state, after.state) == (COOLING, IDLE)
        assert reason


def test_a_unit_that_was_not_audited_does_not_vote():
    standing = Standing(ACTIVE, 1, 0)
    assert vote(standing, None, SETTINGS) == (standing, "not audited")


@given(st.integers(1, 5))
def test_a_cooling_unit_comes_back_after_its_guard(guard):
    rules = dataclasses.replace(SETTINGS, guard=guard)
    standing = move(Standing(ACTIVE, -2, 0), COOLING, rules)
    for _ in range(guard):
        assert standing.state == COOLING
        standing, reason = tick(standing)
    assert standing == Standing(IDLE)
    assert reason == "cooled: may be probed again"


@given(STANDINGS, st.sampled_from([IDLE, PROBE, ACTIVE, COOLING]))
def test_entering_a_state_starts_afresh_and_staying_changes_nothing(standing, state):
    after = move(standing, state, SETTINGS)
    if state == standing.state:
        assert after == standing
    else:
        assert (after.state, after.votes) == (state, 0)
        assert after.guard == (SETTINGS.guard if state in (ACTIVE, COOLING) else 0)


@pytest.mark.parametrize("guard", [1, 2])
def test_a_guard_holds_a_unit_whatever_the_votes(guard):
    assert not is_demotable(Standing(ACTIVE, -2, guard), SETTINGS)
    assert is_demotable(Standing(ACTIVE, -2, 0), SETTINGS)
    assert not is_promotable(Standing(PROBE, 2, guard), SETTINGS)
    assert is_promotable(Standing(PROBE, 2, 0), SETTINGS)


def test_only_probes_are_promoted_and_only_what_is_on_is_demoted():
    assert not is_promotable(Standing(ACTIVE, 2, 0), SETTINGS)
    assert not is_demotable(Standing(IDLE, -2, 0), SETTINGS)
    assert not is_demotable(Standing(COOLING, -2, 0), SETTINGS)


def test_constant_demand_demotes_every_unwanted_unit():
    """REFERENCE §1.4: the published code resets votes whenever an audit switches a unit off,
    and demotes none.
    """
    standing = move(Standing(), ACTIVE, SETTINGS)
    for audits in range(1, 4):
        standing, _ = tick(standing)
        standing, _ = vote(standing, -0.01, SETTINGS)
        assert is_demotable(standing, SETTINGS) == (audits >= SETTINGS.votes)


def test_hysteresis_is_in_dice_and_inclusive():
    standing = Standing(PROBE)
    assert vote(standing, 0.001, SETTINGS)[0].votes == 0
    assert vote(standing, 0.0011, SETTINGS)[0].votes == 1
    assert vote(standing, -0.0011, SETTINGS)[0].votes == -1
