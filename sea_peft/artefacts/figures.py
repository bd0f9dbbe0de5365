"""The figures of a run, as functions of its history; MLflow and the HTML report show the same
ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from sea_peft.artefacts.history import History
from sea_peft.artefacts.palette import family_colours
from sea_peft.artefacts.plots import GREY, blank, cycle_axis, family_legend, short, stage_lines
from sea_peft.artefacts.view import summarise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_ROWS = 60


def active_sites(history: History) -> Figure:
    """Sites × cycles: which family is on where (full colour) and which is probed (pale), sites in
    execution order.

    With more than 60 sites, only those that were ever on or probed are drawn.
    """
    from matplotlib.patches import Patch, Rectangle

    colours = family_colours(row.family for row in history.units.values())
    cells: dict[
        tuple[str, int], dict[str, bool]
    ] = {}  # (site, cycle) -> family -> on (else probed)
    for allocated in history.allocations:
        for units, on in ((allocated.probes, False), (allocated.active, True)):
            for unit in units:
                row = history.units[unit]
                cells.setdefault((row.site, allocated.cycle), {})[row.family] = on
    sites = list(history.sites)
    title = "What is on where, cycle by cycle"
    if len(sites) > _MOST_ROWS:
        touched = {site for site, _ in cells}
        title += f" (the {len(touched)} of {len(sites)} sites that were ever on or probed)"
        sites = [site for site in sites if site in touched]
    figure = blank(9, 1.8 + 0.19 * max(len(sites), 6))
    axes = figure.add_subplot()
    for (site, cycle), families in cells.items():
        for i, family in enumerate(sorted(families)):
            width = 0.92 / len(families)
            corner = (cycle - 0.46 + i * width, sites.index(site) - 0.4)
            axes.add_patch(
                Rectangle(
                    corner,
                    width,
                    0.8,
                    color=colours[family],
                    alpha=1.0 if families[family] else 0.3,
                    lw=0,
                )
            )
    axes.set_yticks(
        range(len(sites)), [short(history.names.get(site, site)) for site in sites], fontsize=7
    )
    cycle_axis(axes, [allocated.cycle for allocated in history.allocations], _final(history))
    axes.set_ylim(max(len(sites), 1) - 0.5, -0.5)
    stage_lines(axes, [history.sites[site].stage for site in sites])
    axes.set_title(title, fontsize=11, loc="left")
    family_legend(
        figure, colours, [Patch(color="#000000", alpha=0.3, label="pale: on trial (probe)")]
    )
    return figure


def utility_against_cost(history: History) -> Figure:
    """Utility (EMA of ΔDice; bars: standard error) of each measured unit against its cost, with the
    cut-off.

    The cut-off is the smallest knapsack value per cost that the last allocation chose.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter

    kind = history.started.cost_kind
    rows = [(row, 100 * row.utility) for row in summarise(history) if row.utility is not None]
    colours = family_colours(row.family for row in history.units.values())
    figure = blank(9, 5)
    axes = figure.add_subplot()
    for row, utility in rows:
        colour = colours[row.family]
        cost, error = max(row.cost, 1), 100 * (row.standard_error or 0.0)
        axes.errorbar(cost, utility, error, fmt="none", ecolor=colour, elinewidth=0.9, alpha=0.7)
        look = {"ms": 7} if row.on else {"ms": 5, "mfc": "white"}
        axes.plot(cost, utility, "o", color=colour, **look)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.axhline(0, color=GREY, lw=0.7)
    limits = axes.get_ylim()
    ratio = _cut_off(history)
    handles = [
        Line2D([], [], marker="o", ls="", color=GREY, ms=7, label="on"),
        Line2D([], [], marker="o", ls="", color=GREY, mfc="white", ms=5, label="off"),
    ]
    if ratio is not None and rows:
        costs = np.geomspace(*axes.get_xlim(), 200)
        label = f"cut-off: {ratio * 1e5:.2g} Dice points per 1,000 {kind.many}"
        handles += axes.plot(costs, 100 * ratio * costs, "--", color="black", lw=1, label=label)
        axes.set_ylim(limits)
    axes.set_xlabel(f"{kind.many} of the unit")
    axes.set_ylabel("utility (Dice points lost without it)")
    unmeasured = (
        f"{len(history.units) - len(rows)} of {len(history.units)} units were never measured"
    )
    axes.set_title(f"Utility against cost ({unmeasured})", fontsize=11, loc="left")
    family_legend(figure, colours, handles)
    return figure


