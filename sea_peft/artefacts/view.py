"""The allocation as rows of plain data: `seapeft inspect`, the report and the MLflow tables render them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from sea_peft.artefacts.history import History
from sea_peft.errors import UsageError
from sea_peft.loop.events import (
    Allocated,
    Audited,
    Compared,
    Event,
    Folded,
    Ranked,
    Recommended,
    RunFinished,
    RunStarted,
    SaliencyMeasured,
    Scored,
    Searched,
)
from sea_peft.loop.rows import Decision, Ranking


@dataclasses.dataclass(frozen=True)
class UnitRow:
    """One unit at one cycle. `on`: placed. `state`: active when it is on,
    probe while it is tried, else idle or cooling. `utility` (EMA of ΔDice), `standard_error` and `score` are None
    while it is unmeasured; `decision` is None when nothing was decided about it."""

    unit: str
    stage: str
    site: str
    family: str
    level: int
    cost: int
    state: str
    on: bool
    utility: float | None
    standard_error: float | None
    score: float | None
    audits: int
    decision: str | None
    reason: str


def summarise(events: Iterable[Event] | History, cycle: int | None = None, pattern: str = "*") -> list[UnitRow]:
    """What is known of each unit at the end of `cycle`: units that are on first, then by utility, unmeasured
    ones last.

    Args:
        events: a trace, or its history.
        cycle: a cycle with an allocation; None: the end of the run (or the last allocation while it runs).
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
    decisions = {row.unit: row for row in last.decisions} if last is not None else {}
    on = set(history.active if cycle is None else last.active if last is not None else [])
    probes = set(last.probes) if last is not None else set()
    ranking = history.ranking(cycle)
    rows = []
    for unit, candidate in history.units.items():
        if not fnmatchcase(unit, pattern):
            continue
        rank, decided = ranking.get(unit), decisions.get(unit)
        rows.append(
            UnitRow(
                unit=unit,
                stage=candidate.stage,
                site=candidate.site,
                family=candidate.family,
                level=candidate.level,
                cost=candidate.cost,
                state=_state(unit, on, probes, rank),
                on=unit in on,
                utility=rank.ema if rank else None,
                standard_error=rank.standard_error if rank else None,
                score=rank.score if rank else None,
                audits=rank.audits if rank else 0,
                decision=decided.decision if decided else None,
                reason=_reason(rank, decided) or "unmeasured: never trained and audited so far",
            )
        )
    if not rows and history.units:
        example = next(iter(history.units))
        raise UsageError(f"No unit fits {pattern!r}: unit names look like {example!r}, and * stands for anything.")
    return sorted(rows, key=lambda row: (not row.on, row.utility is None, -(row.utility or 0.0)))


def _reason(rank: Ranking | None, decided: Decision | None) -> str | None:
    """Why a unit is where it is: the decision's reason, else the ranking's."""
    return (decided.reason if decided else None) or (rank.reason if rank else None)


def _state(unit: str, on: set[str], probes: set[str], rank: Ranking | None) -> str:
    if unit in on:
        return "active"
    if unit in probes:
        return "probe"
    return "cooling" if rank and rank.state == "cooling" else "idle"


UNIT_COLUMNS = (
    "unit", "decision", "utility", "±", "cost", "reason", "cycle", "state", "site", "family", "level", "delta_dice", "score", "iqr", "votes",
)  # fmt: skip
FINAL = "final"


def unit_table(history: History) -> list[list[Any]]:
    """Rows of `UNIT_COLUMNS`, one for every unit and cycle in which it was ranked or decided about: the
    final choice first, then the newest cycle, and in it first the units that are on, then the others by utility. `utility` (EMA of ΔDice) and
    `±` (its standard error) are in Dice; `delta_dice` is that cycle's own audit, the statistics are what was known by its end."""
    table = []
    for cycle in reversed(history.cycles):
        decisions = {row.unit: row for row in cycle.allocated.decisions} if cycle.allocated else {}
        known = history.ranking(cycle.number)
        audited = {row.unit: row.delta for row in cycle.ranked.rows} if cycle.ranked else {}
        on = set(cycle.allocated.active) if cycle.allocated else set()
        name = FINAL if cycle.allocated is not None and cycle.allocated.final else cycle.number
        rows = [
            (unit, candidate, known.get(unit), decisions.get(unit))
            for unit, candidate in history.units.items()
            if unit in audited or unit in decisions
        ]
        utility = {unit: rank.ema for unit, rank in known.items()}
        rows.sort(key=lambda row: (row[0] not in on, utility.get(row[0]) is None, -(utility.get(row[0]) or 0.0)))
        for unit, candidate, rank, decided in rows:
            cells = (
                *(
                    unit,
                    decided.decision if decided else None,
                    rank.ema if rank else None,
                    rank.standard_error if rank else None,
                ),
                *(candidate.cost, _reason(rank, decided), name, rank.state if rank else None),
                *(candidate.site, candidate.family, candidate.level, audited.get(unit)),
                *((rank.score, rank.iqr, rank.votes) if rank else (None,) * 3),
            )
            table.append([_rounded(cell) for cell in cells])
    return table


