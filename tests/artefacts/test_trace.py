from __future__ import annotations

import errno
import json
import os

import pytest

from sea_peft.artefacts.trace import TraceWriter, read_trace
from sea_peft.errors import DiskError, UsageError
from sea_peft.loop.events import Scored, TrainingStep
from sea_peft.loop.rows import Ablation, Candidate, Decision, Ranking


def write(path, events):
    with TraceWriter(path) as trace:
        for event in events:
            trace(event)
    return path


def written(events):
    return [event for event in events if not isinstance(event, TrainingStep)]


def test_read_events_equal_the_written_ones_without_training_steps(tmp_path, events):
    assert any(isinstance(event, TrainingStep) for event in events)
    assert read_trace(write(tmp_path / "trace.jsonl", events)) == written(events)


def test_one_json_line_per_event_named_by_kind(tmp_path, events):
    lines = write(tmp_path / "trace.jsonl", events).read_text("utf-8").splitlines()
    assert [json.loads(line)["event"] for line in lines] == [
        event.kind for event in written(events)
    ]


def test_new_writer_refuses_an_existing_trace(tmp_path, events):
    path = write(tmp_path / "trace.jsonl", events)
    before = path.read_bytes()
    with pytest.raises(DiskError, match="Cannot write"):
        TraceWriter(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("cut", [1, 4, 9])
def test_killed_and_resumed_gives_the_same_bytes(tmp_path, events, cut):
    whole = write(tmp_path / "whole.jsonl", events).read_bytes()
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[: cut + 3]) + b'{"event": "audi')
    with TraceWriter(path, append=True) as trace:
        assert trace.count == cut + 3
        trace.truncate(cut)
        for event in written(events)[cut:]:
            trace(event)
    assert path.read_bytes() == whole


def test_resuming_from_more_events_than_there_are_is_refused(tmp_path, events):
    write(tmp_path / "trace.jsonl", events[:1])
    with (
        TraceWriter(tmp_path / "trace.jsonl", append=True) as trace,
        pytest.raises(UsageError, match="holds 1 ev"),
    ):
        trace.truncate(2)


def test_an_incomplete_last_line_is_dropped_but_any_other_is_an_error(tmp_path, events):
    path = write(tmp_path / "trace.jsonl", events)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert read_trace(path) == written(events)[:-1]
    path.write_bytes(whole.replace(b'{"event": "saliency_measured"', b"{", 1))
    with pytest.raises(UsageError, match="line 3: it is not JSON"):
        read_trace(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"version": 1}, "has version 1 but this sea_peft reads version 3"),
        ({"event": "invented"}, "a trace begins with 'run_started'"),
        ({"surprise": 1}, r"'run_started' is not as this sea_peft writes it \(surprise: "),
        ({"limit": "many"}, r"'run_started' is not as this sea_peft writes it \(limit: "),
    ],
)
def test_a_trace_of_another_kind_is_refused_in_one_sentence(tmp_path, events, change, sentence):
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps({**events[0].as_dict(), **change}) + "\n")
    with pytest.raises(UsageError, match=sentence):
        read_trace(path)


def test_an_unknown_or_shortened_event_is_refused(tmp_path, events):
    path = tmp_path / "trace.jsonl"
    first = json.dumps(events[0].as_dict()) + "\n"
    path.write_text(first + '{"event": "invented"}\n')
    with pytest.raises(UsageError, match="line 2 has the unknown event 'invented'"):
        read_trace(path)
    path.write_text(first + '{"event": "run_finished", "status": "done"}\n')
    with pytest.raises(
        UsageError, match=r"'run_finished' is not as this sea_peft writes it \(active: "
    ):
        read_trace(path)


def test_a_row_with_a_field_more_or_of_another_type_is_refused_with_its_place(tmp_path, events):
    path = tmp_path / "trace.jsonl"
    for change in ({"surprise": 1}, {"cost": "many"}):
        first = events[0].as_dict()
        first["units"][1] |= change
        path.write_text(json.dumps(first) + "\n")
        with pytest.raises(
            UsageError,
            match=(
                rf"'run_started' is not as this sea_peft writes it \(units.1.{next(iter(change))}: "
            ),
        ):
            read_trace(path)


def test_rows_are_read_back_as_what_they_were(tmp_path, events):
    read = read_trace(write(tmp_path / "trace.jsonl", events))
    rows = {
        type(row)
        for event in read
        for name in ("units", "rows", "decisions")
        for row in getattr(event, name, ())
    }
    assert rows == {Candidate, Ablation, Ranking, Decision}


def test_missing_trace_and_foreign_file(tmp_path):
    with pytest.raises(UsageError, match="Cannot read the trace"):
        read_trace(tmp_path / "none.jsonl")
    (tmp_path / "other.jsonl").write_text("[1, 2]\n")
    with pytest.raises(UsageError, match="not a trace"):
        read_trace(tmp_path / "other.jsonl")


def test_a_number_json_cannot_hold_is_not_written(tmp_path):
    with TraceWriter(tmp_path / "trace.jsonl") as trace:
        with pytest.raises(ValueError, match="'scored' holds a value that JSON cannot"):
            trace(Scored(arm="adapted", dice=float("nan"), per_label={}, per_case={}, seconds=0.0))
        assert trace.count == 0


def test_a_full_disk_is_one_sentence_and_keeps_what_was_written(tmp_path, events, monkeypatch):
    path = tmp_path / "trace.jsonl"
    with TraceWriter(path) as trace:
        trace(events[0])

        def full(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(DiskError, match="the disk is full: free some space"):
                trace(events[1])
        assert trace.count == 1
    with TraceWriter(path, append=True) as trace:
        trace.truncate(1)
    assert read_trace(path) == events[:1]
