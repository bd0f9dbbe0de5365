"""Pictures of scans: a prediction in three planes with its labels in colour, and heat maps over one plane."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from sea_peft.artefacts.palette import family_colours
from sea_peft.artefacts.plots import png
from sea_peft.data.geometry import Geometry, whole_geometry
from sea_peft.data.volumes import Volume

_PLANES = ("sagittal", "coronal", "axial")  # by the axis they stand on: right, anterior, superior
_OPACITY = 0.55
_MOST_IN_LEGEND = 16


def preview_png(
    image: Volume, masks: Mapping[str, np.ndarray], labels: Sequence[str], geometry: Geometry, about: int | None = None
) -> bytes:
    """Three planes with a mask over them, a row for each mask, as radiologists look at them: from the feet and from the front.

    Args:
        image: the scan.
        masks: title → label indices [I, J, K] on the scan's grid, 1..L in the order of `labels`. The planes are those in which most is
            labelled in any of them.
        labels: label names.
        geometry: the scan's geometry.
        about: the index of a label; the planes are then those in which most of it is.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    upright = whole_geometry(geometry.shape, geometry.affine, "RAS", image.spacing)
    grey = upright.oriented(image.array)
    spacing = [image.spacing[axis] for axis in upright.axes]
    low, high = np.percentile(grey[:: max(1, grey.shape[0] // 64)], (1, 99))
    colours = family_colours(labels)
    table = [_rgb(colours[label]) for label in labels]
    wanted = [mask > 0 if about is None else mask == about for mask in masks.values()]
    anywhere = np.logical_or.reduce([upright.oriented(mask) for mask in wanted])
    figure = Figure(figsize=(12, 0.6 + 4.2 * len(masks)), facecolor="black")
    figure.set_layout_engine("constrained", h_pad=0.12)
    for row, (title, mask) in zip(figure.subplots(len(masks), 3, squeeze=False), masks.items(), strict=True):
        for axes, axis in zip(row, (2, 1, 0), strict=True):
            at = _fullest(anywhere, axis)
            plane, over = (_turned(np.take(a, at, axis=axis), axis) for a in (grey, upright.oriented(mask)))
            across, up = (other for other in range(3) if other != axis)
            aspect = spacing[up] / spacing[across]
            axes.imshow(plane, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect)
            axes.imshow(_coloured(over, table), aspect=aspect, interpolation="nearest")
            named = f"{title}: {_PLANES[axis]}" if title else _PLANES[axis]
            axes.set_title(f"{named}, plane {at + 1} of {grey.shape[axis]}", color="white", fontsize=9)
            if axis != 0:
                for side, x in (("R", 0.02), ("L", 0.95)):
                    axes.text(x, 0.02, side, transform=axes.transAxes, color="white", fontsize=9)
            axes.set_axis_off()
    present = [label for i, label in enumerate(labels, start=1) if any((mask == i).any() for mask in masks.values())]
    handles = [Patch(color=colours[label], label=label) for label in present[:_MOST_IN_LEGEND]]
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=8, fontsize=8, frameon=False, labelcolor="white"
        )
    return png(figure)


@dataclasses.dataclass(frozen=True, eq=False)
class Heat:
    """A heat map over a scan. `values` [D, H, W]: 0 to 1, oriented as the scan. `inside`: bool [D, H, W], the part of it that counts
    (outlined). None where there is no map."""

    title: str
    values: np.ndarray | None
    inside: np.ndarray | None


def heat_png(
    grey: np.ndarray, spacing: Sequence[float], rows: Sequence[tuple[str, np.ndarray, Sequence[Heat]]]
) -> bytes:
    """A row for each label: heat maps over the axial plane that holds most of the label.

    Args:
        grey: the scan [D, H, W], axes to the right, front and top (RAS).
        spacing: voxel size in mm along them.
        rows: label, its mask (bool [D, H, W], outlined in white), and its heat maps, as many for every label.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = max(len(heats) for _, _, heats in rows)
    figure = Figure(figsize=(3 * columns, 0.7 + 2.7 * len(rows)), facecolor="black")
    figure.set_layout_engine("constrained", h_pad=0.1)
    aspect = spacing[1] / spacing[0]
    low, high = np.percentile(grey, (1, 99))
    for line, (label, mask, heats) in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        at = _fullest(mask, 2)
        for axes, heat in zip(line, heats, strict=True):
            axes.imshow(_turned(grey[..., at], 2), cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect)
            if heat.values is not None:
                plane = _turned(heat.values[..., at], 2)
                axes.imshow(plane, cmap="inferno", vmin=0, vmax=1, alpha=0.65 * plane, aspect=aspect)
            for outline, colour in ((mask, "white"), (heat.inside, "#56B4E9")):
                if outline is not None and outline[..., at].any() and not outline[..., at].all():
                    axes.contour(_turned(outline[..., at], 2), levels=[0.5], colors=[colour], linewidths=1.1)
            axes.set_title(f"{label}, {heat.title}", color="white", fontsize=9)
            axes.set_axis_off()
    looks = (("white", "the label"), ("#56B4E9", "the part of the map above Otsu's threshold"))
    figure.legend(
        handles=[Line2D([], [], color=colour, label=name) for colour, name in looks],
        loc="outside lower center", ncols=2, fontsize=9, frameon=False, labelcolor="white",
    )  # fmt: skip
    return png(figure)


def _turned(plane: np.ndarray, axis: int) -> np.ndarray:
    """Rows from top to bottom; in axial and coronal planes the patient's right is on the viewer's left."""
    return plane.T[::-1] if axis == 0 else plane.T[::-1, ::-1]


def _fullest(mask: np.ndarray, axis: int) -> int:
    """The plane with the most labelled voxels; the middle one where there are none."""
    others = tuple(other for other in range(3) if other != axis)
    counts = np.count_nonzero(mask, axis=others)
    return int(counts.argmax()) if counts.any() else mask.shape[axis] // 2


def _coloured(indices: np.ndarray, table: Sequence[tuple[float, float, float]]) -> np.ndarray:
    """RGBA [rows, columns, 4], transparent where there is no label."""
    rgba = np.zeros((*indices.shape, 4))
    for index, colour in enumerate(table, start=1):
        rgba[indices == index] = (*colour, _OPACITY)
    return rgba


def _rgb(colour: str) -> tuple[float, float, float]:
    r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return r, g, b
