"""`sea` without one of its parts is `sea` in everything else, and decides without that part."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.policies import SEA_VARIANTS
from sea_peft.loop.policies import make_policy
from sea_peft.loop.policies.sea import SeaSettings
from tests.loop.worlds import converse, noisy, space

WHOLE = SeaSettings(cycles=5)


def said_by(name, seed=0):
    """What a variant says in a world of noisy audits."""
    audit_space = space(share=0.05)
    policy = make_policy(name, audit_space, seed=seed, cycles=5)
    return converse(policy, audit_space, 5, lambda unit: float(len(unit)), noisy(seed))


@pytest.mark.parametrize("name", SEA_VARIANTS)
def test_a_variant_differs_in_its_part_alone(name):
    variant = SEA_VARIANTS[name]
    whole, changed = (dataclasses.asdict(s) for s in (WHOLE, variant.settings(5)))
    assert {key for key in whole if whole[key] != changed[key]} == set(variant.changes)
    assert bool(variant.changes) + (variant.cycles is not None) == 1
    said_by(name)


def test_without_smoothing_the_last_audit_is_the_score():
    said = said_by("sea_no_smoothing")
    measured = [row for rows in said.ranked for row in rows if row.delta is not None]
    assert measured
    assert all(row.score == row.ema == row.delta for row in measured)


def test_without_ranking_one_audit_is_enough():
    units = {u for allocation in said_by("sea_no_ranking").allocations[1:2] for u in allocation.active}
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
