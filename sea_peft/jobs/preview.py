"""A picture of one prediction: axial, coronal and sagittal plane through the largest part of the mask, labels in colour."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from sea_peft.artefacts.palette import family_colours
from sea_peft.data.geometry import Geometry, whole_geometry
from sea_peft.data.volumes import Volume

_PLANES = ("sagittal", "coronal", "axial")  # by the axis they stand on: right, anterior, superior
_OPACITY = 0.45
_MOST_IN_LEGEND = 16


def preview_png(image: Volume, indices: np.ndarray, labels: Sequence[str], geometry: Geometry) -> bytes:
    """Three planes with the mask over them, as radiologists look at them: from the feet and from the front, the patient's right on the left.

    Args:
        image: the scan.
        indices: label indices [I, J, K] on the scan's grid, 1..L in the order of `labels`.
        labels: label names.
        geometry: the scan's geometry.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    upright = whole_geometry(geometry.shape, geometry.affine, "RAS", image.spacing)
    grey, mask = upright.oriented(image.array), upright.oriented(indices)
    spacing = [image.spacing[axis] for axis in upright.axes]
    low, high = np.percentile(grey[:: max(1, grey.shape[0] // 64)], (1, 99))
    colours = family_colours(labels)
    table = [_rgb(colours[label]) for label in labels]
    figure = Figure(figsize=(12, 4.8), facecolor="black")
    figure.set_layout_engine("constrained", h_pad=0.12)
    for axes, axis in zip(figure.subplots(1, 3), (2, 1, 0), strict=True):
        at = _fullest(mask, axis)
        plane, over = (np.take(a, at, axis=axis) for a in (grey, mask))
        across, up = (other for other in range(3) if other != axis)
        # rows downwards; in axial and coronal planes the patient's right is on the viewer's left
        turned = [a.T[::-1, ::-1] if axis != 0 else a.T[::-1] for a in (plane, over)]
        axes.imshow(turned[0], cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=spacing[up] / spacing[across])
        axes.imshow(_coloured(turned[1], table), aspect=spacing[up] / spacing[across], interpolation="nearest")
        axes.set_title(f"{_PLANES[axis]}, plane {at + 1} of {mask.shape[axis]}", color="white", fontsize=9)
        if axis != 0:
            for side, x in (("R", 0.02), ("L", 0.95)):
                axes.text(x, 0.02, side, transform=axes.transAxes, color="white", fontsize=9)
        axes.set_axis_off()
    present = [label for index, label in enumerate(labels, start=1) if (indices == index).any()]
    handles = [Patch(color=colours[label], label=label) for label in present[:_MOST_IN_LEGEND]]
    if handles:
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=8,
            fontsize=8,
            frameon=False,
            labelcolor="white",
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


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
