"""What ships is what was found, unless a simpler policy is clearly ahead; the reason says what else is."""

from __future__ import annotations

from sea_peft.loop.comparison import UNADAPTED, compare
from sea_peft.loop.outcome import Rival

OURS = (0.70, 0.72, 0.68, 0.71)


def rival(name: str, ahead: float, scatter: float = 0.0, units: tuple[str, ...] = ("affine@a",)) -> Rival:
    """Ahead of OURS by so much on average, by more and less in turn."""
    dice = tuple(d + ahead + scatter * (-1) ** i for i, d in enumerate(OURS))
    return Rival(name, units, dice, {}, {})


def test_a_rival_that_is_clearly_ahead_ships():
    simple = rival("affine_lora", 0.02)
    verdict = compare("sea", OURS, [rival("head_only", -0.1, units=()), simple], None)
    assert (verdict.ship, verdict.chosen) == (simple, "affine_lora")
    assert "more than two standard errors" in verdict.reason


def test_a_lead_within_its_error_ships_nothing_else_and_is_said():
    verdict = compare("sea", OURS, [rival("affine_lora", 0.02, scatter=0.05)], None)
    assert (verdict.ship, verdict.chosen) == (None, "sea")
    assert "affine_lora is ahead, but by less than two standard errors" in verdict.reason


def test_the_head_alone_never_ships_and_its_lead_is_said():
    verdict = compare("sea", OURS, [rival("head_only", 0.1, units=())], None)
    assert (verdict.ship, verdict.chosen) == (None, "sea")
    assert "head_only is ahead" in verdict.reason


def test_the_best_of_several_rivals_is_the_one_that_ships():
    good, better = rival("cheapest", 0.02), rival("affine_lora", 0.03)
    assert compare("sea", OURS, [good, better], None).ship == better


def test_where_nothing_beats_the_unadapted_backbone_that_is_what_to_use():
    verdict = compare("sea", OURS, [rival("affine_lora", 0.02)], tuple(d + 0.1 for d in OURS))
    assert verdict.chosen == UNADAPTED
    assert "did not beat the unadapted backbone" in verdict.reason
    assert set(verdict.dice) == {"sea", "affine_lora", UNADAPTED}
    assert compare("sea", OURS, [], tuple(d - 0.1 for d in OURS)).chosen == "sea"
