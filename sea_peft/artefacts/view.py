"""The allocation as rows of plain data, for `seapeft inspect`, the report and the MLflow tables."""

import dataclasses
from collections.abc import Iterable
from fnmatch import fnmatchcase

from sea_peft.artefacts.history import History
from sea_peft.artefacts.names import in_short
from sea_peft.errors import UsageError
from sea_peft.loop.events import Allocated, Event, Searched
from sea_peft.loop.rows import Decision, Ranking


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitRow:
    """One unit at one cycle.

    `state`: active if it is on, probe while on trial, else idle or cooling. `utility` (EMA of
    ΔDice), `standard_error` and `score` are None while unmeasured; `decision` is None if nothing
    was decided about it.
    """

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


def summarise(
    events: Iterable[Event] | History, cycle: int | None = None, pattern: str = "*"
) -> list[UnitRow]:
    """The units at the end of `cycle`: those that are on first, then by utility, unmeasured ones
    last.

    Args:
        events: a trace, or its history.
        cycle: a cycle with an allocation; None for the end of the run (or the last allocation of an
            unfinished one).
        pattern: glob over unit ids and their short forms, case-sensitive.

    Raises:
        UsageError: the run has no such cycle, or no unit fits the pattern.
    """
    history = events if isinstance(events, History) else History(events)
    allocations = {allocated.cycle: allocated for allocated in history.allocations}
    if cycle is not None and cycle not in allocations:
        have = f"{min(allocations)} to {max(allocations)}" if allocations else "none yet"
        raise UsageError(
            f"Cycle {cycle} has no allocation: the run has {have}; choose a cycle among those.",
            "cycle",
        )
    last = allocations[cycle] if cycle is not None else next(reversed(history.allocations), None)
    decisions = {row.unit: row for row in last.decisions} if last is not None else {}
    on = set(history.active if cycle is None else last.active if last is not None else [])
    probes = set(last.probes) if last is not None else set()
    ranking = history.ranking(cycle)
    rows = []
    for unit, candidate in history.units.items():
        if not (fnmatchcase(unit, pattern) or fnmatchcase(in_short(unit, history.names), pattern)):
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
        short = in_short(example, history.names)
        raise UsageError(
            f"No unit fits {pattern!r}: units are called {short!r} or {example!r}, and * stands for"
            " anything."
        )
    return sorted(rows, key=lambda row: (not row.on, row.utility is None, -(row.utility or 0.0)))


def _reason(rank: Ranking | None, decided: Decision | None) -> str | None:
    """The reason for a unit's state: the decision's, else the ranking's."""
    return (decided.reason if decided else None) or (rank.reason if rank else None)


def _state(unit: str, on: set[str], probes: set[str], rank: Ranking | None) -> str:
    if unit in on:
        return "active"
    if unit in probes:
        return "probe"
    return "cooling" if rank and rank.state == "cooling" else "idle"


UNIT_COLUMNS = (
    "unit",
    "decision",
    "utility",
    "±",
    "cost",
    "reason",
    "cycle",
    "state",
    "site",
    "family",
    "level",
    "delta_dice",
    "score",
    "iqr",
    "votes",
)
FINAL = "final"


def unit_table(history: History) -> list[list[object]]:
    """Rows of `UNIT_COLUMNS`, one per unit and cycle in which it was ranked or decided about.

    The final choice comes first, then the newest cycle; within each, units that are on, then the
    others by utility. `utility` (EMA of ΔDice) and `±` (its standard error) are in Dice.
    `delta_dice` is of that cycle's own audit; the other statistics are those at its end.
    """
    table: list[list[object]] = []
    for cycle in reversed(history.cycles):
        if cycle.allocated is None:
            continue
        ranking = history.ranking(cycle.number)
        audited = {row.unit: row.delta for row in cycle.ranked.rows} if cycle.ranked else {}
        name = FINAL if cycle.allocated.final else cycle.number
        for row in summarise(history, cycle.number):
            if row.decision is None and row.unit not in audited:
                continue
            rank = ranking.get(row.unit)
            cells = (
                *(
                    row.unit,
                    row.decision,
                    row.utility,
                    row.standard_error,
                    row.cost,
                    row.reason,
                    name,
                    row.state,
                ),
                *(row.site, row.family, row.level, audited.get(row.unit), row.score),
                *((rank.iqr, rank.votes) if rank else (None, None)),
            )
            table.append([round(cell, 6) if isinstance(cell, float) else cell for cell in cells])
    return table


def is_final(event: Event) -> bool:
    """Whether an event belongs to the choice after the last cycle."""
    return (isinstance(event, Allocated) and event.final) or (
        isinstance(event, Searched) and event.phase == "refit"
    )
