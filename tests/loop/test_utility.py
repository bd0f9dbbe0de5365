"""Utility against tables worked out by hand, and unmeasured apart from zero."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sea_peft.loop.utility import (
    UNMEASURED,
    Estimate,
    UtilitySettings,
    clearly_better,
    error,
    iqr,
    is_decided,
    median,
    observe,
    score,
    value,
)

SETTINGS = UtilitySettings(decay=0.7, window=3, iqr_weight=0.25, exploration=0.5)
DELTAS = st.lists(st.floats(-0.2, 0.2, allow_nan=False), min_size=1, max_size=12)

# Δ | EMA = 0.7·EMA + 0.3·Δ | window of 3 | median | IQR, linear between order statistics | median −
# 0.25·IQR | + 0.5·|EMA − score|
TABLE = [
    (0.04, 0.04, (0.04,), 0.04, 0.0, 0.04, 0.04),
    (0.00, 0.028, (0.04, 0.00), 0.02, 0.02, 0.015, 0.0215),
    (-0.02, 0.0136, (0.04, 0.00, -0.02), 0.00, 0.03, -0.0075, 0.00305),
    (0.02, 0.01552, (0.00, -0.02, 0.02), 0.00, 0.02, -0.005, 0.00526),
]


def test_every_audit_against_the_table():
    estimate = UNMEASURED
    for audits, (delta, ema, window, middle, width, scored, worth) in enumerate(TABLE, start=1):
        estimate = observe(estimate, delta, 0.003, SETTINGS)
        assert estimate.ema == pytest.approx(ema)
        assert estimate.window == pytest.approx(window)
        assert median(estimate) == pytest.approx(middle)
        assert iqr(estimate) == pytest.approx(width)
        assert score(estimate, SETTINGS) == pytest.approx(scored)
        assert value(estimate, SETTINGS) == pytest.approx(worth)
        assert (estimate.standard_error, estimate.audits) == (0.003, audits)


def test_the_error_of_an_estimate_is_its_error_over_patches_and_its_scatter_over_audits():
    once = observe(UNMEASURED, 0.02, 0.003, SETTINGS)
    assert error(once) == pytest.approx(0.003)
    assert error(observe(once, 0.06, 0.015, SETTINGS)) == pytest.approx(
        0.025
    )  # IQR of (0.02, 0.06): 0.02
    assert (
        error(observe(UNMEASURED, 0.02, None, SETTINGS)) == 0.0
    )  # a single patch says nothing of its error
    assert error(UNMEASURED) == 0.0


def test_unmeasured_is_not_zero():
    zero = observe(UNMEASURED, 0.0, 0.0, SETTINGS)
    assert zero != UNMEASURED
    for measure in (median, iqr):
        assert measure(UNMEASURED) is None
        assert measure(zero) == 0.0
    for measure in (score, value):
        assert measure(UNMEASURED, SETTINGS) is None
        assert measure(zero, SETTINGS) == 0.0
    assert UNMEASURED.ema is None
    assert UNMEASURED.audits == 0


def test_observing_leaves_the_estimate_before_as_it_was():
    before = observe(UNMEASURED, 0.01, 0.001, SETTINGS)
    kept = Estimate(before.ema, before.window, before.standard_error, before.audits)
    observe(before, 0.5, 0.1, SETTINGS)
    assert before == kept


@given(DELTAS)
def test_everything_lies_within_what_was_observed(deltas):
    estimate = UNMEASURED
    for delta in deltas:
        estimate = observe(estimate, delta, 0.0, SETTINGS)
    window = deltas[-SETTINGS.window :]
    assert min(deltas) - 1e-12 <= estimate.ema <= max(deltas) + 1e-12
    assert min(window) <= median(estimate) <= max(window)
    assert 0 <= iqr(estimate) <= max(window) - min(window) + 1e-12
    assert score(estimate, SETTINGS) <= median(estimate)
    assert value(estimate, SETTINGS) >= score(estimate, SETTINGS)
    assert estimate.audits == len(deltas)


@given(st.floats(-0.2, 0.2, allow_nan=False), st.integers(1, 12))
def test_audits_that_agree_leave_no_optimism(delta, audits):
    estimate = UNMEASURED
    for _ in range(audits):
        estimate = observe(estimate, delta, 0.0, SETTINGS)
    assert value(estimate, SETTINGS) == pytest.approx(delta)


@given(DELTAS, st.floats(0.001, 0.1))
def test_a_unit_that_is_better_in_every_audit_scores_better(deltas, by):
    worse = better = UNMEASURED
    for delta in deltas:
        worse, better = observe(worse, delta, 0, SETTINGS), observe(better, delta + by, 0, SETTINGS)
    assert score(better, SETTINGS) == pytest.approx(score(worse, SETTINGS) + by)


def test_a_unit_is_decided_as_a_t_test_by_hand_decides():
    # mean 0.02, standard deviation 0.01, standard error 0.005: t = (0.02 − cut-off) / 0.005 with 3
    # degrees of freedom
    deltas = [0.01, 0.02, 0.02, 0.03]
    error = statistics.stdev(deltas) / 2
    assert is_decided(deltas, 0.02 - 2.36 * error, error=0.05), "t(0.95, 3) = 2.353"
    assert not is_decided(deltas, 0.02 - 2.34 * error, error=0.05)
    assert is_decided(deltas, 0.02 + 2.36 * error, error=0.05), (
        "on the other side of the cut-off it is as clear"
    )


def test_nothing_is_decided_by_one_patch_or_without_an_error_allowed():
    assert not is_decided([0.5], 0.0, error=0.1)
    assert not is_decided([0.5, 0.5], 0.0, error=0.0)
    assert is_decided([0.5, 0.5], 0.0, error=0.1)
    assert not is_decided([0.0, 0.0], 0.0, error=0.1), (
        "exactly on the cut-off, more patches may still tell"
    )


def test_decisions_are_wrong_no_more_often_than_stated():
    rng = random.Random(0)
    wrong = 0
    for _ in range(2000):
        deltas: list[float] = []
        for _look in range(3):
            deltas += [rng.gauss(0.002, 0.01), rng.gauss(0.002, 0.01)]
            if is_decided(deltas, 0.0, error=0.1 / 3):
                break
        wrong += is_decided(deltas, 0.0, error=0.1 / 3) and statistics.fmean(deltas) < 0
    assert wrong / 2000 <= 0.1


def test_clearly_better_is_ahead_by_more_than_two_standard_errors_of_the_paired_differences():
    ours = [0.5, 0.6, 0.7, 0.8]
    assert clearly_better([d + 0.01 for d in ours], ours), "a small lead on every patch is clear"
    assert not clearly_better([0.5, 0.6, 0.7, 0.9], ours), (
        "ahead 0.025 with a standard error of 0.025"
    )
    assert clearly_better([0.53, 0.61, 0.73, 0.81], ours), (
        "ahead 0.02 with a standard error of 0.0058"
    )
    assert not clearly_better(ours, ours)
    assert clearly_better([0.51], [0.5])
