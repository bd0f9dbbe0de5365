"""Sampling an anatomy on a voxel grid: pose, smooth deformation, and the share of each part in
each voxel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sea_peft.phantom.patient import Anatomy, Waves
from sea_peft.phantom.shapes import Array, Points, Vector

KEEP = ""  # a part with this structure paints its tissue but keeps the label beneath it


@dataclass(frozen=True)
class Grid:
    """A voxel grid centred on the scanner's origin, axes R, A, S. Shape in voxels, spacing in
    mm.
    """

    shape: tuple[int, int, int] = (64, 64, 48)
    spacing: tuple[float, float, float] = (5.0, 5.0, 5.0)

    @property
    def affine(self) -> NDArray[np.float64]:
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = [axis[0] for axis in self.axes()]
        return affine

    def refined(self, factor: float) -> Grid:
        """The same field of view with `factor` times as many voxels along each axis."""
        shape = tuple(round(n * factor) for n in self.shape)
        spacing = tuple(s * n / m for s, n, m in zip(self.spacing, self.shape, shape, strict=True))
        return Grid((shape[0], shape[1], shape[2]), (spacing[0], spacing[1], spacing[2]))

    def axes(self) -> list[NDArray[np.float64]]:
        """Positions of the voxels' centres along each axis in mm."""
        return [
            (np.arange(n, dtype=np.float64) - (n - 1) / 2) * s
            for n, s in zip(self.shape, self.spacing, strict=True)
        ]


@dataclass(frozen=True)
class Layer:
    """One part on the grid: its box, its share of each voxel there (0..1), its tissue and
    structure.
    """

    where: tuple[slice, slice, slice]
    share: Array
    tissue: str
    structure: str


def sample(anatomy: Anatomy, grid: Grid) -> list[Layer]:
    """The parts of `anatomy` on `grid`, in painting order; parts outside the grid are left out."""
    points = _body_points(anatomy, grid)
    # a voxel that the surface crosses is shared between inside and outside: edges are anti-aliased,
    # not stepped
    width = np.float32(np.prod(grid.spacing) ** (1 / 3) / np.prod(anatomy.pose.scale) ** (1 / 3))
    layers = []
    for part in anatomy.parts:
        where = _window(anatomy, grid, part.shape.low, part.shape.high)
        if any(s.start >= s.stop for s in where):
            continue
        bumps = np.stack([bump[where] for bump in points.bumps])
        here = Points(points.x[where], points.y[where], points.z[where], bumps)
        share = np.clip(np.float32(0.5) - part.shape.distance(here) / width, 0, 1).astype(
            np.float32
        )
        if share.any():
            layers.append(Layer(where, share, part.tissue, part.structure))
    return layers


def label_map(
    layers: list[Layer], shape: tuple[int, int, int], structures: tuple[str, ...]
) -> NDArray[np.uint8]:
    """uint8 `[I, J, K]`: 0 for background, 1 + index into `structures` elsewhere; the last part
    painted wins.
    """
    codes = {name: i + 1 for i, name in enumerate(structures)}
    label = np.zeros(shape, dtype=np.uint8)
    for layer in layers:
        if layer.structure != KEEP:
            label[layer.where][layer.share > 0.5] = codes.get(layer.structure, 0)
    return label


def compose(
    layers: list[Layer], shape: tuple[int, int, int], values: dict[str, float], outside: float
) -> Array:
    """float32 `[I, J, K]`: the tissue values painted in order, each weighted by its share of
    the voxel.
    """
    image = np.full(shape, outside, dtype=np.float32)
    for layer in layers:
        view = image[layer.where]
        view += layer.share * (np.float32(values[layer.tissue]) - view)
    return image


def field_on(grid: Grid, waves: Waves) -> Array:
    """The field `waves` at the grid's voxels, float32 `[I, J, K]`.

    A plane wave is a product of one factor per axis, so no sine of a whole volume is computed.
    """
    total = np.zeros(grid.shape, dtype=np.float32)
    x, y, z = grid.axes()
    for k, phase, weight in zip(waves.vectors, waves.phases, waves.weights, strict=True):
        fx = (weight * np.exp(1j * (k[0] * x + phase)))[:, None]
        plane = (fx * np.exp(1j * k[1] * y)).astype(np.complex64)[:, :, None]
        along = np.exp(1j * k[2] * z).astype(np.complex64)
        total += plane.real * along.imag + plane.imag * along.real
    return total


def _body_points(anatomy: Anatomy, grid: Grid) -> Points:
    pose = anatomy.pose
    to_body = pose.rotation.T / np.asarray(pose.scale)[:, None]
    axes = [a - s for a, s in zip(grid.axes(), pose.shift, strict=True)]
    out = []
    for row, warp in zip(to_body, anatomy.warp, strict=True):
        plane = (row[0] * axes[0][:, None] + row[1] * axes[1][None, :]).astype(np.float32)
        straight = plane[:, :, None] + (row[2] * axes[2]).astype(np.float32)
        out.append(straight + field_on(grid, warp))
    bumps = np.stack([field_on(grid, b) for b in anatomy.bumps])
    return Points(out[0], out[1], out[2], bumps)


def _window(anatomy: Anatomy, grid: Grid, low: Vector, high: Vector) -> tuple[slice, slice, slice]:
    """The voxels that a box in body coordinates can reach under any deformation."""
    pose = anatomy.pose
    reach = [float(np.abs(w.weights).sum()) for w in anatomy.warp]
    sides = np.stack([np.subtract(low, reach), np.add(high, reach)])
    corners = np.array([[sides[i >> a & 1, a] for a in range(3)] for i in range(8)])
    world = corners @ (pose.rotation * np.asarray(pose.scale)).T + np.asarray(pose.shift)
    slices = []
    for a in range(3):
        first = (world[:, a].min() - grid.axes()[a][0]) / grid.spacing[a] - 1
        last = (world[:, a].max() - grid.axes()[a][0]) / grid.spacing[a] + 1
        n = grid.shape[a]
        slices.append(
            slice(int(np.clip(np.floor(first), 0, n)), int(np.clip(np.ceil(last) + 1, 0, n)))
        )
    return slices[0], slices[1], slices[2]
