"""Which network a run recommends: the adapter, unless the evidence speaks against it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import pytest

from sea_peft.loop.events import Recommended, Scored
from sea_peft.loop.recommendation import difference, recommend


def scored(arm: str, dice: Sequence[float], on: str = "test", label: str = "liver") -> Scored:
    return Scored(
        arm=arm, dice=statistics.fmean(dice), per_label={label: statistics.fmean(dice)},
        per_case={f"case{i}": {label: value} for i, value in enumerate(dice)}, seconds=0.0, on=on,
    )  # fmt: skip


def arms(
    unadapted: Sequence[float], adapted: Sequence[float], on: str = "test"
) -> dict[str, Scored]:
    return {
        "unadapted": scored("unadapted", unadapted, on),
        "head_only": scored("head_only", unadapted, on),
        "adapted": scored("adapted", adapted, on),
    }


@pytest.mark.parametrize(
    ("unadapted", "adapted", "network"),
    [
        ([0.60, 0.62, 0.61], [0.80, 0.85, 0.79], "adapted"),
        ([0.80, 0.85, 0.79], [0.60, 0.62, 0.61], "unadapted"),
        ([0.70, 0.70, 0.70], [0.70, 0.70, 0.70], "adapted"),  # nothing speaks against it
        (
            [0.70, 0.70, 0.70, 0.70],
            [0.80, 0.58, 0.82, 0.58],
            "adapted",
        ),  # lower by less than the error
        ([0.70], [0.69], "unadapted"),  # one case has no error to hide behind
        ([0.70, 0.70], [0.60, 0.79], "unadapted"),
        ([0.70], [0.71], "adapted"),
    ],
)
@pytest.mark.parametrize("on", ["test", "cv", "held_out"])
def test_whole_scans_speak_against_the_adapter_beyond_their_error(unadapted, adapted, network, on):
    found = arms(unadapted, adapted, on)
    told = recommend((), found if on != "held_out" else {}, found if on == "held_out" else {})
    assert told.network == network
    assert told.evidence.startswith(
        f"{len(adapted)} " + {"test": "test case", "cv": "shot", "held_out": "scan"}[on]
    )


def test_the_evidence_is_in_points_with_its_error():
    told = recommend((), arms([0.60, 0.62, 0.61], [0.80, 0.85, 0.81]), {})
    assert told == Recommended("adapted", "3 test cases: +21.0 ± 1.0 points")


def test_test_cases_go_before_what_was_held_out_while_searching():
    better, worse = arms([0.6] * 3, [0.7] * 3), arms([0.7] * 3, [0.6] * 3, "held_out")
    assert recommend((), better, worse).network == "adapted"
    assert recommend((), {}, worse).network == "unadapted"


def test_where_no_arm_finds_anything_there_is_no_verdict():
    told = recommend((), arms([0.02, 0.03, 0.04], [0.0, 0.0, 0.0]), {})
    assert told.network == "adapted"
    assert told.evidence == "cannot tell: no arm reaches Dice 0.05 on 3 test cases"
    assert recommend((), {}, arms([0.01], [0.0], "held_out_labels")).network == "adapted"


def test_an_unadapted_network_that_cannot_predict_a_label_is_never_recommended():
    worse = arms([0.9] * 3, [0.5] * 3)
    told = recommend(("spot",), worse, {})
    assert told.network == "adapted"
    assert "cannot predict spot" in told.evidence
    assert recommend(("spot",), {}, arms([0.9], [0.1], "held_out_labels")).network == "adapted"


@pytest.mark.parametrize(
    ("unadapted", "adapted", "network"),
    [
        (0.40, 0.70, "adapted"),
        (0.80, 0.84, "unadapted"),  # no more than knowing the one scan gives
        (0.80, 0.70, "unadapted"),
    ],
)
def test_one_scan_alone_must_speak_for_the_adapter_clearly(unadapted, adapted, network):
    told = recommend((), {}, arms([unadapted], [adapted], "held_out_labels"))
    assert told.network == network
    assert told.evidence.startswith("the held-out labels of the one shot: ")
    assert "not independent" in told.evidence


def test_without_any_evidence_the_network_stays_as_it_was():
    assert recommend((), {}, {}).network == "unadapted"


def test_a_difference_counts_labels_that_the_other_arm_lacks_as_nothing():
    ours = Scored(
        arm="adapted",
        dice=0.6,
        per_label={"a": 0.8, "b": 0.4},
        per_case={"x": {"a": 0.8, "b": 0.4}},
        seconds=0.0,
    )
    theirs = Scored(
        arm="unadapted", dice=0.35, per_label={"a": 0.7}, per_case={"x": {"a": 0.7}}, seconds=0.0
    )
    found = difference(ours, theirs)
    assert (found.cases, found.better, found.error) == (1, 1, None)
    assert found.mean == pytest.approx(0.25)
