"""Utility against tables worked out by hand, and unmeasured apart from zero."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sea_peft.loop.utility import UNMEASURED, Estimate, UtilitySettings, iqr, median, observe, score, value

SETTINGS = UtilitySettings(decay=0.7, window=3, iqr_weight=0.25, exploration=0.5)
DELTAS = st.lists(st.floats(-0.2, 0.2, allow_nan=False), min_size=1, max_size=12)

# Δ | EMA = 0.7·EMA + 0.3·Δ | window of 3 | median | IQR, linear between order statistics | median − 0.25·IQR | + 0.5·|EMA − score|
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
        assert (estimate.spread, estimate.audits) == (0.003, audits)


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
    kept = Estimate(before.ema, before.window, before.spread, before.audits)
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
