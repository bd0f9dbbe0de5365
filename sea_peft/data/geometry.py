"""From a scan's own grid to the recipe's grid, and exactly back.

There are three steps, each invertible: axes are permuted and flipped to the recipe's orientation
(without interpolation), the foreground box is cut out, and the box is resampled to the recipe's
spacing. Resampling is linear and separable, and both grids share their centre, so nothing shifts.
An axis that already has the recipe's spacing is untouched. In nnU-Net's way both grids share their
ends instead, so a voxel may differ a little from the recipe's spacing, and along the axis of thick
slices the nearest slice is taken.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sea_peft.data.as_nnunet import thick_axis
from sea_peft.data.recipe import Resampler
from sea_peft.data.resample import ReadPlanes, resampled

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False, kw_only=True)
class Geometry:
    """Everything needed to bring a prediction back to the input's own grid.

    Attributes:
        shape: input voxels `(I, J, K)`.
        affine: input affine, 4×4, RAS+ mm.
        axes: for each oriented axis (D, H, W), the input axis that it runs along.
        flips: for each oriented axis, whether it runs against that input axis.
        start: first oriented voxel of the cropped box.
        size: oriented voxels of the cropped box.
        step: input voxels per recipe voxel along D, H, W (1 = this axis is not resampled).
        grid: recipe voxels `(D, H, W)`.
        resampler: how the box is resampled.
        nearest: the axis along which the nearest voxel is taken, to the recipe's grid and back.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    start: tuple[int, int, int]
    size: tuple[int, int, int]
    step: tuple[float, float, float]
    grid: tuple[int, int, int]
    resampler: Resampler = "linear"
    nearest: tuple[int | None, int | None] = (None, None)

    def oriented(self, array: np.ndarray) -> np.ndarray:
        """A view of the input array `[I, J, K]` with the recipe's axes, before cropping."""
        turned = array.transpose(self.axes)
        return turned[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres of a recipe voxel along D, H, W."""
        own = np.linalg.norm(self.affine[:3, :3], axis=0)
        d, h, w = (float(own[axis]) * step for axis, step in zip(self.axes, self.step, strict=True))
        return d, h, w

    @property
    def voxel_millilitres(self) -> float:
        """Volume of an input voxel."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def box(self) -> Box:
        """The cropped box in the oriented array."""
        d, h, w = (slice(a, a + n) for a, n in zip(self.start, self.size, strict=True))
        return d, h, w

    def boxed(self, array: np.ndarray) -> ReadPlanes:
        """Planes of the cropped box of the input array `[I, J, K]`, as float32 `[1, n, h, w]`."""
        view = self.oriented(array)[self.box]
        return lambda a, b: torch.from_numpy(np.array(view[a:b], dtype=np.float32, order="C"))[None]

    def grid_slabs(self, read: ReadPlanes, channels: int) -> Iterator[tuple[slice, Tensor]]:
        """Resample the cropped box to the recipe's grid, a few planes at a time.

        Args:
            read: planes of the box, `[K, n, h, w]`.
            channels: K.

        Yields:
            Planes D of the recipe's grid, and their values `[K, n, H, W]`.
        """
        at = [self._box_coordinates(axis) for axis in range(3)]
        for start, slab in resampled(read, at, channels, self.size[1] * self.size[2]):
            yield slice(start, start + slab.shape[1]), slab

    def labels_to_grid(self, indices: np.ndarray, count: int) -> Tensor:
        """Resample label indices `[I, J, K]` (0..count) to the grid, uint8 `[D, H, W]`: the
        strongest one-hot wins.
        """
        view = self.oriented(indices)[self.box]
        if self.size == self.grid and self.step == (1.0, 1.0, 1.0):
            return torch.from_numpy(np.array(view, dtype=np.uint8, order="C"))
        wanted = torch.arange(1, count + 1, dtype=torch.uint8)[:, None, None, None]

        def one_hot(a: int, b: int) -> Tensor:
            return (
                torch.from_numpy(np.array(view[a:b], dtype=np.uint8, order="C"))[None] == wanted
            ).float()

        labels = torch.zeros(self.grid, dtype=torch.uint8)
        for part, strengths in self.grid_slabs(one_hot, count):
            best, winner = strengths.max(dim=0)
            # the background has the rest, and keeps a voxel unless a label exceeds it
            labels[part] = torch.where(best > 1 - strengths.sum(dim=0), winner + 1, 0).to(
                torch.uint8
            )
        return labels

    def slabs(
        self, read: ReadPlanes, channels: int, region: Box | None = None
    ) -> Iterator[tuple[Box, Tensor]]:
        """Bring values on the recipe's grid back to the cropped box, a few planes at a time.

        Args:
            read: planes of the recipe's grid, `[K, n, H, W]`.
            channels: K.
            region: the part of the recipe's grid that matters; None for all of it. Only box voxels
                that depend on it are visited.

        Yields:
            A part of the cropped box, and its values `[K, d, h, w]`.
        """
        region = region or (slice(0, self.grid[0]), slice(0, self.grid[1]), slice(0, self.grid[2]))
        part: list[slice] = []
        at: list[Tensor] = []
        needed: list[slice] = []
        for axis, span in enumerate(region):
            coordinates = self._grid_coordinates(axis).clamp(0, self.grid[axis] - 1)
            touched = torch.nonzero(
                (coordinates > span.start - 1) & (coordinates < span.stop)
            ).ravel()
            if not len(touched):
                return
            part.append(slice(int(touched[0]), int(touched[-1]) + 1))
            first = max(0, span.start - 1)
            needed.append(slice(first, min(self.grid[axis], span.stop + 1)))
            at.append(coordinates[part[axis]] - (first if axis else 0))

        def planes(a: int, b: int) -> Tensor:
            return read(a, b)[:, :, needed[1], needed[2]]

        plane = (needed[1].stop - needed[1].start) * (needed[2].stop - needed[2].start)
        for start, slab in resampled(planes, at, channels, plane):
            low = part[0].start + start
            yield (slice(low, low + slab.shape[1]), part[1], part[2]), slab

    def to_input(self, oriented: np.ndarray) -> np.ndarray:
        """Undo `oriented`: the array on the input's own axes, contiguous."""
        turned = oriented[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]
        return np.ascontiguousarray(turned.transpose(np.argsort(self.axes)))

    @property
    def oriented_shape(self) -> tuple[int, int, int]:
        """Voxels of the whole input along the recipe's axes."""
        d, h, w = (self.shape[axis] for axis in self.axes)
        return d, h, w

    def _box_coordinates(self, axis: int) -> Tensor:
        """The positions of the recipe's voxels in the box, in box voxels."""
        n, m, step = self.size[axis], self.grid[axis], self.step[axis]
        at = (torch.arange(m, dtype=torch.float64) + 0.5 - m / 2) * step + (n / 2 - 0.5)
        return (at + 0.5).floor() if axis == self.nearest[0] else at

    def _grid_coordinates(self, axis: int) -> Tensor:
        """The positions of the box's voxels in the recipe's grid, in recipe voxels."""
        n, m, step = self.size[axis], self.grid[axis], self.step[axis]
        at = (torch.arange(n, dtype=torch.float64) + 0.5 - n / 2) / step + (m / 2 - 0.5)
        return (at + 0.5).floor() if axis == self.nearest[1] else at


def whole_geometry(
    shape: tuple[int, int, int],
    affine: np.ndarray,
    orientation: str,
    spacing: tuple[float, float, float],
    resampler: Resampler = "linear",
) -> Geometry:
    """The geometry of an uncropped scan.

    Args:
        shape: input voxels.
        affine: input affine, RAS+ mm. Oblique axes go to the nearest body axis; the grid is not
            rotated.
        orientation: axis codes of the recipe, for instance `RAS`.
        spacing: voxel size of the recipe along D, H, W in millimetres.
        resampler: how the scan will be resampled.
    """
    from nibabel import orientations

    to_ras = orientations.io_orientation(affine)
    change = orientations.ornt_transform(to_ras, orientations.axcodes2ornt(tuple(orientation)))
    axes = [0, 0, 0]
    flips = [False, False, False]
    for source, (target, sign) in enumerate(change):
        axes[int(target)] = source
        flips[int(target)] = sign < 0
    lengths = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    d, h, w = axes
    size = (shape[d], shape[h], shape[w])
    step = (spacing[0] / lengths[d], spacing[1] / lengths[h], spacing[2] / lengths[w])
    flipped = (flips[0], flips[1], flips[2])
    nearest: tuple[int | None, int | None] = (None, None)
    if resampler == "nnunet":
        own = [float(lengths[axis]) for axis in axes]
        nearest = thick_axis(own, list(spacing)), thick_axis(list(spacing), own)
    whole = Geometry(
        shape=shape,
        affine=affine,
        axes=(d, h, w),
        flips=flipped,
        start=(0, 0, 0),
        size=size,
        step=step,
        grid=size,
        resampler=resampler,
        nearest=nearest,
    )
    return crop(whole, (0, 0, 0), size)


def crop(geometry: Geometry, start: tuple[int, int, int], size: tuple[int, int, int]) -> Geometry:
    """The same geometry for the box at `start` of `size` voxels in the oriented scan, before
    resampling.
    """
    # A spacing that differs in the last digits only is the same: resampling would only blur
    steps = [
        1.0 if abs(s - 1) * n < 0.05 else float(s) for s, n in zip(geometry.step, size, strict=True)
    ]
    d, h, w = (max(1, round(n / s)) for s, n in zip(steps, size, strict=True))
    if geometry.resampler == "nnunet":
        steps = [n / m for n, m in zip(size, (d, h, w), strict=True)]
    step = (steps[0], steps[1], steps[2])
    return dataclasses.replace(geometry, start=start, size=size, step=step, grid=(d, h, w))
