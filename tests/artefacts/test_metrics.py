from __future__ import annotations

import dataclasses
import statistics

import pytest
from example_run import CONFIG, HEAD, make_events

from sea_peft.artefacts.history import History
from sea_peft.artefacts.metrics import metrics, params
from sea_peft.loop import events as ev


def points(events):
    return {(point.key, point.step): point.value for point in metrics(History.of(events))}


def test_each_point_once_and_the_promised_keys(events):
    known = metrics(History.of(events))
    assert len({(point.key, point.step) for point in known}) == len(known)
    keys = {point.key for point in known}
    assert keys >= {
        *("budget/used", "budget/used_fraction", "audit/coverage", "audit/noise", "alloc/units_on"),
        *("alloc/changes", "alloc/optimality_gap", "val/dice", "val/hard_dice", "time/search", "time/audit"),
        *("time/allocate", "time/total", "train/loss", "refit/loss", "time/refit", "test/dice/adapted"),
        *("test/label/liver/adapted", "test/label/spleen/head_only", "val/compared/unadapted"),
    }


def test_values_are_those_of_the_events(events):
    known = points(events)
    for event in events:
        if isinstance(event, ev.Allocated):
            assert known["budget/used", event.cycle] == event.used >= HEAD
            assert known["budget/used_fraction", event.cycle] == event.used / event.limit <= 1
            assert known["alloc/units_on", event.cycle] == len(event.active)
        elif isinstance(event, ev.Audited):
            assert known["val/dice", event.cycle] == event.dice_on
            assert known["audit/noise", event.cycle] == statistics.median(row["spread"] for row in event.rows)
        elif isinstance(event, ev.Ranked):
            for row in event.rows:
                assert known["utility/" + row["unit"].replace("@", "_").replace("#", "_"), event.cycle] == row["ema"]


def test_the_time_adds_up(events):
    known = points(events)
    spent = sum(e.seconds for e in events if not isinstance(e, ev.Scored) and hasattr(e, "seconds"))
    assert known["time/total", 3] == pytest.approx(spent)


def test_points_only_grow_while_the_run_goes_on(events):
    # what was sent once is never sent again, so an early point must not change later
    before: dict = {}
    for n in range(1, len(events) + 1):
        now = points(events[:n])
        assert before.items() <= now.items()
        before = now


def test_beyond_a_hundred_units_only_those_that_were_on_get_a_chart():
    events = make_events(sites=120, cycles=4)
    shown = {key for key, _ in points(events) if key.startswith("utility/")}
    on = {unit for e in events if isinstance(e, ev.Allocated) for unit in e.active}
    assert 0 < len(shown) <= len(on) <= 100


def test_an_arm_without_score_has_no_point():
    assert ("test/dice/unadapted", 0) not in points(make_events(unadapted=None))


def test_params_hold_the_settings_and_no_path(events):
    told = params(History.of(events), CONFIG)
    assert told["settings.policy.utility.decay"] == "0.93"
    assert told["shots"] == "5"
    assert told["budget"] == "1%"
    assert told["budget_limit"] == "6000"
    assert told["backbone_sha256"] == "ab" * 32
    assert told["labels.liver"] == "[1]"
    assert told["support_cases"] == "4"
    assert told["profile"] == "(a path, withheld)"
    assert not any("Jane" in text or "/home" in text for item in told.items() for text in item)


def test_keys_hold_only_what_mlflow_takes(events):
    odd = dataclasses.replace(events[0], settings={"a@b=ü": 1})
    assert params(History.of([odd]), {})["settings.a_b__"] == "1"
