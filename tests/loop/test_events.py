"""Events are plain data: written as JSON and read back they are what they were."""

from __future__ import annotations

import dataclasses
import json
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sea_peft.loop import events
from sea_peft.loop.events import Event

KINDS = sorted(Event.__subclasses__(), key=lambda kind: kind.__name__)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = {typing.Any: JSON, float: st.floats(allow_nan=False, allow_infinity=False)}


@st.composite
def an_event(draw, kind):
    hints = typing.get_type_hints(kind)
    values = {field.name: draw(_values(hints[field.name])) for field in dataclasses.fields(kind)}
    return kind(**values)


def _values(hint):
    if hint in FIELDS:
        return FIELDS[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return st.lists(_values(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(_values(arguments[0]), _values(arguments[1]), max_size=3)
    if arguments:  # a union with None
        return st.one_of(*(st.none() if a is type(None) else _values(a) for a in arguments))
    return st.from_type(hint)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_an_event_survives_json(kind, data):
    event = data.draw(an_event(kind))
    row = json.loads(json.dumps(event.as_dict()))
    assert row["event"] == kind.kind
    assert json.dumps(row) == json.dumps(
        event.as_dict()
    )  # rows included; reading them back is tests/artefacts/test_trace.py's


def test_every_event_has_a_name_of_its_own():
    names = [kind.kind for kind in KINDS]
    assert len(set(names)) == len(names)
    assert events.RunStarted.kind == "run_started"
    assert events.TrainingStep.kind == "training_step"


def test_events_cannot_be_changed():
    event = events.RunFinished("done", [], 0, "all steps done")
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.status = "other"


def test_clock_times_stand_only_in_seconds():
    for kind in KINDS:
        timed = [
            field.name
            for field in dataclasses.fields(kind)
            if "time" in field.name or "date" in field.name
        ]
        assert not timed
