"""Pictures of scans: a prediction in three planes with its labels outlined, and heat maps over
one plane.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sea_peft.artefacts.plots import png
from sea_peft.data.geometry import Geometry, whole_geometry
from sea_peft.data.volumes import Volume
from sea_peft.jobs.shades import Shades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PLANES = ("sagittal", "coronal", "axial")  # by the axis they stand on: right, anterior, superior
_SIDES = ("RL", "AP", "HF")  # where the axes run to, and where they come from
_BARS = (1, 2, 5, 10, 20, 50, 100, 200)  # mm
_LINE = 1.3  # points
# Okabe and Ito's colours, those that are bright on black; after them come the same ones in dashes,
# then in dots
_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#D55E00", "#CC79A7")
_STROKES: tuple[Literal["solid", "dashed", "dotted"], ...] = ("solid", "dashed", "dotted")
_LOOKS = [(colour, stroke) for stroke in _STROKES for colour in _COLOURS]
_ERRORS = {"missed": "#E69F00", "added": "#56B4E9", "another label": "#CC79A7"}


def preview_png(
    image: Volume,
    masks: Mapping[str, np.ndarray],
    labels: Sequence[str],
    geometry: Geometry,
    shown: Shades,
    about: int | None = None,
    reference: np.ndarray | None = None,
) -> bytes:
    """Three planes with outlined masks, one row per mask, in radiological view: from the feet, from
    the front and from the patient's left.

    Args:
        image: the scan.
        masks: title → label indices `[I, J, K]` on the scan's grid, 1..L in the order of `labels`.
            Shows the planes in which most is labelled in any of them.
        labels: label names.
        geometry: the scan's geometry.
        shown: the grey values shown as black and white.
        about: index of a label; shows the planes in which most of it lies.
        reference: the labelled mask. It gets a row, and another row shows where the last of `masks`
            differs from it.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    upright = whole_geometry(geometry.shape, geometry.affine, "RAS", image.spacing)
    grey = upright.oriented(image.array)
    spacing = [image.spacing[axis] for axis in upright.axes]
    rows = dict(masks) if reference is None else {**masks, "labelled": reference}
    oriented = {title: upright.oriented(mask) for title, mask in rows.items()}
    anywhere = np.logical_or.reduce(
        [mask > 0 if about is None else mask == about for mask in oriented.values()]
    )
    at = [_fullest(anywhere, axis) for axis in range(3)]
    errors = (
        _differences(oriented[list(masks)[-1]], oriented["labelled"])
        if reference is not None
        else None
    )
    present = sorted(set().union(*(_in_planes(mask, at) for mask in oriented.values())))
    # a label has the same look in every picture, unless there are more labels than looks
    order = range(1, len(labels) + 1) if len(labels) <= len(_LOOKS) else present
    looks = {index: _LOOKS[rank % len(_LOOKS)] for rank, index in enumerate(order)}
    count = len(rows) + (errors is not None)
    figure = Figure(figsize=(12, 0.9 + 4.2 * count), facecolor="black")
    figure.set_layout_engine("constrained", h_pad=0.12)
    grid = figure.subplots(count, 3, squeeze=False)
    for row, (title, mask) in zip(grid, oriented.items(), strict=False):
        for axes, axis in zip(row, (2, 1, 0), strict=True):
            _scan(axes, grey, axis, at[axis], spacing, shown)
            plane = _plane(mask, axis, at[axis])
            for index in present:
                _outline(axes, plane == index, *looks[index])
            where = f"{_PLANES[axis]}, {_position(upright, axis, at[axis])}"
            axes.set_title(f"{title}: {where}" if title else where, color="white", fontsize=9)
    if errors is not None:
        for axes, axis in zip(grid[-1], (2, 1, 0), strict=True):
            _scan(axes, grey, axis, at[axis], spacing, shown)
            wrong = _coloured(_plane(errors, axis, at[axis]), list(_ERRORS.values()))
            axes.imshow(wrong, aspect=axes.get_aspect(), interpolation="nearest")
            axes.set_title(f"{list(masks)[-1]} against labelled", color="white", fontsize=9)
    handles: list[Any] = [
        Line2D([], [], label=labels[index - 1], color=looks[index][0], linestyle=looks[index][1])
        for index in present[: len(_LOOKS)]
    ]
    if more := len(present) - len(handles):
        handles.append(Patch(alpha=0, label=f"and {more} more"))
    if errors is not None:
        found = _in_planes(errors, at)
        handles += [
            Patch(color=look, label=name)
            for i, (name, look) in enumerate(_ERRORS.items(), 1)
            if i in found
        ]
    _legend(figure, handles, shown, 6)
    return png(figure)


