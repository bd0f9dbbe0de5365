"""Outlines of masks as closed polygons, for formats that hold contours instead of voxels."""

from __future__ import annotations

import itertools

import numpy as np

_HALF = 0.5  # between the values of background and mask
_BEND = 0.1  # voxels


def outlines(plane: np.ndarray) -> list[np.ndarray]:
    """The outline of each part of a plane, halfway between the voxels inside and those outside.

    Holes are joined to their outline by a channel of no width (a keyhole), so that every part is
    one polygon and no reader has to know which contours are holes. A voxel is in the mask exactly
    where its centre is in a polygon. Voxels that share a corner alone are of one part or of two.

    Args:
        plane: bool, `[rows, columns]`.

    Returns:
        For each part its corners `[n, 2]` as (column, row), in voxels from the first voxel's centre
            on. The last corner is joined to the first, which is not repeated.

    Examples:
        >>> (part,) = outlines(np.array([[True]]))
        >>> part.tolist()
        [[-0.5, 0.0], [0.0, -0.5], [0.5, 0.0], [0.0, 0.5]]
    """
    from contourpy import FillType, contour_generator

    if not plane.any():
        return []
    framed = np.pad(plane, 1).astype(np.float64)  # so that parts at the border are closed
    made = contour_generator(z=framed, fill_type=FillType.OuterOffset).filled(_HALF, 2.0)
    parts = []
    for corners, offsets in zip(*made, strict=True):
        outer, *holes = (
            corners[begin : end - 1] - 1.0 for begin, end in itertools.pairwise(offsets)
        )
        parts.append(_without_needless(_joined(outer, holes)))
    return parts


def _joined(outer: np.ndarray, holes: list[np.ndarray]) -> np.ndarray:
    """One ring of an outline and its holes, each joined where it is nearest to the ring so far.

    Neighbouring corners are at most a voxel apart, so that the way between the nearest two crosses
    no other ring. It is bent, since it would often lead through the centre of a voxel, and readers
    differ on what lies on a border.
    """
    from scipy.spatial import cKDTree

    ring, left = outer, list(holes)
    while left:
        tree = cKDTree(ring)
        found = [tree.query(hole) for hole in left]
        number = int(np.argmin([distances.min() for distances, _ in found]))
        distances, nearest = found[number]
        there = int(distances.argmin())
        here = int(nearest[there])
        hole = np.roll(left.pop(number), -there, axis=0)
        way = hole[0] - ring[here]
        bend = ring[[here]] + way / 2 + _BEND * np.array([-way[1], way[0]]) / np.hypot(*way)
        # there and round the hole, back, and on from the same corner
        ring = np.concatenate([ring[: here + 1], bend, hole, hole[:1], bend, ring[here:]])
    return ring


def _without_needless(ring: np.ndarray) -> np.ndarray:
    """The ring without corners at which it goes straight on."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turn = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    straight = (turn == 0) & ((before * after).sum(axis=1) > 0)
    return ring[~straight]
