from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from example_run import make_events
from matplotlib.image import imread

from sea_peft.artefacts import figures
from sea_peft.artefacts.drawing import network_drawing
from sea_peft.artefacts.history import History
from sea_peft.artefacts.palette import REFUSED, family_colours
from sea_peft.artefacts.plots import png, svg
from sea_peft.artefacts.view import summarise
from sea_peft.loop import events as ev


def without_units(events):
    """A head-only run on a profile that offers nothing."""
    kept = [
        e
        for e in events
        if not isinstance(e, (ev.Audited, ev.Ranked, ev.Compared, ev.SaliencyMeasured))
    ]
    empty = {"units": [], "active": [], "probes": [], "decisions": []}
    return [
        dataclasses.replace(
            e, **{field: value for field, value in empty.items() if hasattr(e, field)}
        )
        for e in kept
    ]


RUNS = {
    "whole": make_events(),
    "begun": make_events()[:1],
    "first allocation": make_events()[:4],
    "no score": make_events(unadapted=None),
    "no units": without_units(make_events()),
    "many sites": make_events(sites=70),
    "fixed policy": [
        e for e in make_events() if not isinstance(e, (ev.Audited, ev.Ranked, ev.Compared))
    ],
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_draws_at_every_stage_of_a_run(name, run):
    image = imread(io.BytesIO(png(figures.FIGURES[name](History(RUNS[run])), dpi=40)))
    assert image.shape[0] > 60
    assert np.ptp(image) > 0.5


def test_same_events_same_bytes():
    for make in figures.FIGURES.values():
        one, two = (make(History(make_events())) for _ in range(2))
        assert svg(one) == svg(two)


def test_ledger_stacks_to_the_parameters_used():
    history = History(make_events())
    (axes,) = figures.budget_ledger(history).axes
    tops: dict[float, float] = {}
    for bar in axes.patches:
        tops[bar.get_x()] = max(tops.get(bar.get_x(), 0), bar.get_y() + bar.get_height())
    assert [tops[x] for x in sorted(tops)] == [allocated.used for allocated in history.allocations]


def test_heat_map_shows_active_and_probed_sites_of_every_cycle():
    history = History(make_events())
    axes = figures.active_sites(history).axes[0]
    cells = sum(len(allocated.active) + len(allocated.probes) for allocated in history.allocations)
    assert len(axes.patches) == cells


def test_cut_off_line_passes_under_every_chosen_unit():
    history = History(make_events(cycles=6))
    axes = figures.utility_against_cost(history).axes[0]
    (line,) = (line for line in axes.lines if str(line.get_label()).startswith("cut-off"))
    ratio = line.get_ydata()[-1] / line.get_xdata()[-1]
    chosen = [row.value / history.units[row.unit].cost for row in history.allocations[-1].decisions
              if row.unit in history.active]  # fmt: skip
    assert ratio == pytest.approx(100 * min(chosen))


def test_dice_figure_has_the_lines_to_beat_and_the_three_arms():
    left, right = figures.dice_over_cycles(History(make_events())).axes
    assert {line.get_label() for line in left.lines} == {
        "soft Dice (what audits compare)",
        "hard Dice",
        "unadapted",
    }
    assert [tick.get_text() for tick in right.get_xticklabels()] == [
        "unadapted",
        "head-only",
        "adapted",
    ]


def test_drawing_has_a_box_for_every_site_in_order():
    events = make_events(sites=40)
    history = History(events)
    boxes = [box for _, blocks in network_drawing(history) for _, boxes in blocks for box in boxes]
    sites = [box.tips[0].split(" (")[0] for box in boxes]
    assert sites == list(history.sites)
    on = {row.site for row in summarise(events) if row.on}
    measured = {row.site for row in summarise(events) if row.utility is not None}
    colours = set(family_colours(["lora", "affine"]).values())
    for box, site in zip(boxes, sites, strict=True):
        assert (box.on, box.measured) == (site in on, site in measured)
        assert any(colour in box.fill for colour in colours) == (site in on)
        assert (REFUSED in box.fill) == (site in measured - on)
