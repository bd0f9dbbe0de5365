"""What is shipped is what was found; the reason says what is ahead of it."""

from __future__ import annotations

from sea_peft.loop.comparison import UNADAPTED, compare
from sea_peft.loop.outcome import Baseline

OURS = (0.70, 0.72, 0.68, 0.71)


def baseline(ahead: float, scatter: float = 0.0) -> Baseline:
    """Ahead of OURS by so much on average, by more and less in turn."""
    return Baseline("head_only", tuple(d + ahead + scatter * (-1) ** i for i, d in enumerate(OURS)))


def test_a_clear_lead_is_said_as_such_and_settles_nothing():
    verdict = compare("sea", OURS, baseline(0.02), None)
    assert verdict.chosen == "sea"
    assert "head_only is ahead by more than two standard errors" in verdict.reason


def test_a_baseline_behind_is_in_the_numbers_and_not_in_the_reason():
    verdict = compare("sea", OURS, baseline(-0.1), None)
    assert verdict.dice["head_only"] < verdict.dice["sea"]
    assert "head_only" not in verdict.reason


def test_a_lead_within_its_error_is_said_without_that():
    verdict = compare("sea", OURS, baseline(0.02, scatter=0.05), None)
    assert verdict.chosen == "sea"
    assert verdict.reason.endswith("; head_only is ahead")


def test_where_the_unadapted_backbone_is_ahead_that_is_said():
    verdict = compare("sea", OURS, baseline(0.02), tuple(d + 0.1 for d in OURS))
    assert verdict.chosen == UNADAPTED
    assert verdict.reason.endswith("; unadapted is ahead")
    assert set(verdict.dice) == set(verdict.per_patch) == {"sea", "head_only", UNADAPTED}
    assert verdict.per_patch["sea"] == list(OURS)
    assert compare("sea", OURS, None, tuple(d - 0.1 for d in OURS)).chosen == "sea"
    assert compare("sea", OURS, None, OURS).chosen == "sea"  # a tie speaks for nobody
