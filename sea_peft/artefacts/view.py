"""The allocation as rows of plain data: `seapeft inspect`, the report and the MLflow tables render them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from sea_peft.artefacts.history import Cycle, History
from sea_peft.errors import UsageError
from sea_peft.loop.events import Event


@dataclasses.dataclass(frozen=True)
class UnitRow:
    """One unit at one cycle. `on`: placed (or, at the end of a run, shipped). `state`: active when it is on,
    probe while it is tried, else idle or cooling. `utility` (EMA of ΔDice), `spread` and `score` are None
    while it is unmeasured; `decision` is None when nothing was decided about it."""

    unit: str
    stage: str
    site: str
    family: str
    level: Any
    cost: int
    state: str
    on: bool
    utility: float | None
    spread: float | None
    score: float | None
    audits: int
    decision: str | None
    reason: str


def summarise(
    events: Iterable[Event] | History, cycle: int | None = None, pattern: str = "*"
) -> list[UnitRow]:
    """What is known of each unit at the end of `cycle`: units that are on first, then by utility, unmeasured
    ones last.

    Args:
        events: a trace, or its history.
        cycle: a cycle with an allocation; None: the end of the run (or the last allocation while it runs). At
            the end of a run `on` is what was shipped, also where the final comparison chose against the last
            allocation.
        pattern: glob over unit ids, matched case-sensitively.

    Raises:
        UsageError: the run has no such cycle, or no unit fits the pattern.
    """
    history = events if isinstance(events, History) else History.of(events)
    allocations = {allocated.cycle: allocated for allocated in history.allocations}
    if cycle is not None and cycle not in allocations:
        have = f"{min(allocations)} to {max(allocations)}" if allocations else "none yet"
        raise UsageError(f"Cycle {cycle} has no allocation: the run has {have}; choose --cycle among those.")
    last = allocations[cycle] if cycle is not None else next(reversed(history.allocations), None)
    decisions = {row["unit"]: row for row in last.decisions} if last is not None else {}
    on = set(history.active if cycle is None else last.active if last is not None else [])
    placed = set(last.active) if last is not None else set()
    probes = set(last.probes) if last is not None else set()
    ranking = history.ranking(cycle)
    rows = []
    for unit, offer in history.units.items():
        if not fnmatchcase(unit, pattern):
            continue
        rank, decided = ranking.get(unit, {}), decisions.get(unit, {})
        decision, reason = decided.get("decision"), decided.get("reason") or rank.get("reason")
        if (unit in on) != (unit in placed):
            # what was shipped is not what the last allocation placed: the comparison before shipping says why
            decision = "add" if unit in on else "drop"
            reason = history.compared.reason if history.compared is not None else reason
        rows.append(
            UnitRow(
                unit=unit,
                stage=offer["stage"],
                site=offer["site"],
                family=offer["family"],
                level=offer["level"],
                cost=offer["cost"],
                state=_state(unit, on, probes, rank),
                on=unit in on,
                utility=rank.get("ema"),
                spread=rank.get("spread"),
                score=rank.get("score"),
                audits=rank.get("audits", 0),
                decision=decision,
                reason=reason or "unmeasured: never trained and audited so far",
            )
        )
    if not rows and history.units:
        example = next(iter(history.units))
        raise UsageError(
            f"No unit fits {pattern!r}: unit names look like {example!r}, and * stands for anything."
        )
    return sorted(rows, key=lambda row: (not row.on, row.utility is None, -(row.utility or 0.0)))


def _state(unit: str, on: set[str], probes: set[str], rank: dict[str, Any]) -> str:
    if unit in on:
        return "active"
    if unit in probes:
        return "probe"
    return "cooling" if rank.get("state") == "cooling" else "idle"


UNIT_COLUMNS = (
    "cycle", "unit", "site", "family", "level", "cost", "delta_dice", "spread", "ema", "iqr", "score",
    "state", "votes", "decision", "reason",
)  # fmt: skip


def unit_table(history: History) -> list[list[Any]]:
    """Rows of `UNIT_COLUMNS`, one for every unit and cycle in which it was ranked or decided about: the
    newest cycle first, and in it first the units that are on, then the others by utility. `delta_dice` is
    that cycle's own audit, the statistics are what was known by its end."""
    table = []
    for cycle in reversed(history.cycles):
        decisions = {row["unit"]: row for row in cycle.allocated.decisions} if cycle.allocated else {}
        known = history.ranking(cycle.number)
        audited = {row["unit"]: row["delta"] for row in cycle.ranked.rows} if cycle.ranked else {}
        on = set(cycle.allocated.active) if cycle.allocated else set()
        empty: dict[str, Any] = {}
        rows = [
            (unit, offer, known.get(unit, empty), decisions.get(unit, empty))
            for unit, offer in history.units.items()
            if unit in audited or unit in decisions
        ]
        rows.sort(key=lambda row: (row[0] not in on, row[2].get("ema") is None, -(row[2].get("ema") or 0.0)))
        for unit, offer, rank, decided in rows:
            cells = (
                *(cycle.number, unit, offer["site"], offer["family"], offer["level"], offer["cost"]),
                *(audited.get(unit), rank.get("spread"), rank.get("ema"), rank.get("iqr"), rank.get("score")),
                *(rank.get("state"), rank.get("votes"), decided.get("decision")),
                decided.get("reason") or rank.get("reason"),
            )
            table.append([_rounded(cell) for cell in cells])
    return table


