from __future__ import annotations

import pytest
from example_run import make_events

from sea_peft.artefacts.history import History
from sea_peft.artefacts.view import UNIT_COLUMNS, summarise, unit_table
from sea_peft.errors import UsageError
from sea_peft.loop import events as ev


def test_every_unit_has_a_row_and_a_reason(events):
    rows = summarise(events)
    assert {row.unit for row in rows} == {row.unit for row in events[0].units}
    assert all(row.reason for row in rows)
    assert [row.unit for row in rows if row.on] == [row.unit for row in rows][
        : len(events[-1].active)
    ]
    assert {row.unit for row in rows if row.on} == set(events[-1].active)


def test_unmeasured_is_not_zero(events):
    measured = {row.unit for e in events if isinstance(e, ev.Ranked) for row in e.rows}
    for row in summarise(events):
        assert (row.utility is None) == (row.unit not in measured)
        assert (row.standard_error is None) == (row.utility is None)


def test_statistics_are_the_last_ones_up_to_the_cycle(events):
    ranked = [e for e in events if isinstance(e, ev.Ranked)]
    first = {row.unit: row.ema for row in ranked[0].rows}
    assert {row.unit: row.utility for row in summarise(events, cycle=0) if row.audits} == first
    latest = {row.unit: row.ema for e in ranked for row in e.rows}
    assert {row.unit: row.utility for row in summarise(events) if row.audits} == latest


def test_state_follows_the_allocation(events):
    allocated = {e.cycle: e for e in events if isinstance(e, ev.Allocated)}
    for cycle, event in allocated.items():
        rows = summarise(events, cycle=cycle)
        assert {row.unit for row in rows if row.state == "active"} == set(event.active)
        assert {row.unit for row in rows if row.state == "probe"} == set(event.probes)


def test_pattern_is_a_glob_over_unit_ids(events):
    assert {row.family for row in summarise(events, pattern="lora@*")} == {"lora"}
    with pytest.raises(UsageError, match=r"No unit fits 'nothing\*': units are called"):
        summarise(events, pattern="nothing*")


def test_unknown_cycle_names_the_range(events):
    with pytest.raises(UsageError, match="the run has 0 to 3"):
        summarise(events, cycle=9)


def test_a_run_that_has_only_begun(events):
    rows = summarise(events[:1])
    assert len(rows) == 12
    assert not any(row.on or row.utility for row in rows)
    with pytest.raises(UsageError, match="the run has none yet"):
        summarise(events[:1], cycle=0)
    with pytest.raises(UsageError, match="The trace is empty"):
        summarise([])


def test_unit_table_has_one_row_per_unit_and_cycle_newest_first(events):
    table = [dict(zip(UNIT_COLUMNS, row, strict=True)) for row in unit_table(History(events))]
    assert UNIT_COLUMNS[:6] == ("unit", "decision", "utility", "±", "cost", "reason")
    keys = [(row["cycle"], row["unit"]) for row in table]
    assert len(set(keys)) == len(keys)
    cycles = list(dict.fromkeys(row["cycle"] for row in table))
    assert cycles[0] == "final"
    assert cycles[1:] == sorted(cycles[1:], reverse=True)
    audited = {
        (e.cycle, row.unit): row.delta
        for e in events
        if isinstance(e, ev.Audited)
        for row in e.rows
    }
    assert {
        key: row["delta_dice"]
        for key, row in zip(keys, table, strict=True)
        if row["delta_dice"] is not None
    } == {key: pytest.approx(delta, abs=1e-6) for key, delta in audited.items()}
    assert all(row["reason"] for row in table)


def test_views_are_functions_of_the_events():
    assert summarise(make_events()) == summarise(make_events())
