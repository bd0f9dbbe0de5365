"""The results of adapt, inspect and the dry run, as shown in a terminal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sea_peft.artefacts.known_labels import TITLE
from sea_peft.artefacts.names import in_short
from sea_peft.artefacts.words import visible
from sea_peft.console.tables import facts, state, table, times
from sea_peft.data.wording import count

if TYPE_CHECKING:
    from sea_peft.artefacts.commands import Commands
    from sea_peft.artefacts.findings import Findings
    from sea_peft.artefacts.result import Result
    from sea_peft.artefacts.view import UnitRow
    from sea_peft.jobs.evaluate import Evaluation
    from sea_peft.jobs.predict import CaseStatus
    from sea_peft.jobs.replay import Replayed
    from sea_peft.jobs.suggest import Suggestions

_VERDICTS = {True: "bold green", False: "bold red", None: "bold yellow"}
REFUSED_SHOWN = 12


def headline(found: Findings) -> Text:
    """The verdict in one honest sentence."""
    return Text(visible(found.headline), style=_VERDICTS[found.helps])


def dice_table(found: Findings) -> Table:
    """Dice of the three arms, mean and per label, on the scans that they were scored on."""
    return table(found.scored_on, found.dice.header, found.dice.rows, right=found.dice.header[1:])


def known_table(found: Findings) -> Table:
    """What adding labels cost those that the network knew."""
    return table(TITLE, found.known.header, found.known.rows, right=("before", "after"))


def run_facts(result: Result) -> Table:
    """Budget, units, time and place of a finished run."""
    budget, seconds = result.budget, result.seconds
    share = f"{budget.fraction:.2%} of the backbone's {budget.backbone_parameters:,}"
    units = f"{result.units.active} of {result.units.offered} units on offer"
    cases = f"{result.support_cases} trained on, {result.audit_cases} audited on"
    tests = {
        "cases": count(result.test_cases, "test case"),
        "cv": "each left out in turn",
        "none": "no test case",
    }[result.test]
    rules = ", ".join(f"{label} {rule}" for label, rule in result.keep.items())
    return facts(
        [
            ("budget", f"{budget.used:,} of {budget.limit:,} {budget.cost_kind.many}, {share}"),
            ("  head", f"{budget.head:,} of these"),
            ("  units", f"{budget.used - budget.head:,} of these, in {units}"),
            ("shots", f"{result.shots} ({cases}); {tests}"),
            *(
                [("predict keeps", f"{rules} of masks; the Dice above is without that")]
                if rules
                else []
            ),
            (
                "time",
                (
                    f"{clock(seconds.total)} (training {clock(seconds.train)}, audits"
                    f" {clock(seconds.audit)})"
                ),
            ),
            ("memory", f"{result.peak_memory_bytes / 2**30:.1f} GiB at most, on {result.device}"),
            ("run", result.run),
        ]
    )


def advice(found: Findings) -> Group:
    """What to do about the result. Each command is on a line of its own, which no terminal breaks
    when it is copied.
    """
    lines: list[Text] = []
    for each in found.advice:
        lines += [Text(each.text), _command(f"  {each.command}")]
    return Group(*lines)


def next_steps(commands: Commands) -> Group:
    """The commands to continue from a run."""
    steps = [("why", commands.inspect), ("page", commands.report), ("masks", commands.predict())]
    return Group(
        Text("Next", style="bold"), *(_command(f"{name:<5}  {command}") for name, command in steps)
    )


def _command(line: str) -> Text:
    return Text(line, no_wrap=True, overflow="ignore")


class UnitLines:
    """Units, one per line, with the reason below: once if it is the same for several. Utility and
    standard error are in Dice points.

    `names`: short names of sites; empty for full module paths. `costs`: what the costs count. A
    unit whose name leaves no room for its numbers gets a line of its own.
    """

    def __init__(
        self, title: str, rows: Sequence[UnitRow], names: Mapping[str, str], costs: str
    ) -> None:
        self._title, self._rows, self._names, self._costs = title, rows, names, costs

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = [
            (
                visible(in_short(row.unit, self._names)),
                visible(row.stage),
                f"{row.cost:,}",
                _utility(row),
                row.decision or row.state,
            )
            for row in self._rows
        ]
        lines = [("unit", "stage", self._costs, "utility", "decision"), *cells]
        widths = [max(len(line[column]) for line in lines) for column in range(5)]
        wide = sum(widths) + 8 <= options.max_width  # without room, the stage is dropped first
        own_line = sum(widths) - widths[1] + 6 > options.max_width

        def line(values: Sequence[str], style: str) -> Text:
            unit, stage, cost, utility, state = (
                f"{v:{'>' if i in (2, 3) else ''}{w}}"
                for i, (v, w) in enumerate(zip(values, widths, strict=True))
            )
            if own_line:
                return Text(
                    f"{values[0]}\n" + "  ".join(("    " + cost, utility, state)).rstrip(),
                    style=style,
                )
            shown = (unit, stage, cost, utility, state) if wide else (unit, cost, utility, state)
            return Text("  ".join(shown).rstrip(), style=style, no_wrap=True)

        yield Text(self._title, style="bold")
        yield line(lines[0], "dim")
        for reason, group in itertools.groupby(
            zip(self._rows, cells, strict=True), key=lambda pair: pair[0].reason
        ):
            members = list(group)
            for row, values in members:
                yield line(values, "bold" if row.on else "")
            these = f"these {len(members)}: " if len(members) > 1 else ""
            yield Padding(
                Text(these + visible(in_short(reason, self._names)), style="dim"), (0, 0, 0, 4)
            )


def _utility(row: UnitRow) -> str:
    if row.utility is None:
        return "–"
    return f"{row.utility * 100:+.2f}" + (
        "" if row.standard_error is None else f" ± {row.standard_error * 100:.2f}"
    )


def plan_facts(plan: dict[str, Any]) -> Table:
    """The output of --dry-run."""
    data, budget, steps, backbone, units = (
        plan[part] for part in ("data", "budget", "steps", "backbone", "units")
    )
    memory, disk = (f"{plan[what] / 2**30:.1f} GiB" for what in ("memory_bytes", "disk_bytes"))
    tests = {
        "cases": f"{data['test']} to test on",
        "cv": "each left out in turn",
        "none": "none to test on",
    }
    pairs = {
        "data": f"{data['name']} ({data['layout']})",
        "labels": ", ".join(data["labels"]),
        "channels": ", ".join(data["channels"]),
        "cases": (
            f"{data['support']} to train on, {data['audit']} to audit on,"
            f" {tests[data['tested_on']]}"
        ),
        "backbone": f"{backbone['weights']}, {backbone['parameters']:,} parameters",
        "budget": (
            f"{budget['limit']:,} {budget['counts']} ({budget['limit'] / budget['whole']:.2%})"
        ),
        "  head": f"{budget['head']:,} of these, {budget['capacity']:,} left for units",
        "  units": f"{units['offered']} on offer, at most {units['fitting']} fit",
        "steps": (
            f"{steps['warmup']} warm-up, {steps['search']} in {steps['cycles']} cycles,"
            f" {steps['refit']} refit"
        ),
        "patch": f"{times(plan['patch'])} voxels of {times(plan['spacing'])} mm",
        "time": (
            f"about {roughly(plan['seconds']['total'])} on this machine"
            f" ({plan['seconds']['step']:.2f} s a step, measured)"
        ),
        "memory": f"about {memory}, {disk} of disk meanwhile, {plan['device']}",
    }
    return facts(pairs.items(), title="Nothing was trained; this is what would be")


def roughly(seconds: float) -> str:
    """A duration such as `40 seconds`, `9 minutes` or `2.5 hours`, with no more digits than an
    estimate has.
    """
    if seconds < 90:
        return f"{max(10, 10 * round(seconds / 10))} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"


def clock(seconds: float) -> str:
    """A duration such as `8 s`, `2 min 05 s` or `1 h 12 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def unit_lists(
    rows: Sequence[UnitRow], names: Mapping[str, str], costs: str, everything: bool
) -> list[UnitLines | Text]:
    """The units that are on, and those that are not: all, or the first that were measured or
    refused. `names`, `costs`: as for `UnitLines`.
    """
    on, off = [row for row in rows if row.on], [row for row in rows if not row.on]
    judged = (
        off
        if everything
        else [r for r in off if r.utility is not None or r.decision == "refuse"][:REFUSED_SHOWN]
    )
    made: list[UnitLines | Text] = (
        [UnitLines(f"On: {count(len(on), 'unit')} (utility in Dice points)", on, names, costs)]
        if on
        else []
    )
    made += [UnitLines("Off", judged, names, costs)] if judged else []
    if rest := [row for row in off if row not in judged]:
        unmeasured = sum(row.utility is None for row in rest)
        made.append(
            Text(f"{len(rest)} more are off ({unmeasured} never measured); --unit '*' shows them.")
        )
    return made


def replay_table(replayed: Sequence[Replayed]) -> Table:
    """Every allocation of a trace: whether the policy makes the same choice again, and the
    differences (+ now, - then).
    """
    rows = []
    for r in replayed:
        probes, ranks = (
            [f"{u} ({what})" for u in of]
            for what, of in (("probe", r.probes_differ), ("rank", r.ranks_differ))
        )
        differs = [*r.active_differs, *probes, *ranks]
        same = state("ok" if r.same else "problem")
        rows.append(
            ("final" if r.final else str(r.cycle), r.units_on, same, f"{r.gap:.2%}", differs)
        )
    columns = ("cycle", "units on", "same", "behind the optimum", "differs")
    return table("Decided again from the trace", columns, rows, right=("units on",))


def prediction_table(statuses: Sequence[CaseStatus]) -> Table:
    """The status of each case, with the volumes of a few labels or, among many, the number of
    labels found. A mask is called like its case.
    """
    labels = list(dict.fromkeys(label for status in statuses for label in status.volumes))
    few = labels if len(labels) <= 3 else []
    columns = [f"{label} (ml)" for label in few] or ["labels found"]
    checked = any(status.qc is not None for status in statuses)
    several = any(status.disagreement is not None for status in statuses)
    rows = []
    for status in statuses:
        found = (
            f"{sum(v > 0 for v in status.volumes.values())} of {len(labels)}"
            if status.volumes
            else None
        )
        values = [
            f"{status.volumes[label]:.1f}" if label in status.volumes else None for label in few
        ]
        qc = (
            []
            if not checked
            else (
                [None, None]
                if status.qc is None
                else [f"{status.qc.mean:.2f}", str(len(status.qc.flags) or "")]
            )
        )
        apart = status.mean_disagreement
        agreed = [None if apart is None else f"{apart:.3f}"] if several else []
        rows.append((status.case, state(status.status), *(values or [found]), *qc, *agreed))
    right = [
        *columns,
        *(["expected Dice", "flags"] if checked else []),
        *(["disagreement"] if several else []),
    ]
    return table("", ("case", "status", *right), rows, right=right)


def suggestion_table(found: Suggestions) -> Table:
    """The scans to label next, and why. Distances: 1 is usual between two of the scans."""
    rows = [
        (
            str(each.rank),
            each.scan,
            f"{each.expected_dice:.2f}",
            None if each.distance is None else f"{each.distance:.2f}",
            " ".join([f"{each.why}." if each.flags else each.why, *each.flags]),
        )
        for each in found.suggested
    ]
    of = count(len(found.suggested) + len(found.others), "scan")
    right = ("", "expected Dice", "distance")
    return table(
        f"To label next, of {of}",
        ("", "scan", "expected Dice", "distance", "why"),
        rows,
        right=right,
    )


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
    cases = table(
        "", ("case", "label", *names, *roles), [r[: 8 + len(roles)] for r in rows], right=names
    )
    means = [
        (label, *(_score(scores.mean(label, m), m) for m in measures)) for label in scores.labels
    ]
    means.append(("mean", *(_score(scores.overall(m), m) for m in measures)))
    title = f"Mean over {count(len(scores.cases), 'case')} of {scores.data}"
    return [cases, table(title, ("label", *names), means, right=names)]


def _score(value: float, measure: str) -> str | None:
    if math.isnan(value):
        return None
    return f"{value:.1f}" if measure == "hd95" else f"{value:.3f}"
