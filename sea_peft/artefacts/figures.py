"""The figures of a run, as functions of its history; MLflow and the HTML report show the same ones.

Figures are made without pyplot: no global state, no display, and nothing to close.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from sea_peft.artefacts.history import History
from sea_peft.artefacts.palette import family_colours
from sea_peft.artefacts.view import summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_ROWS = 60
_GREY = "#8A8A8A"


def active_sites(history: History) -> Figure:
    """Sites × cycles: which family is on where (full colour) and which is probed (pale), sites in execution
    order.

    With more than 60 sites only those that were ever on or probed are drawn.
    """
    from matplotlib.patches import Rectangle

    colours = family_colours(row["family"] for row in history.units.values())
    cells: dict[tuple[str, int], dict[str, bool]] = {}  # (site, cycle) -> family -> on (else probed)
    for allocated in history.allocations:
        for units, on in ((allocated.probes, False), (allocated.active, True)):
            for unit in units:
                row = history.units[unit]
                cells.setdefault((row["site"], allocated.cycle), {})[row["family"]] = on
    sites = list(history.sites)
    title = "What is on where"
    if len(sites) > _MOST_ROWS:
        touched = {site for site, _ in cells}
        title += f" (the {len(touched)} of {len(sites)} sites that were ever on or probed)"
        sites = [site for site in sites if site in touched]
    figure = _figure(9, 1.8 + 0.19 * max(len(sites), 6))
    axes = figure.add_subplot()
    for (site, cycle), families in cells.items():
        for i, family in enumerate(sorted(families)):
            width = 0.92 / len(families)
            corner = (cycle - 0.46 + i * width, sites.index(site) - 0.4)
            axes.add_patch(
                Rectangle(corner, width, 0.8, color=colours[family], alpha=1.0 if families[family] else 0.3, lw=0)
            )
    axes.set_yticks(range(len(sites)), [_short(site) for site in sites], fontsize=7)
    _cycle_axis(axes, [allocated.cycle for allocated in history.allocations], _final(history))
    axes.set_ylim(max(len(sites), 1) - 0.5, -0.5)
    _stage_lines(axes, [history.sites[site]["stage"] for site in sites])
    axes.set_title(title, fontsize=10, loc="left")
    _family_legend(figure, colours, {"probed": "pale"})
    return figure


def utility_against_cost(history: History) -> Figure:
    """Utility (EMA of ΔDice, bars: spread) of every measured unit against its parameters, and the cut-off:
    the smallest knapsack value per parameter that was chosen in the last allocation."""
    from matplotlib.lines import Line2D

    rows = [(row, row.utility) for row in summarise(history) if row.utility is not None]
    colours = family_colours(row["family"] for row in history.units.values())
    figure = _figure(9, 5)
    axes = figure.add_subplot()
    for row, utility in rows:
        colour = colours[row.family]
        cost, spread = max(row.cost, 1), row.spread or 0.0
        axes.errorbar(cost, utility, spread, fmt="none", ecolor=colour, elinewidth=0.7, alpha=0.6)
        if row.on:
            axes.plot(cost, utility, "o", ms=7, color=colour)
        else:
            axes.plot(cost, utility, "o", ms=4, color=colour, mfc="white", alpha=0.6)
    axes.set_xscale("log")
    axes.axhline(0, color=_GREY, lw=0.7)
    limits = axes.get_ylim()
    ratio = _cut_off(history)
    handles = [
        Line2D([], [], marker="o", ls="", color=_GREY, ms=7, label="on"),
        Line2D([], [], marker="o", ls="", color=_GREY, mfc="white", ms=4, label="off"),
    ]
    if ratio is not None and rows:
        costs = np.geomspace(*axes.get_xlim(), 200)
        label = f"cut-off: {ratio * 1000:.3g} Dice per 1000 parameters"
        handles += axes.plot(costs, ratio * costs, "--", color="black", lw=1, label=label)
        axes.set_ylim(limits)
    axes.set_xlabel("parameters of the unit")
    axes.set_ylabel("utility (smoothed ΔDice on audit cases)")
    unmeasured = len(history.units) - len(rows)
    axes.set_title(
        f"Utility against cost ({unmeasured} of {len(history.units)} units unmeasured)",
        fontsize=10,
        loc="left",
    )
    axes.legend(handles=handles, fontsize=8, frameon=False, loc="best")
    _family_legend(figure, colours)
    return figure


def budget_ledger(history: History) -> Figure:
    """Trainable parameters per cycle: head, active units by family, probes; and the limit."""
    colours = family_colours(row["family"] for row in history.units.values())
    allocations = history.allocations
    cycles = [allocated.cycle for allocated in allocations]
    figure = _figure(9, 4)
    axes = figure.add_subplot()
    bottom = np.zeros(len(cycles))

    def stack(heights: list[int], label: str, colour: str, **style: object) -> None:
        nonlocal bottom
        if any(heights):
            axes.bar(cycles, heights, bottom=bottom, width=0.8, color=colour, label=label, **style)  # type: ignore[arg-type]
            bottom = bottom + np.asarray(heights)

    stack([allocated.head for allocated in allocations], "head", "#333333")
    for family, colour in colours.items():
        of = [[unit for unit in a.active if history.units[unit]["family"] == family] for a in allocations]
        stack([history.cost(units) for units in of], family, colour)
    stack([history.cost(a.probes) for a in allocations], "probes", "white", edgecolor=_GREY, hatch="///", lw=0)
    axes.axhline(history.started.limit, color="#B2182B", lw=1.2, label=f"limit {history.started.limit:,}")
    _cycle_axis(axes, cycles, _final(history))
    axes.set_ylim(0, max([history.started.limit, *bottom]) * 1.08)
    axes.set_ylabel("trainable parameters")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_title("Budget ledger", fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def dice_over_cycles(history: History) -> Figure:
    """Left: Dice on the audit cases over cycles, with unadapted and head-only as compared there. Right: the
    final score on the test cases."""
    audits = [cycle.audited for cycle in history.cycles if cycle.audited is not None]
    figure = _figure(9, 4)
    left, right = figure.subplots(1, 2, width_ratios=(2.4, 1), sharey=True)
    cycles = [audited.cycle for audited in audits]
    left.plot(cycles, [a.dice_on for a in audits], "o-", color="#0072B2", label="as audited", ms=4)
    left.plot(cycles, [a.hard_dice for a in audits], "s--", color="#56B4E9", label="hard Dice", ms=3)
    lines = {"unadapted": ("#8A8A8A", ":"), "head_only": ("#E69F00", "-.")}
    compared = history.compared.dice if history.compared is not None else {}
    for arm, (colour, style) in lines.items():
        if arm in compared:
            left.axhline(compared[arm], color=colour, ls=style, label=arm.replace("_", "-"))
    _cycle_axis(left, cycles)
    left.set_ylabel("Dice")
    left.set_title("Audit cases, over cycles", fontsize=10, loc="left")
    if audits or compared:
        left.legend(fontsize=8, frameon=False, loc="best")
    names = [arm for arm in ("unadapted", "head_only", "adapted") if arm in history.scored]
    colours = {"unadapted": "#8A8A8A", "head_only": "#E69F00", "adapted": "#0072B2"}
    for x, arm in enumerate(names):
        dice = history.scored[arm].dice
        if dice is None:
            right.text(x, 0.02, "cannot predict\nthe labels", ha="center", va="bottom", fontsize=7, rotation=90)
        else:
            right.bar(x, dice, color=colours[arm], width=0.7)
            right.text(x, dice + 0.01, f"{dice:.3f}", ha="center", va="bottom", fontsize=8)
    right.set_xticks(range(len(names)), [arm.replace("_", "-") for arm in names], fontsize=8)
    right.set_title("Test cases, at the end" if names else "Test cases: not scored yet", fontsize=10, loc="left")
    left.set_ylim(0, 1.05)
    for axes in (left, right):
        axes.grid(axis="y", color="#E5E5E5", lw=0.6)
        axes.set_axisbelow(True)
    return figure


def utilities_over_cycles(history: History) -> Figure:
    """Utility of the units that are on at the end, and of the best ten that are not, over cycles."""
    colours = family_colours(row["family"] for row in history.units.values())
    on = set(history.active)
    series: dict[str, list[tuple[int, float]]] = {}
    for cycle in history.cycles:
        for row in cycle.ranked.rows if cycle.ranked is not None else []:
            if row["ema"] is not None:
                series.setdefault(row["unit"], []).append((cycle.number, row["ema"]))
    off = sorted((unit for unit in series if unit not in on), key=lambda unit: -series[unit][-1][1])[:10]
    figure = _figure(9, 4.5)
    axes = figure.add_subplot()
    for unit in [*off, *(unit for unit in series if unit in on)]:
        cycles, values = zip(*series[unit], strict=True)
        colour = colours[history.units[unit]["family"]]
        style = {"lw": 1.4, "ms": 3.5} if unit in on else {"lw": 0.7, "ms": 2, "alpha": 0.5, "ls": ":"}
        axes.plot(cycles, values, marker="o", color=colour, **style)
    axes.axhline(0, color=_GREY, lw=0.7)
    _cycle_axis(axes, [cycle.number for cycle in history.cycles if cycle.ranked is not None])
    axes.set_ylabel("utility (smoothed ΔDice)")
    axes.set_title("Utilities over cycles: units on (solid), best refused ones (dotted)", fontsize=10, loc="left")
    _family_legend(figure, colours)
    return figure


FIGURES: dict[str, Callable[[History], Figure]] = {
    "active_sites": active_sites,
    "utility_against_cost": utility_against_cost,
    "utilities_over_cycles": utilities_over_cycles,
    "budget_ledger": budget_ledger,
    "dice_over_cycles": dice_over_cycles,
}
"""File name → figure, in the order in which they are read."""


def png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as PNG, the same bytes for the same events."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def svg(figure: Figure) -> bytes:
    """The figure as SVG without references to fonts or to anything outside, the same bytes for the same
    events."""
    import matplotlib

    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "sea_peft", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _short(site: str) -> str:
    return site if len(site) <= 44 else "…" + site[-43:]


def _cycle_axis(axes: Axes, cycles: list[int], final: int | None = None) -> None:
    """Cycles along x, about 20 of them named; `final` is the choice after the last cycle."""
    axes.set_xlabel("cycle")
    if cycles:
        axes.set_xlim(min(cycles) - 0.6, max(cycles) + 0.6)
    named = [cycle for cycle in cycles[:: 1 + len(cycles) // 20] if final is None or cycle < final]
    labels = [str(cycle) for cycle in named]
    if final is not None:
        named, labels = [*named, final], [*labels, "final"]
    axes.set_xticks(named, labels)


def _final(history: History) -> int | None:
    return next((allocated.cycle for allocated in history.allocations if allocated.final), None)


def _stage_lines(axes: Axes, stages: list[str]) -> None:
    start = 0
    for i in range(1, len(stages) + 1):
        if i == len(stages) or stages[i] != stages[start]:
            middle = (start + i - 1) / 2
            axes.text(1.01, middle, stages[start], transform=axes.get_yaxis_transform(), fontsize=8, va="center")
            if i < len(stages):
                axes.axhline(i - 0.5, color=_GREY, lw=0.6)
            start = i


def _cut_off(history: History) -> float | None:
    last = next(reversed(history.allocations), None)
    if last is None:
        return None
    chosen = [
        row["value"] / history.units[row["unit"]]["cost"]
        for row in last.decisions
        if row["decision"] in ("keep", "add") and row["value"] is not None and row["unit"] in set(last.active)
    ]
    return min((ratio for ratio in chosen if ratio > 0), default=None)


def _family_legend(figure: Figure, colours: dict[str, str], more: dict[str, str] | None = None) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=family) for family, colour in colours.items()]
    handles += [Patch(color="#000000", alpha=0.3, label=f"{name} ({look})") for name, look in (more or {}).items()]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 6) or 1,
        fontsize=8,
        frameon=False,
    )