@dataclasses.dataclass(frozen=True, eq=False)
class Heat:
    """A heat map over a scan.

    Attributes:
        title: above the map.
        values: `[D, H, W]`, 0 to 1, oriented as the scan; None if there is no map.
        inside: bool `[D, H, W]`, the part that counts (outlined); None if there is no map.
    """

    title: str
    values: np.ndarray | None
    inside: np.ndarray | None


def heat_png(
    grey: np.ndarray,
    spacing: Sequence[float],
    rows: Sequence[tuple[str, np.ndarray, Sequence[Heat]]],
    shown: Shades,
) -> bytes:
    """One row per label: heat maps over the axial plane that holds most of it, with a scale. Air
    has no colour.

    Args:
        grey: the scan `[D, H, W]`, axes to the right, front and top (RAS).
        spacing: voxel size in mm along them.
        rows: label, its mask (bool `[D, H, W]`, outlined in white), and its heat maps, as many for
            each label.
        shown: the grey values shown as black and white.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = max(len(heats) for _, _, heats in rows)
    figure = Figure(figsize=(3 * columns + 0.8, 1.0 + 2.9 * len(rows)), facecolor="black")
    figure.set_layout_engine("constrained", h_pad=0.1)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (label, mask, heats) in zip(grid, rows, strict=True):
        at = _fullest(mask, 2)
        body = _body(_plane(grey, 2, at), shown)
        for axes, heat in zip(line, heats, strict=True):
            _scan(axes, grey, 2, at, spacing, shown)
            if heat.values is not None:
                plane = np.where(body, _plane(heat.values, 2, at), 0.0)
                axes.imshow(
                    plane,
                    cmap="inferno",
                    vmin=0,
                    vmax=1,
                    alpha=np.sqrt(plane) * 0.8,
                    aspect=axes.get_aspect(),
                    interpolation="bilinear",
                )
            _outline(axes, _plane(mask, 2, at), "white")
            if heat.inside is not None:
                _outline(axes, _plane(heat.inside, 2, at) & body, "#56B4E9")
            axes.set_title(f"{label}, {heat.title}", color="white", fontsize=9)
    scale = figure.colorbar(
        ScalarMappable(cmap="inferno"), ax=grid, shrink=0.6, aspect=30, pad=0.01
    )
    scale.set_label("share of the map's maximum", color="white", fontsize=9)
    scale.ax.tick_params(colors="white", labelsize=8)
    looks = (("white", "the label"), ("#56B4E9", "the part of the map above Otsu's threshold"))
    _legend(figure, [Line2D([], [], color=colour, label=name) for colour, name in looks], shown, 2)
    return png(figure)


def _scan(
    axes: Axes, grey: np.ndarray, axis: int, at: int, spacing: Sequence[float], shown: Shades
) -> None:
    """One plane of a scan, with the sides of the body and a scale in mm."""
    from matplotlib.patheffects import withStroke
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

    across, up = (other for other in range(3) if other != axis)
    plane = _plane(grey, axis, at)
    axes.imshow(
        plane, cmap="gray", vmin=shown.low, vmax=shown.high, aspect=spacing[up] / spacing[across]
    )
    # side, its position on the axes, and the offset of its letter in points, so that none is cut
    # off
    sides = (
        (_SIDES[across][0], (0, 0.5), (4, 0), ("left", "center")),
        (_SIDES[across][1], (1, 0.5), (-4, 0), ("right", "center")),
        (_SIDES[up][0], (0.5, 1), (0, -4), ("center", "top")),
        (_SIDES[up][1], (0.5, 0), (0, 4), ("center", "bottom")),
    )
    for side, place, moved, (ha, va) in sides:
        axes.annotate(
            side,
            place,
            moved,
            "axes fraction",
            "offset points",
            ha=ha,
            va=va,
            color="white",
            fontsize=9,
            path_effects=[withStroke(linewidth=2, foreground="black")],
        )
    width = plane.shape[1] * spacing[across]
    mm = max([mm for mm in _BARS if mm <= 0.35 * width], default=_BARS[0])
    bar = AnchoredSizeBar(
        axes.transData,
        mm / spacing[across],
        f"{mm} mm",
        "lower right",
        color="white",
        pad=0.3,
        sep=3,
    )
    bar.patch.set(facecolor="black", edgecolor="none", alpha=0.6)  # bones are as white as the bar
    axes.add_artist(bar)
    axes.set_axis_off()


def _plane(array: np.ndarray, axis: int, at: int) -> np.ndarray:
    """The rows of a plane from top to bottom.

    Axial planes are seen from the feet and coronal ones from the front, with the patient's right on
    the viewer's left; sagittal ones from the patient's left, facing left.
    """
    return np.take(array, at, axis=axis).T[::-1, ::-1]


def _position(upright: Geometry, axis: int, at: int) -> str:
    """Where a plane lies in the scanner's coordinates, through the middle of the scan, and its
    number: `H 34 mm (40 of 48)`.
    """
    middle = [n / 2 - 0.5 for n in upright.size]
    middle[axis] = at
    voxel = [0.0, 0.0, 0.0]
    for oriented, (own, flip) in enumerate(zip(upright.axes, upright.flips, strict=True)):
        voxel[own] = upright.size[oriented] - 1 - middle[oriented] if flip else middle[oriented]
    mm = round(float((upright.affine @ [*voxel, 1.0])[axis]))
    return f"{_SIDES[axis][mm < 0]} {abs(mm)} mm ({at + 1} of {upright.size[axis]})"


def _outline(axes: Axes, inside: np.ndarray, colour: str, stroke: str = "solid") -> None:
    """Outline the inside, also at the picture's edge. The line lies within, so it hides nothing of
    a neighbour's.
    """
    if inside.any():
        rows, columns = (np.arange(-1, n + 1) for n in inside.shape)
        line = axes.contour(
            columns,
            rows,
            np.pad(inside, 1),
            levels=[0.5],
            linewidths=2 * _LINE,
            colors=[colour],
            linestyles=[stroke],
        )
        line.set_clip_path(line.get_paths()[0], axes.transData)
        axes.set_xlim(-0.5, inside.shape[1] - 0.5)
        axes.set_ylim(inside.shape[0] - 0.5, -0.5)


def _in_planes(indices: np.ndarray, at: Sequence[int]) -> set[int]:
    """The label indices in the planes shown."""
    return {
        int(i) for axis in range(3) for i in np.unique(np.take(indices, at[axis], axis=axis))
    } - {0}


def _differences(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """1 where a label was missed, 2 where one was added, 3 where another was found, as in
    `_ERRORS`.
    """
    wrong = np.zeros(found.shape, np.uint8)
    wrong[(found == 0) & (wanted > 0)] = 1
    wrong[(found > 0) & (wanted == 0)] = 2
    wrong[(found > 0) & (wanted > 0) & (found != wanted)] = 3
    return wrong


def _body(plane: np.ndarray, shown: Shades) -> np.ndarray:
    """The patient without the air around: everything within the largest bright part, lungs
    included, even if a crop cuts the chest wall.
    """
    from matplotlib.path import Path
    from scipy.ndimage import label
    from scipy.spatial import ConvexHull, QhullError

    parts, _ = label(plane > shown.low + 0.02 * (shown.high - shown.low))
    largest = parts == np.argmax(np.bincount(parts.ravel())[1:]) + 1 if parts.any() else parts > 0
    places = np.argwhere(largest)
    try:
        outline = Path(places[ConvexHull(places).vertices])
    except (QhullError, ValueError):  # all on one line, or nothing at all
        return largest
    inside = outline.contains_points(np.argwhere(np.ones_like(largest)), radius=1e-6).reshape(
        largest.shape
    )
    return inside | largest


def _legend(figure: Figure, handles: Sequence[Any], shown: Shades, columns: int) -> None:
    """Explain lines and colours, and below them the grey values shown."""
    from matplotlib.patches import Patch

    figure.legend(
        handles=[*handles, Patch(alpha=0, label=shown.name)],
        loc="outside lower center",
        ncols=columns,
        fontsize=8.5,
        frameon=False,
        labelcolor="white",
        handlelength=2.6,
    )


def _fullest(mask: np.ndarray, axis: int) -> int:
    """The plane with the most labelled voxels; of several as full, or all empty, the middle one:
    a mask that fills the scan is not shown at its border, where only air is.
    """
    others = tuple(other for other in range(3) if other != axis)
    counts = np.count_nonzero(mask, axis=others)
    fullest = np.flatnonzero(counts == counts.max())
    return int(fullest[len(fullest) // 2])


def _coloured(indices: np.ndarray, colours: Sequence[str]) -> np.ndarray:
    """RGBA [rows, columns, 4], transparent at 0."""
    from matplotlib.colors import to_rgba

    return np.array([(0.0, 0.0, 0.0, 0.0), *(to_rgba(colour) for colour in colours)])[indices]
