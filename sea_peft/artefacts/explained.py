"""The figure that compares each layer's segmentation ability with the units placed there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sea_peft.artefacts.history import History
from sea_peft.artefacts.palette import family_colours
from sea_peft.artefacts.plots import GREY, blank, family_legend, short, stage_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BETTER, _WORSE = "#0072B2", "#D55E00"


def ability_figure(history: History, abilities: Mapping[str, tuple[float, float]]) -> Figure:
    """Left: segmentation ability of each layer, unadapted and adapted. Right: the cost of the units
    at that layer.

    Args:
        history: the run.
        abilities: site → (unadapted, adapted), 0 to 1, mean over labels and cases; drawn in
            execution order. Leaves out sites without units on offer, and norms without a unit.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    placed: dict[str, dict[str, int]] = {}
    for unit in history.active:
        row = history.units[unit]
        here = placed.setdefault(row.site, {})
        here[row.family] = here.get(row.family, 0) + row.cost
    sites = [
        s
        for s, row in history.sites.items()
        if s in abilities and (row.kind != "norm" or s in placed)
    ]
    colours = family_colours(row.family for row in history.units.values())
    figure = blank(9, 1.9 + 0.17 * max(len(sites), 6))
    left, right = figure.subplots(1, 2, width_ratios=(2.2, 1), sharey=True)
    for y, site in enumerate(sites):
        before, after = abilities[site]
        left.plot(
            [before, after], [y, y], color=_BETTER if after >= before else _WORSE, lw=2.2, alpha=0.6
        )
        left.plot(before, y, "o", ms=4.5, color=GREY, mfc="white")
        left.plot(after, y, "o", ms=4.5, color=_BETTER if after >= before else _WORSE)
        start = 0
        for family, cost in sorted(placed.get(site, {}).items()):
            right.barh(y, cost, left=start, height=0.75, color=colours[family])
            start += cost
    left.set_yticks(
        range(len(sites)), [short(history.names.get(site, site)) for site in sites], fontsize=7
    )
    left.set_ylim(max(len(sites), 1) - 0.5, -0.5)
    left.set_xlim(0, 1)
    left.set_xlabel("segmentation ability (Dice, 0 to 1)")
    right.set_xlabel(f"{history.started.cost_kind.many} placed there")
    right.xaxis.set_major_formatter("{x:,.0f}")
    right.xaxis.set_major_locator(MaxNLocator(3))
    for axes in (left, right):
        axes.grid(axis="x", color="#E5E5E5", lw=0.6)
        axes.set_axisbelow(True)
        stage_lines(axes, [history.sites[site].stage for site in sites], named=axes is right)
    left.set_title("What each layer can tell apart", fontsize=11, loc="left")
    right.set_title("What was placed there", fontsize=11, loc="left")
    looks = (
        ("unadapted", GREY, "white"),
        ("adapted: better", _BETTER, _BETTER),
        ("adapted: worse", _WORSE, _WORSE),
    )
    handles = [
        Line2D([], [], marker="o", ls="", ms=5, color=c, mfc=fill, label=label)
        for label, c, fill in looks
    ]
    family_legend(figure, colours, handles)
    return figure
