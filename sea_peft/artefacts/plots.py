"""Shared parts of the figures: frame, axes and legends, and rendering to bytes.

Figures are made without pyplot: no global state, no display, and nothing to close.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#8A8A8A"


def png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as PNG, the same bytes for the same events."""
    return _drawn(figure, format="png", dpi=dpi, metadata={"Software": None})


def svg(figure: Figure) -> bytes:
    """The figure as SVG without references to fonts or anything outside; the same bytes for the
    same events.
    """
    return _drawn(figure, format="svg", metadata={"Date": None, "Creator": None})


def _drawn(figure: Figure, **how: Any) -> bytes:
    """Render the figure. A name with two `$` in it is no formula: it is drawn literally, and never
    stops the rendering.
    """
    import matplotlib
    from matplotlib.text import Text

    stream = io.BytesIO()
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    # some texts are made while it is drawn
    settings = matplotlib.rc_context(
        {"text.parse_math": False, "svg.hashsalt": "sea_peft", "svg.fonttype": "path"}
    )
    with settings, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a script that the font lacks is drawn as boxes
        figure.savefig(stream, **how)
    return stream.getvalue()


def blank(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def short(site: str) -> str:
    """The end of a module path, where paths differ."""
    return site if len(site) <= 44 else "…" + site[-43:]


def cycle_axis(axes: Axes, cycles: Sequence[int], final: int | None = None) -> None:
    """Cycles along x, with labels for about 20 of them. `final` is the choice after the last
    cycle.
    """
    axes.set_xlabel("cycle")
    if cycles:
        axes.set_xlim(min(cycles) - 0.6, max(cycles) + 0.6)
    named = [cycle for cycle in cycles[:: 1 + len(cycles) // 20] if final is None or cycle < final]
    labels = [str(cycle) for cycle in named]
    if final is not None:
        named, labels = [*named, final], [*labels, "final"]
    axes.set_xticks(named, labels)


def stage_lines(axes: Axes, stages: Sequence[str], named: bool = True) -> None:
    """A line wherever the stage changes between rows, and the stages' names at the right."""
    start = 0
    for i in range(1, len(stages) + 1):
        if i == len(stages) or stages[i] != stages[start]:
            if named:
                middle = (start + i - 1) / 2
                axes.text(
                    1.01,
                    middle,
                    stages[start],
                    transform=axes.get_yaxis_transform(),
                    fontsize=8,
                    va="center",
                )
            if i < len(stages):
                axes.axhline(i - 0.5, color=GREY, lw=0.6)
            start = i


def family_legend(figure: Figure, colours: Mapping[str, str], more: Sequence[Artist] = ()) -> None:
    """A legend below the figure: families by colour, and `more`."""
    from matplotlib.patches import Patch

    handles = [*(Patch(color=colour, label=family) for family, colour in colours.items()), *more]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 6) or 1,
        fontsize=8,
        frameon=False,
    )
