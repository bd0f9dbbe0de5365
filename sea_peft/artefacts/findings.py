"""What a run found, in plain words and small tables: the content that the Markdown and the HTML report
share."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable

from sea_peft.artefacts.history import History
from sea_peft.artefacts.view import UnitRow, summarise
from sea_peft.loop.events import Event, Scored

ARMS = {"unadapted": "unadapted", "head_only": "head only", "adapted": "adapted"}
_MOST_UNITS = 12


@dataclasses.dataclass(frozen=True)
class Table:
    """A header and rows of cells that are ready to print."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Findings:
    """The verdict of a run and what it rests on. `helps` is None while there is no score to judge by."""

    helps: bool | None
    headline: str
    verdict: tuple[str, ...]
    dice: Table
    budget: Table
    placement: Table
    placed: Table
    refused: Table
    caveats: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Difference:
    """Adapted minus another arm on the same test cases; `error` is the standard error (None below three
    cases)."""

    mean: float
    error: float | None
    cases: int
    better: int


def findings(events: Iterable[Event] | History) -> Findings:
    """Judge a run by its events; works on an unfinished one too."""
    history = events if isinstance(events, History) else History.of(events)
    rows = summarise(history)
    helps, headline, verdict = _verdict(history)
    measured_off = [row for row in rows if not row.on and (row.utility is not None or row.decision == "refuse")]
    return Findings(
        helps=helps,
        headline=headline,
        verdict=tuple(verdict),
        dice=_dice(history),
        budget=_budget(history),
        placement=_placement(rows),
        placed=unit_cells([row for row in rows if row.on][:_MOST_UNITS]),
        refused=unit_cells(measured_off[:_MOST_UNITS]),
        caveats=tuple(_caveats(history, rows)),
    )


def _verdict(history: History) -> tuple[bool | None, str, list[str]]:
    adapted = history.scored.get("adapted")
    said = []
    if history.compared is not None:
        dice = ", ".join(f"{name} {dice:.3f}" for name, dice in history.compared.dice.items())
        said.append(f"On the audit cases: {dice}; chosen: {history.compared.chosen} ({history.compared.reason}).")
    if history.finished is None:
        return (
            None,
            "The run has not finished: nothing can be said yet about whether the adapter helps.",
            said,
        )
    if adapted is None or adapted.dice is None:
        return None, "The adapter was not scored on test cases, so whether it helps is not known.", said
    rivals = {arm: history.scored[arm] for arm in ("unadapted", "head_only") if arm in history.scored}
    lost, unsure = [], []
    for arm, rival in rivals.items():
        name = "the unadapted backbone" if arm == "unadapted" else "training the head alone"
        if rival.dice is None:
            said.append(f"{name[0].upper()}{name[1:]} cannot predict these labels: nothing to compare with.")
            continue
        difference = _difference(adapted, rival)
        said.append(f"Against {name} ({rival.dice:.3f}): {_in_words(difference)}.")
        worse = [
            f"{label} ({dice:.3f} → {adapted.per_label[label]:.3f})"
            for label, dice in rival.per_label.items()
            if adapted.per_label.get(label, dice) < dice - 0.005
        ]
        if worse:
            said.append(f"Worse than {name} on {', '.join(worse)}.")
        if difference.mean <= 0:
            lost.append(name)
        elif difference.error is None or difference.mean <= 2 * difference.error:
            unsure.append(name)
    scores = ", ".join(f"{rival.dice:.3f} {ARMS[arm]}" for arm, rival in rivals.items() if rival.dice is not None)
    against = f"mean Dice {adapted.dice:.3f} on {count(len(adapted.per_case), 'test case')}" + (
        f", against {scores}" if scores else ""
    )
    if lost:
        return False, f"The adapter does not win over {' and '.join(lost)}: {against}.", said
    if unsure:
        return (
            None,
            f"The adapter scores higher, but not clearly over {' and '.join(unsure)}: {against}.",
            said,
        )
    if not rivals:
        return None, f"The adapter was scored without anything to compare it with: {against}.", said
    return True, f"The adapter helps: {against}.", said


def _difference(adapted: Scored, rival: Scored) -> _Difference:
    """Case by case over the labels that both were scored on; a label that the rival has no output for counts
    as 0."""
    pairs = []
    for case, ours in sorted(adapted.per_case.items()):
        theirs = rival.per_case.get(case, {})
        gains = [
            dice - theirs.get(label, 0.0)
            for label, dice in ours.items()
            if label in theirs or label not in rival.per_label
        ]
        if gains:
            pairs.append(statistics.fmean(gains))
    assert adapted.dice is not None
    assert rival.dice is not None
    error = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) >= 3 else None
    return _Difference(adapted.dice - rival.dice, error, len(pairs), sum(pair > 0 for pair in pairs))


def _in_words(difference: _Difference) -> str:
    amount = f"{abs(difference.mean) * 100:.1f} Dice points {'higher' if difference.mean > 0 else 'lower'}"
    if difference.mean == 0:
        amount = "exactly the same"
    cases = f"better in {difference.better} of {count(difference.cases, 'test case')}"
    if difference.error is None:
        return f"{amount} ({cases}; too few to tell from chance)"
    chance = "" if abs(difference.mean) > 2 * difference.error else ", which chance can explain"
    return f"{amount} (± {difference.error * 100:.1f} standard error; {cases}){chance}"