def budget_ledger(history: History) -> Figure:
    """Spending per cycle: head, active units by family, probes; and the limit."""
    colours = family_colours(row.family for row in history.units.values())
    allocations = history.allocations
    cycles = [allocated.cycle for allocated in allocations]
    figure = blank(9, 4)
    axes = figure.add_subplot()
    bottom = np.zeros(len(cycles))

    def stack(heights: list[int], label: str, colour: str, **style: object) -> None:
        nonlocal bottom
        if any(heights):
            axes.bar(cycles, heights, bottom=bottom, width=0.8, color=colour, label=label, **style)  # type: ignore[arg-type]
            bottom = bottom + np.asarray(heights)

    stack([allocated.head for allocated in allocations], "head", "#333333")
    for family, colour in colours.items():
        of = [
            [unit for unit in a.active if history.units[unit].family == family] for a in allocations
        ]
        stack([history.cost(units) for units in of], family, colour)
    stack(
        [history.cost(a.probes) for a in allocations],
        "probes",
        "white",
        edgecolor=GREY,
        hatch="///",
        lw=0,
    )
    axes.axhline(
        history.started.limit, color="#B2182B", lw=1.2, label=f"limit {history.started.limit:,}"
    )
    cycle_axis(axes, cycles, _final(history))
    axes.set_ylim(0, max([history.started.limit, *bottom]) * 1.08)
    axes.set_ylabel(history.started.cost_kind.many)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_title("Where the budget went", fontsize=11, loc="left")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def dice_over_cycles(history: History) -> Figure:
    """Left: Dice on the audit cases over cycles, with unadapted and head-only as compared there.
    Right: the final score.

    The final score is that on the test cases, or by leave-one-out.
    """
    audits = [cycle.audited for cycle in history.cycles if cycle.audited is not None]
    figure = blank(9, 4)
    left, right = figure.subplots(1, 2, width_ratios=(2.4, 1), sharey=True)
    cycles = [audited.cycle for audited in audits]
    left.plot(
        cycles,
        [a.dice_on for a in audits],
        "o-",
        color="#0072B2",
        label="soft Dice (what audits compare)",
        ms=4,
    )
    left.plot(
        cycles, [a.hard_dice for a in audits], "s--", color="#56B4E9", label="hard Dice", ms=3
    )
    known = {"unadapted": ("#8A8A8A", ":"), "head_only": ("#E69F00", "-.")}
    compared = history.compared.dice if history.compared is not None else {}
    for arm, level in compared.items():
        if arm != history.started.policy:
            colour, style = known.get(arm, ("#6A3D9A", (0, (5, 1, 1, 1))))
            left.axhline(level, color=colour, ls=style, label=arm.replace("_", "-"))
    cycle_axis(left, cycles)
    left.set_ylabel("Dice")
    left.set_title("Audit cases, over cycles", fontsize=11, loc="left")
    if audits or compared:
        left.legend(fontsize=8, frameon=False, loc="best")
    names = [arm for arm in ("unadapted", "head_only", "adapted") if arm in history.scored]
    colours = {"unadapted": "#8A8A8A", "head_only": "#E69F00", "adapted": "#0072B2"}
    for x, arm in enumerate(names):
        dice = history.scored[arm].dice
        if dice is None:
            right.text(
                x,
                0.02,
                "cannot predict\nthe labels",
                ha="center",
                va="bottom",
                fontsize=7,
                rotation=90,
            )
        else:
            right.bar(x, dice, color=colours[arm], width=0.7)
            right.text(x, dice + 0.01, f"{dice:.3f}", ha="center", va="bottom", fontsize=8)
    right.set_xlim(-0.6, max(len(names), 1) - 0.4)
    right.set_xticks(range(len(names)), [arm.replace("_", "-") for arm in names], fontsize=8)
    title = {
        "test": "Test cases, at the end",
        "cv": "Every shot, left out in turn",
        None: "Test cases: none scored",
    }
    right.set_title(title[history.tested_on], fontsize=11, loc="left")
    left.set_ylim(0, 1.05)
    for axes in (left, right):
        axes.grid(axis="y", color="#E5E5E5", lw=0.6)
        axes.set_axisbelow(True)
    return figure


def utilities_over_cycles(history: History) -> Figure:
    """Utility over cycles of the units that are on at the end, and of the ten best others."""
    from matplotlib.lines import Line2D

    colours = family_colours(row.family for row in history.units.values())
    on = set(history.active)
    series: dict[str, list[tuple[int, float]]] = {}
    for cycle in history.cycles:
        for row in cycle.ranked.rows if cycle.ranked is not None else []:
            if row.ema is not None:
                series.setdefault(row.unit, []).append((cycle.number, 100 * row.ema))
    off = sorted(
        (unit for unit in series if unit not in on), key=lambda unit: -series[unit][-1][1]
    )[:10]
    figure = blank(9, 4.5)
    axes = figure.add_subplot()
    for unit in [*off, *(unit for unit in series if unit in on)]:
        cycles, values = zip(*series[unit], strict=True)
        colour = colours[history.units[unit].family]
        style = (
            {"lw": 1.4, "ms": 3.5}
            if unit in on
            else {"lw": 1.0, "ms": 2.5, "alpha": 0.7, "ls": ":"}
        )
        axes.plot(cycles, values, marker="o", color=colour, **style)
    axes.axhline(0, color=GREY, lw=0.7)
    cycle_axis(axes, [cycle.number for cycle in history.cycles if cycle.ranked is not None])
    axes.set_ylabel("utility (Dice points lost without it)")
    axes.set_title("Utilities over cycles", fontsize=11, loc="left")
    looks = (("on at the end", "-", 1.4), ("off: the ten best", ":", 1.0))
    family_legend(
        figure,
        colours,
        [Line2D([], [], color=GREY, ls=ls, lw=lw, label=label) for label, ls, lw in looks],
    )
    return figure


FIGURES: dict[str, Callable[[History], Figure]] = {
    "active_sites": active_sites,
    "utility_against_cost": utility_against_cost,
    "utilities_over_cycles": utilities_over_cycles,
    "budget_ledger": budget_ledger,
    "dice_over_cycles": dice_over_cycles,
}
"""File name → figure, in the order in which they are read."""


def _final(history: History) -> int | None:
    return next((allocated.cycle for allocated in history.allocations if allocated.final), None)


def _cut_off(history: History) -> float | None:
    last = next(reversed(history.allocations), None)
    if last is None:
        return None
    chosen = [
        row.value / history.units[row.unit].cost
        for row in last.decisions
        if row.decision in ("keep", "add")
        and row.value is not None
        and row.unit in set(last.active)
    ]
    return min((ratio for ratio in chosen if ratio > 0), default=None)
