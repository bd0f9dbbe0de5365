"""Implicit shapes in millimetres: signed distances (negative inside), unions, cuts, tubes along
splines.

Every shape is a function of position, so that one anatomy can be sampled on any grid. Distances are
exact for tubes and planes and first-order near the surface for ellipsoids, which is all that
sub-voxel edges need.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float32]
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Points:
    """Positions in body coordinates (mm; x to the right, y to the front, z up), with bump fields of
    amplitude 1.

    The bumps are smooth random fields of position. Shapes add a little of them to their distance,
    so that no organ is a perfect ellipsoid.
    """

    x: Array
    y: Array
    z: Array
    bumps: Array  # [3, ...]


Distance = Callable[[Points], Array]


@dataclass(frozen=True)
class Shape:
    """A signed distance and the box (mm, body coordinates) outside of which it is positive."""

    distance: Distance
    low: Vector
    high: Vector


@dataclass(frozen=True)
class Part:
    """A shape filled with a tissue. `structure` is its label: "other" for none, "" to keep what
    is there.
    """

    structure: str
    shape: Shape
    tissue: str


def ellipsoid(
    centre: ArrayLike, radii: ArrayLike, rotation: NDArray[np.float64] | None = None
) -> Shape:
    """Ellipsoid with half-axes `radii` along the columns of `rotation` (3x3, identity if None)."""
    axes = np.eye(3) if rotation is None else rotation
    half = np.sqrt(((axes * np.asarray(radii)) ** 2).sum(axis=1))
    inverse = (axes / np.asarray(radii)).T.astype(np.float32)  # rows map to the unit sphere
    inverse2 = (axes / np.asarray(radii) ** 2).T.astype(np.float32)
    c = np.asarray(centre, dtype=np.float32)

    def distance(p: Points) -> Array:
        x, y, z = p.x - c[0], p.y - c[1], p.z - c[2]
        k0 = np.sqrt(sum((m[0] * x + m[1] * y + m[2] * z) ** 2 for m in inverse))
        k1 = np.sqrt(sum((m[0] * x + m[1] * y + m[2] * z) ** 2 for m in inverse2))
        return (k0 * (k0 - 1) / np.maximum(k1, 1e-6)).astype(np.float32)

    return Shape(distance, as_vector(c - half), as_vector(c + half))


def tube(points: ArrayLike, radii: ArrayLike, flatten: Vector = (1, 1, 1)) -> Shape:
    """A tube along a Catmull-Rom spline through `points` (mm), its radius running linearly between
    `radii`.

    `flatten` stretches the cross-section: the tube is `flatten` times as wide along each axis.
    """
    path = np.asarray(points, dtype=float)
    r = np.broadcast_to(np.asarray(radii, dtype=float), (len(path),))
    squash = np.asarray(flatten, dtype=np.float32)
    line = _catmull_rom(np.column_stack([path / squash, r]), per_segment=3)
    line = line.astype(np.float32)

    def distance(p: Points) -> Array:
        x, y, z = p.x / squash[0], p.y / squash[1], p.z / squash[2]
        best: Array | None = None
        for a, b in pairwise(line):
            d = b[:3] - a[:3]
            ax, ay, az = x - a[0], y - a[1], z - a[2]
            t = np.clip((ax * d[0] + ay * d[1] + az * d[2]) / max(float(d @ d), 1e-6), 0, 1)
            away = np.sqrt((ax - t * d[0]) ** 2 + (ay - t * d[1]) ** 2 + (az - t * d[2]) ** 2)
            here = away - (a[3] + t * (b[3] - a[3]))
            best = here if best is None else np.minimum(best, here)
        assert best is not None
        return best.astype(np.float32)

    reach = line[:, 3:4]
    low, high = ((line[:, :3] - reach) * squash).min(0), ((line[:, :3] + reach) * squash).max(0)
    return Shape(distance, as_vector(low), as_vector(high))


def union(a: Shape, b: Shape, blend: float) -> Shape:
    """Smooth union (polynomial smooth minimum); `blend` in mm is the width of the fillet
    between the two.
    """
    return Shape(
        lambda p: smooth_min(a.distance(p), b.distance(p), blend),
        as_vector(np.minimum(a.low, b.low) - blend / 4),
        as_vector(np.maximum(a.high, b.high) + blend / 4),
    )


def minus(a: Shape, b: Distance, blend: float) -> Shape:
    """`a` without `b`, with the edge rounded over `blend` mm."""
    return Shape(lambda p: -smooth_min(-a.distance(p), b(p), blend), a.low, a.high)


def within(a: Shape, b: Distance, blend: float = 1.0) -> Shape:
    """The part of `a` that lies in `b`."""
    return Shape(lambda p: -smooth_min(-a.distance(p), -b(p), blend), a.low, a.high)


def shrink(a: Shape, by: float) -> Shape:
    """`a` with its surface moved inwards by `by` mm (outwards if negative)."""
    grow = max(-by, 0.0)
    low, high = as_vector(np.subtract(a.low, grow)), as_vector(np.add(a.high, grow))
    return Shape(lambda p: a.distance(p) + np.float32(by), low, high)


def bumpy(a: Shape, weights: ArrayLike) -> Shape:
    """`a` with its surface moved by the bump fields, `weights` in mm."""
    w = np.asarray(weights, dtype=np.float32)
    reach = float(np.abs(w).sum())
    return Shape(
        lambda p: a.distance(p) + np.tensordot(w, p.bumps, axes=1),
        as_vector(np.subtract(a.low, reach)),
        as_vector(np.add(a.high, reach)),
    )


def half_space(normal: Vector, offset: float) -> Distance:
    """The points with normal . p > offset; `normal` need not have unit length."""
    length = float(np.linalg.norm(normal))
    n = np.asarray(normal, dtype=np.float32) / np.float32(length)
    d = np.float32(offset / length)
    return lambda p: d - (n[0] * p.x + n[1] * p.y + n[2] * p.z)


def smooth_min(a: Array, b: Array, blend: float) -> Array:
    h = np.maximum(blend - np.abs(a - b), 0) / np.float32(blend)
    return (np.minimum(a, b) - h * h * np.float32(blend / 4)).astype(np.float32)


def rotation(x: float = 0, y: float = 0, z: float = 0) -> NDArray[np.float64]:
    """Rotation matrix from angles in degrees about the x, then y, then z axis."""
    a, b, c = np.radians([x, y, z])
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return rz @ ry @ rx


def _catmull_rom(control: NDArray[np.float64], per_segment: int) -> NDArray[np.float64]:
    ends = np.concatenate(
        [2 * control[:1] - control[1:2], control, 2 * control[-1:] - control[-2:-1]]
    )
    t = np.linspace(0, 1, per_segment, endpoint=False)[:, None]
    pieces = []
    for p0, p1, p2, p3 in zip(ends[:-3], ends[1:-2], ends[2:-1], ends[3:], strict=True):
        quadratic, cubic = 2 * p0 - 5 * p1 + 4 * p2 - p3, 3 * p1 - p0 - 3 * p2 + p3
        pieces.append(0.5 * (2 * p1 + (p2 - p0) * t + quadratic * t**2 + cubic * t**3))
    return np.concatenate([*pieces, control[-1:]])


def as_vector(v: NDArray[np.floating]) -> Vector:
    """Three floats, as frozen dataclasses hold them."""
    return float(v[0]), float(v[1]), float(v[2])


def distance_at(shape: Shape, place: ArrayLike) -> float:
    """The signed distance of one place from the shape, bumps left out."""
    x, y, z = np.asarray(place, dtype=np.float32).reshape(3, 1)
    return float(shape.distance(Points(x, y, z, np.zeros((3, 1), dtype=np.float32)))[0])
