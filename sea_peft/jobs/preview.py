"""A picture of one prediction: axial, coronal and sagittal plane through the largest part of the mask, labels in colour."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np

from sea_peft.artefacts.palette import family_colours
from sea_peft.data.geometry import Geometry, whole_geometry
from sea_peft.data.volumes import Volume

_PLANES = ("sagittal", "coronal", "axial")  # by the axis they stand on: right, anterior, superior
_OPACITY = 0.45
_MOST_IN_LEGEND = 16


def preview_png(image: Volume, masks: Mapping[str, np.ndarray], labels: Sequence[str], geometry: Geometry) -> bytes:
    """Three planes with a mask over them, a row for each mask, as radiologists look at them: from the feet and from the front.

    Args:
        image: the scan.
        masks: title → label indices [I, J, K] on the scan's grid, 1..L in the order of `labels`. The planes are those in which most is
            labelled in any of them.
        labels: label names.
        geometry: the scan's geometry.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    upright = whole_geometry(geometry.shape, geometry.affine, "RAS", image.spacing)
    grey = upright.oriented(image.array)
    spacing = [image.spacing[axis] for axis in upright.axes]
    low, high = np.percentile(grey[:: max(1, grey.shape[0] // 64)], (1, 99))
    colours = family_colours(labels)
    table = [_rgb(colours[label]) for label in labels]
    anywhere = np.logical_or.reduce([upright.oriented(mask) > 0 for mask in masks.values()])
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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


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
