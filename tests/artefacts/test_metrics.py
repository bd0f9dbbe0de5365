from __future__ import annotations

import dataclasses
import json
import statistics

import pytest
from example_run import CONFIG, HEAD, make_events
from mlflow.utils.validation import _validate_metric_name, _validate_param

from sea_peft.artefacts.history import History
from sea_peft.artefacts.metrics import metrics, names_in_keys, params
from sea_peft.loop import events as ev


def points(events):
    return {(point.key, point.step): point.value for point in metrics(History(events), CONFIG)}


def test_each_point_once_and_the_promised_keys(events):
    known = metrics(History(events), CONFIG)
    assert len({(point.key, point.step) for point in known}) == len(known)
    keys = {point.key for point in known}
    assert keys >= {
        *("budget/used", "budget/used_fraction", "audit/coverage", "audit/noise", "alloc/units_on"),
        *("alloc/changes", "val/dice", "val/hard_dice", "time/search", "time/audit"),
        *("time/allocate", "time/total", "train/loss", "refit/loss", "time/refit", "dice/adapted"),
        *("label/liver/adapted", "label/spleen/head_only", "val/compared/unadapted"),
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
            assert known["audit/noise", event.cycle] == statistics.median(
                row.standard_error for row in event.rows
            )
        elif isinstance(event, ev.Ranked):
            keys = names_in_keys("unit", History(events).units)
            for row in event.rows:
                assert known[f"utility/{keys[row.unit]}", event.cycle] == row.ema


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
    assert ("dice/unadapted", 0) not in points(make_events(unadapted=None))


def test_params_hold_the_settings_and_no_path(events):
    told = params(History(events), {**CONFIG, "profile": "/home/someone/Jane_Doe.toml"})
    assert told["settings.policy.utility.decay"] == "0.93"
    assert told["shots"] == "5"
    assert told["budget"] == "1%"
    assert told["budget_limit"] == "6000"
    assert told["backbone_sha256"] == "ab" * 32
    assert json.loads(told["labels"]) == CONFIG["labels"]
    assert told["support_cases"] == "4"
    assert told["profile"] == "(a path, withheld)"
    assert not any("Jane" in text or "/home" in text for item in told.items() for text in item)


# what a key of MLflow's cannot hold, what would be another key there, and what a number stands for
# already
ODD = [
    "a//b",
    "../x",
    ".",
    "a/./b",
    " liver",
    "liver ",
    "<b>",
    "\x1b[31m",
    "a@b#c",
    "x at y",
    "label 3",
    "li\u202ever",
    "\u0915\u093f",
    "",
    "x" * 300,
]
PLAIN = ["liver", "肝", "脾", "Leber li.", "печень", "liver/left", "Label 3", "T2-FLAIR", "cyst 2"]


def test_a_name_stands_in_a_key_or_a_number_for_it_and_no_two_get_the_same():
    keys = names_in_keys("label", [*PLAIN, *ODD])
    assert [keys[name] for name in PLAIN] == PLAIN
    assert [keys[name] for name in ODD] == [
        f"label {n}" for n in range(len(PLAIN) + 1, len(PLAIN) + len(ODD) + 1)
    ]
    for key in keys.values():
        _validate_metric_name(f"label/{key}/adapted")
    assert names_in_keys("unit", ["lora-4@down.0.conv", "lora-4 at down.0.conv"]) == {
        "lora-4@down.0.conv": "lora-4 at down.0.conv",
        "lora-4 at down.0.conv": "unit 2",
    }


def renamed(events, names):
    """The same run with other labels."""

    def scored(event):
        new = dict(zip(("liver", "spleen"), names, strict=True))
        return dataclasses.replace(
            event,
            per_label={new[k]: v for k, v in event.per_label.items()},
            per_case={c: {new[k]: v for k, v in by.items()} for c, by in event.per_case.items()},
        )

    return [scored(event) if isinstance(event, ev.Scored) else event for event in events]


@pytest.mark.parametrize(
    "names", [("a//b", "a/b"), ("肝", "脾"), ("\x1b[31m", "\x9b"), ("label 2", "a@b")]
)
@pytest.mark.parametrize("with_config", [True, False])
def test_labels_never_fall_together_and_params_say_what_numbers_stand_for(
    events, names, with_config
):
    config = {"labels": {name: [n] for n, name in enumerate(names, 1)}} if with_config else {}
    history = History(renamed(events, names))
    known = {point.key: point.value for point in metrics(history, config)}
    told = params(history, config)
    for name, key in names_in_keys("label", names).items():
        assert key in (name, "a at b") or told[key] == name
        assert known[f"label/{key}/adapted"] == history.scored["adapted"].per_label[name]


def test_a_setting_that_a_key_cannot_name_names_itself_in_its_value(events):
    odd = dataclasses.replace(events[0], settings={"a//b": 1, "c": 2})
    told = params(History([odd]), {})
    assert told["settings.c"] == "2"
    assert "settings.a//b: 1" in told.values()
    for key in told:
        _validate_param(key, told[key])