_SCORED_ON = {
    "test": "the test cases",
    "cv": "the shots, each left out in turn",
    "held_out": "what was held out while searching",
}
EVENT_COLUMNS = ("event", "cycle", "units", "dice", "loss", "used", "changes", "seconds", "what")


def event_table(history: History) -> list[list[Any]]:
    """Rows of `EVENT_COLUMNS`, in order: what happened, in numbers and in a sentence."""
    rows = [
        {"event": event.kind, "cycle": FINAL if is_final(event) else getattr(event, "cycle", None), **row}
        for event in history.events
        for row in _event_rows(event)
    ]
    return [[_rounded(row.get(column)) for column in EVENT_COLUMNS] for row in rows]


def is_final(event: Event) -> bool:
    """Whether an event belongs to the choice after the last cycle."""
    return (isinstance(event, Allocated) and event.final) or (isinstance(event, Searched) and event.phase == "refit")


def _event_rows(event: Event) -> list[dict[str, Any]]:
    row: dict[str, Any] = {"seconds": getattr(event, "seconds", None)}
    if isinstance(event, RunStarted):
        row |= {"units": 0, "used": event.head}
        row["what"] = (
            f"policy {event.policy}, seed {event.seed}: {len(event.units)} units on offer, at most "
            f"{event.limit} of {event.backbone_parameters} parameters"
        )
    elif isinstance(event, Searched):
        row |= {"units": len(event.active) + len(event.probes), "loss": event.loss}
        row["what"] = (
            f"{event.phase}, steps {event.first_step} to {event.last_step}, with {len(event.active)} active and "
            f"{len(event.probes)} probing units"
        )
    elif isinstance(event, SaliencyMeasured):
        row |= {"units": len(event.saliency), "what": "saliency of idle units"}
    elif isinstance(event, Audited):
        row |= {"units": len(event.rows), "dice": event.dice_on}
        row["what"] = (
            f"units toggled one by one; hard Dice {event.hard_dice:.4f}; {event.patches} patch forwards, naive "
            f"{event.naive_patches}" + ("" if event.independent else "; not independent of the training scans")
        )
    elif isinstance(event, Ranked):
        moved = sum(rank.state != rank.was for rank in event.rows)
        row |= {"units": len(event.rows), "changes": moved, "what": "changes of state"}
    elif isinstance(event, Allocated):
        row |= {"units": len(event.active), "used": event.used, "changes": event.changes}
        row["what"] = f"and {len(event.probes)} probes; limit {event.limit}"
        row["what"] += "; final" if event.final else ""
    elif isinstance(event, Compared):
        return [
            {
                "dice": dice,
                "what": f"{name} on the audit cases" + (f"; chosen: {event.reason}" * (name == event.chosen)),
            }
            for name, dice in event.dice.items()
        ]
    elif isinstance(event, Scored):
        row |= {"dice": event.dice, "what": f"{event.arm} on {_SCORED_ON[event.on]}"}
        row["what"] += "; cannot predict the labels" if event.dice is None else ""
    elif isinstance(event, Folded):
        row |= {
            "units": len(event.active),
            "used": event.used,
            "what": f"without shot {event.fold + 1}, scored on it",
        }
    elif isinstance(event, Recommended):
        row |= {"what": f"predictions use the {event.network} network: {event.evidence}"}
    elif isinstance(event, RunFinished):
        row |= {"units": len(event.active), "used": event.used, "what": f"{event.status}: {event.reason}"}
    return [row]


def _rounded(value: Any) -> Any:
    """Numbers short enough to be read in a table; the trace has them in full."""
    return round(value, 6) if isinstance(value, float) else value
