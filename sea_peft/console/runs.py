"""What adapt, inspect and the dry run show."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from sea_peft.console.tables import facts, table

if TYPE_CHECKING:
    from sea_peft.artefacts.findings import Findings
    from sea_peft.artefacts.run_folder import Result
    from sea_peft.artefacts.view import UnitRow
    from sea_peft.jobs.evaluate import Evaluation

_VERDICTS = {True: "bold green", False: "bold red", None: "bold yellow"}
REFUSED_SHOWN = 12


def headline(found: Findings) -> Text:
    """The verdict in one honest sentence."""
    return Text("\n" + found.headline, style=_VERDICTS[found.helps])


def dice_table(found: Findings) -> Table:
    """Dice of the three arms, mean and per label."""
    return table("\nDice on the test cases", found.dice.header, found.dice.rows, right=found.dice.header[1:])


def run_facts(result: Result) -> Table:
    """Budget, units, time and place of a finished run."""
    budget, seconds = result.budget, result.seconds
    share = budget.used / budget.limit if budget.limit else 0.0
    tests = f"{result.test_cases} test case{'' if result.test_cases == 1 else 's'}"
    return facts(
        [
            ("budget", f"{budget.used:,} of {budget.limit:,} parameters ({share:.1%} of the limit)"),
            ("", f"{budget.fraction:.2%} of the backbone's {budget.backbone_parameters:,}"),
            ("  head", f"{budget.head:,} of these"),
            (
                "  units",
                f"{budget.used - budget.head:,} in {result.units.active} of {result.units.offered} units on offer",
            ),
            (
                "shots",
                f"{result.shots} ({result.support_cases} trained on, {result.audit_cases} audited on), {tests}",
            ),
            (
                "time",
                f"{clock(seconds.total)} (training {clock(seconds.train)}, audits {clock(seconds.audit)})",
            ),
            ("memory", f"{result.peak_memory_bytes / 2**30:.1f} GiB at most, {result.device}"),
            ("run", result.run),
        ]
    )


def next_steps(run: str) -> Table:
    """What can be done with a run."""
    where = shlex.quote(run)
    return facts(
        [
            (f"seapeft inspect {where}", "why these units"),
            (f"seapeft report {where}", "the same as a page"),
            (f"seapeft predict {where} SCANS --out masks", "masks"),
        ],
        title="\nNext",
    )


def unit_table(title: str, rows: Sequence[UnitRow]) -> Table:
    """Units with their reasons below their names, so that both have room. Utility and spread in Dice points."""
    return table(
        title,
        ("unit", "parameters", "utility", "state"),
        [(_unit(row), row.cost, _utility(row), row.decision or row.state) for row in rows],
        right=("parameters", "utility"),
    )


def _unit(row: UnitRow) -> Text:
    return Text.assemble((row.unit, "bold" if row.on else ""), (f"\n  {row.stage}: {row.reason}", "dim"))


def _utility(row: UnitRow) -> str | None:
    if row.utility is None:
        return None
    return f"{row.utility * 100:+.2f}" + ("" if row.spread is None else f" ± {row.spread * 100:.2f}")


def plan_facts(plan: dict[str, Any]) -> list[Table]:
    """What --dry-run prints."""
    data, budget, steps = plan["data"], plan["budget"], plan["steps"]
    size = "×".join(map(str, plan["patch"]))
    cases = f"{data['support']} to train on, {data['audit']} to audit on, {data['test']} to test on"
    return [
        facts(
            [
                ("data", f"{data['name']} ({data['layout']})"),
                ("labels", ", ".join(data["labels"])),
                ("channels", ", ".join(data["channels"])),
                ("cases", cases),
                ("backbone", f"{plan['backbone']['weights']}, {plan['backbone']['parameters']:,} parameters"),
                (
                    "budget",
                    f"{budget['limit']:,} parameters ({budget['limit'] / plan['backbone']['parameters']:.2%})",
                ),
                ("  head", f"{budget['head']:,} of these, {budget['capacity']:,} left for units"),
                ("  units", f"{plan['units']['offered']} on offer, at most {plan['units']['fitting']} fit"),
                (
                    "steps",
                    f"{steps['warmup']} warm-up, {steps['search']} in {steps['cycles']} cycles, {steps['refit']} refit",
                ),
                ("patch", f"{size} voxels of {'×'.join(f'{v:g}' for v in plan['spacing'])} mm"),
                ("memory", f"about {plan['memory_bytes'] / 2**30:.1f} GiB, {plan['device']}"),
            ],
            title="Nothing was trained; this is what would be",
        )
    ]


def clock(seconds: float) -> str:
    """`8 s`, `2 min 05 s`, `1 h 12 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def unit_tables(rows: Sequence[UnitRow], everything: bool) -> list[Table | Text]:
    """What is on, and what is not: all of it, or the first that were measured or refused."""
    on, off = [row for row in rows if row.on], [row for row in rows if not row.on]
    judged = (
        off
        if everything
        else [r for r in off if r.utility is not None or r.decision == "refuse"][:REFUSED_SHOWN]
    )
    made: list[Table | Text] = [unit_table("\nOn: utility in Dice points", on)] if on else []
    made += [unit_table("\nOff", judged)] if judged else []
    if len(judged) < len(off):
        unmeasured = sum(row.utility is None for row in off)
        made.append(
            Text(
                f"{len(off) - len(judged)} more units are off ({unmeasured} never measured); --unit '*' shows them."
            )
        )
    return made


def evaluation_tables(scores: Evaluation) -> list[Table]:
    """Every case and label, then the means."""
    measures = ("dice", "nsd", "hd95", "sensitivity", "specificity", "precision")
    names = ("Dice", "NSD", "HD95 mm", "sens.", "spec.", "prec.")
    rows = [
        (case, label, *(_score(getattr(of_label, m), m) for m in measures), scores.roles.get(case))
        for case, by_label in scores.cases.items()
        for label, of_label in by_label.items()
    ]
    roles = ("role",) if scores.roles else ()
    cases = table("", ("case", "label", *names, *roles), [r[: 8 + len(roles)] for r in rows], right=names)
    means = [(label, *(_score(scores.mean(label, m), m) for m in measures)) for label in scores.labels]
    means.append(("mean", *(_score(scores.overall(m), m) for m in measures)))
    title = f"\nMean over {len(scores.cases)} cases of {scores.data}"
    return [cases, table(title, ("label", *names), means, right=names)]


def unfinished(out: Path | None, runs: Path, since: float) -> Path | None:
    """The run folder that was begun `since` (seconds of the epoch) and has no result."""
    found = [out] if out is not None else list(runs.glob("*/")) if runs.is_dir() else []
    begun = [p for p in found if (p / "trace.jsonl").is_file() and not (p / "result.json").exists()]
    return max(
        (p for p in begun if p.stat().st_mtime >= since - 1), key=lambda p: p.stat().st_mtime, default=None
    )


def _score(value: float, measure: str) -> str | None:
    if math.isnan(value):
        return None
    return f"{value:.1f}" if measure == "hd95" else f"{value:.3f}"