EVENT_COLUMNS = ("event", "cycle", "units", "dice", "loss", "used", "changes", "seconds", "what")


def event_table(history: History) -> list[list[Any]]:
    """Rows of `EVENT_COLUMNS`, in order: what happened, in numbers and in a sentence."""
    rows = [_started_row(history)]
    for cycle in history.cycles:
        rows.extend(_cycle_rows(cycle))
    if history.compared is not None:
        for name, dice in history.compared.dice.items():
            what = f"{name} on the audit cases"
            if name == history.compared.chosen:
                what += f"; chosen: {history.compared.reason}"
            rows.append({"event": history.compared.kind, "dice": dice, "what": what})
    for scored in history.scored.values():
        what = f"{scored.arm} on the test cases" + (
            "; cannot predict the labels" if scored.dice is None else ""
        )
        rows.append({"event": scored.kind, "dice": scored.dice, "seconds": scored.seconds, "what": what})
    if history.finished is not None:
        end = history.finished
        what = f"{end.status}: {end.reason}"
        rows.append({"event": end.kind, "units": len(end.active), "used": end.used, "what": what})
    return [[_rounded(row.get(column)) for column in EVENT_COLUMNS] for row in rows]


def _started_row(history: History) -> dict[str, Any]:
    started = history.started
    what = (
        f"policy {started.policy}, seed {started.seed}: {len(started.units)} units on offer, at most "
        f"{started.limit} of {started.backbone_parameters} parameters"
    )
    return {"event": started.kind, "units": 0, "used": started.head, "what": what}


def _cycle_rows(cycle: Cycle) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for searched in cycle.searched:
        what = (
            f"{searched.phase}, steps {searched.first_step} to {searched.last_step}, with "
            f"{len(searched.active)} active and {len(searched.probes)} probing units"
        )
        units = len(searched.active) + len(searched.probes)
        rows.append({"event": searched, "units": units, "loss": searched.loss, "what": what})
    if cycle.promised is not None:
        rows.append(
            {"event": cycle.promised, "units": len(cycle.promised.promise), "what": "promise of idle units"}
        )
    if cycle.audited is not None:
        audited = cycle.audited
        what = (
            f"units toggled one by one; hard Dice {audited.hard_dice:.4f}; {audited.patches} patch forwards, "
            f"naive {audited.naive_patches}"
            + ("" if audited.independent else "; not independent of the training scans")
        )
        rows.append({"event": audited, "units": len(audited.rows), "dice": audited.dice_on, "what": what})
    if cycle.ranked is not None:
        moved = sum(row["state"] != row["was"] for row in cycle.ranked.rows)
        rows.append(
            {
                "event": cycle.ranked,
                "units": len(cycle.ranked.rows),
                "changes": moved,
                "what": "changes of state",
            }
        )
    if cycle.allocated is not None:
        allocated = cycle.allocated
        what = f"limit {allocated.limit}, gap to the optimum {allocated.gap:.2%}" + (
            "; final" if allocated.final else ""
        )
        rows.append(
            {
                **{"event": allocated, "units": len(allocated.active), "used": allocated.used},
                **{"changes": allocated.changes, "what": what},
            }
        )
    for row in rows:
        event = row["event"]
        row.update(event=event.kind, cycle=cycle.number, seconds=getattr(event, "seconds", None))
    return rows


def _rounded(value: Any) -> Any:
    """Numbers short enough to be read in a table; the trace has them in full."""
    return round(value, 6) if isinstance(value, float) else value
