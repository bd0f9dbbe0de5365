"""What is shipped is what was found; the reason says what is ahead of it."""

from __future__ import annotations

from sea_peft.loop.comparison import UNADAPTED, compare
from sea_peft.loop.outcome import Baseline

OURS = (0.70, 0.72, 0.68, 0.71)


def baseline(name: str, ahead: float, scatter: float = 0.0) -> Baseline:
    """Ahead of OURS by so much on average, by more and less in turn."""
    return Baseline(name, tuple(d + ahead + scatter * (-1) ** i for i, d in enumerate(OURS)))


def test_a_clear_lead_is_said_as_such_and_settles_nothing():
    verdict = compare("sea", OURS, [baseline("head_only", -0.1), baseline("affine_lora", 0.02)], None)
    assert verdict.chosen == "sea"
    assert "affine_lora is ahead by more than two standard errors" in verdict.reason
    assert "head_only" not in verdict.reason


def test_a_lead_within_its_error_is_said_without_that():
    verdict = compare("sea", OURS, [baseline("affine_lora", 0.02, scatter=0.05)], None)
    assert verdict.chosen == "sea"
    assert verdict.reason.endswith("; affine_lora is ahead")


def test_where_the_unadapted_backbone_is_ahead_that_is_said():
    verdict = compare("sea", OURS, [baseline("affine_lora", 0.02)], tuple(d + 0.1 for d in OURS))
    assert verdict.chosen == UNADAPTED
    assert verdict.reason.endswith("; unadapted is ahead")
    assert set(verdict.dice) == set(verdict.per_patch) == {"sea", "affine_lora", UNADAPTED}
    assert verdict.per_patch["sea"] == list(OURS)
    assert compare("sea", OURS, [], tuple(d - 0.1 for d in OURS)).chosen == "sea"
    assert compare("sea", OURS, [], OURS).chosen == "sea"  # a tie speaks for nobody
