"""The tables of a run's findings, as cells ready to print."""

import dataclasses

from sea_peft.artefacts.history import History
from sea_peft.artefacts.known_labels import known_labels
from sea_peft.artefacts.view import UnitRow

ARMS = {"unadapted": "unadapted", "head_only": "head only", "adapted": "adapted"}
"""Arm → its name in tables and sentences."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A header, and rows of cells ready to print."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def dice_table(history: History) -> Table:
    """Scores by label and arm."""
    scored = history.scored or history.held_out
    arms = [arm for arm in ARMS if arm in scored]
    labels = list(dict.fromkeys(label for arm in arms for label in scored[arm].per_label))
    rows = [("mean", *(_number(scored[arm].dice) for arm in arms))]
    rows += [
        (label, *(_number(scored[arm].per_label.get(label)) for arm in arms)) for label in labels
    ]
    return Table(("label", *(ARMS[arm] for arm in arms)), tuple(rows) if arms else ())


def known_table(history: History) -> Table:
    """The labels that the network knew, before and after others were added."""
    known = known_labels(history.scored, history.held_out)
    rows = [
        (
            label.name,
            _number(label.before) if label.drawn else "–",
            _number(label.after),
            "what is drawn" if label.drawn else "the unadapted network's masks",
        )
        for label in known
    ]
    return Table(("label", "before", "after", "against"), tuple(rows))


def budget_table(history: History) -> Table:
    """What was spent."""
    started, last = history.started, next(reversed(history.allocations), None)
    used = (
        history.finished.used
        if history.finished is not None
        else last.used
        if last is not None
        else 0
    )
    share = used / started.backbone_parameters
    units = f"{len(history.active)} of {len(started.units)} units on offer"
    rows = (
        (
            "limit",
            f"{started.limit:,}",
            f"{started.limit / started.backbone_parameters:.3%} of the backbone",
        ),
        (
            "used",
            f"{used:,}",
            f"{share:.3%} of the backbone, {used / started.limit:.1%} of the limit",
        ),
        ("by the head", f"{min(started.head, used):,}", "the last layer, which names the labels"),
        ("by units", f"{history.cost(history.active):,}", units),
        ("backbone", f"{started.backbone_parameters:,}", "frozen, none of them changed"),
    )
    return Table(("", started.cost_kind.many, ""), rows)


def placement_table(rows: list[UnitRow]) -> Table:
    """How many units are on, by stage and family, and their costs."""
    on = [row for row in rows if row.on]
    families = sorted({row.family for row in on})
    there = {row.stage for row in rows}
    stages: list[str] = [
        stage for stage in ("stem", "encoder", "bottleneck", "decoder", "head") if stage in there
    ]
    stages += sorted(there.difference(stages))

    def cell(some: list[UnitRow]) -> str:
        return f"{len(some)} ({sum(row.cost for row in some):,})" if some else "–"

    table = []
    for stage in stages:
        here = [row for row in on if row.stage == stage]
        table.append(
            (stage, *(cell([row for row in here if row.family == f]) for f in families), cell(here))
        )
    table.append(
        ("all", *(cell([row for row in on if row.family == f]) for f in families), cell(on))
    )
    return Table(("stage", *families, "all"), tuple(table))


def unit_cells(history: History, rows: list[UnitRow]) -> Table:
    """Unit rows of a run as cells: utility and standard error in Dice points."""
    cells = []
    for row in rows:
        utility = "unmeasured" if row.utility is None else f"{row.utility * 100:+.2f}"
        error = "–" if row.standard_error is None else f"± {row.standard_error * 100:.2f}"
        decision = row.decision or "–"
        cells.append(
            (row.unit, row.stage, f"{row.cost:,}", utility, error, row.state, decision, row.reason)
        )
    many = history.started.cost_kind.many
    header = (
        "unit",
        "stage",
        many,
        "utility (Dice points)",
        "standard error",
        "state",
        "decision",
        "reason",
    )
    return Table(header, tuple(cells))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
