"""A box plot of scores over cases for each label, which `evaluate --out` draws beside its table."""

import math
from collections.abc import Mapping, Sequence

from sea_peft.artefacts.plots import png

# measure → title, largest value of the axis
_PANELS = {"dice": ("Dice", 1.0), "nsd": ("NSD", 1.0), "hd95": ("HD95, mm", None)}
_LEAST_HEIGHT, _HEIGHT_PER_LABEL, _HEIGHT_FOR_TITLES = 2.2, 0.32, 1.1
_COLOUR = "#3b6ea5"


def boxplot_png(
    scores: Mapping[str, Mapping[str, Sequence[float]]], labels: Sequence[str], about: str
) -> bytes:
    """One row per label and one panel per measure: quartiles as a box, median, whiskers up to 1.5
    times the box, and each case as a dot.

    Args:
        scores: measure (dice, nsd, hd95) → label → one value per case. NaN (undefined, an empty
            label) is left out.
        labels: in the order from top to bottom.
        about: what was scored, for the title.
    """
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(11, max(_LEAST_HEIGHT, _HEIGHT_FOR_TITLES + _HEIGHT_PER_LABEL * len(labels)))
    )
    figure.set_layout_engine("constrained")
    figure.suptitle(about, fontsize=10)
    for axes, (measure, (title, most)) in zip(
        figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True
    ):
        known = [
            [v for v in scores[measure].get(label, ()) if not math.isnan(v)] for label in labels
        ]
        rows = range(len(labels), 0, -1)
        axes.boxplot(
            known,
            positions=rows,
            orientation="horizontal",
            widths=0.55,
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": "#dbe6f1", "edgecolor": _COLOUR},
            medianprops={"color": _COLOUR, "linewidth": 2},
        )
        for row, values in zip(rows, known, strict=True):
            axes.plot(values, [row] * len(values), "o", color=_COLOUR, markersize=3, alpha=0.6)
        names = [f"{label} ({len(values)})" for label, values in zip(labels, known, strict=True)]
        axes.set_yticks(rows, names if axes is figure.axes[0] else [""] * len(labels), fontsize=8)
        axes.set_ylim(0.4, len(labels) + 0.6)
        axes.set_xlim(0, most) if most else axes.set_xlim(left=0)
        axes.set_title(title, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    return png(figure, dpi=120)