def _dice(history: History) -> Table:
    arms = [arm for arm in ARMS if arm in history.scored]
    labels = list(dict.fromkeys(label for arm in arms for label in history.scored[arm].per_label))
    rows = [("mean", *(_number(history.scored[arm].dice) for arm in arms))]
    rows += [(label, *(_number(history.scored[arm].per_label.get(label)) for arm in arms)) for label in labels]
    return Table(("label", *(ARMS[arm] for arm in arms)), tuple(rows) if arms else ())


def _budget(history: History) -> Table:
    started, last = history.started, next(reversed(history.allocations), None)
    used = history.finished.used if history.finished is not None else last.used if last is not None else 0
    share = used / started.backbone_parameters
    rows = (
        ("limit", f"{started.limit:,}", f"{started.limit / started.backbone_parameters:.3%} of the backbone"),
        ("used", f"{used:,}", f"{share:.3%} of the backbone, {used / started.limit:.1%} of the limit"),
        ("by the head", f"{min(started.head, used):,}", "the last layer, which names the labels"),
        (
            "by units",
            f"{history.cost(history.active):,}",
            f"{len(history.active)} of {len(started.units)} units on offer",
        ),
        ("backbone", f"{started.backbone_parameters:,}", "frozen, none of them changed"),
    )
    return Table(("", "parameters", ""), rows)


def _placement(rows: list[UnitRow]) -> Table:
    on = [row for row in rows if row.on]
    families = sorted({row.family for row in on})
    stages: list[str] = [
        stage for stage in ("stem", "encoder", "bottleneck", "decoder", "head") if stage in {r.stage for r in rows}
    ]
    stages += sorted({row.stage for row in rows} - set(stages))

    def cell(some: list[UnitRow]) -> str:
        return f"{len(some)} ({sum(row.cost for row in some):,})" if some else "–"

    table = []
    for stage in stages:
        here = [row for row in on if row.stage == stage]
        table.append((stage, *(cell([row for row in here if row.family == f]) for f in families), cell(here)))
    table.append(("all", *(cell([row for row in on if row.family == f]) for f in families), cell(on)))
    return Table(("stage", *families, "all"), tuple(table))


def unit_cells(rows: list[UnitRow]) -> Table:
    """Unit rows as cells: utility and spread in Dice points."""
    cells = tuple(
        (
            row.unit,
            row.stage,
            f"{row.cost:,}",
            "unmeasured" if row.utility is None else f"{row.utility * 100:+.2f}",
            "–" if row.spread is None else f"± {row.spread * 100:.2f}",
            row.state,
            row.decision or "–",
            row.reason,
        )
        for row in rows
    )
    return Table(
        ("unit", "stage", "parameters", "utility (Dice points)", "spread", "state", "decision", "reason"),
        cells,
    )


def _caveats(history: History, rows: list[UnitRow]) -> list[str]:
    split = {role: len(cases) for role, cases in history.started.split.items()}
    support, audit, test = (split.get(role, 0) for role in ("support", "audit", "test"))
    shots = support + audit
    scans = count(shots, "labelled scan")
    said = []
    if audit:
        said.append(f"{scans}: {support} trained on, {audit} held out to choose by; the final fit used all of them.")
    else:
        said.append(f"{scans}, no case held out to choose by.")
    if history.independent is False:
        said.append(
            "Utilities were measured on regions of a scan that was also trained on: they are not "
            "independent, and look better than they are."
        )
    elif history.independent and audit == 1:
        said.append("All utilities rest on 1 audit case: what helps there may not help on the next patient.")
    if history.finished is not None and history.finished.used > history.started.limit:
        said.append("This policy trains more parameters than the budget allows: it is there to be compared with.")
    unadapted, adapted = (history.scored.get(arm) for arm in ("unadapted", "adapted"))
    if unadapted is not None and unadapted.dice is not None and adapted is not None:
        new = [label for label in adapted.per_label if label not in unadapted.per_label]
        if new:
            said.append(f"The unadapted backbone does not know {', '.join(new)}: in its mean Dice that counts as 0.")
    if test < 10:
        said.append(f"{count(test, 'test case')}: too few for a precise Dice.")
    unmeasured = [row for row in rows if row.utility is None]
    if unmeasured and history.independent is not None:
        blind = sum(row.on for row in unmeasured)
        said.append(
            f"{len(unmeasured)} of {len(rows)} units were never measured"
            + (f"; {blind} of them are on all the same, for the reasons given." if blind else ".")
        )
    if history.independent is not None:
        said.append("A utility tells what a unit does in this jointly trained network, not what it would do alone.")
    said += [
        "One training seed: another one can place other units.",
        "Research software, not a medical device: a qualified person must check every mask.",
    ]
    return said


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def count(n: int, noun: str) -> str:
    """`n` and its noun, in the plural where there is not exactly one."""
    return f"{n} {noun}" + ("" if n == 1 else "s")
