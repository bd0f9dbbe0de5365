"""The surroundings of the organs: skin, fat, muscle wall, chest with lungs and ribs, spine, psoas,
and the table.
"""

import numpy as np

from sea_peft.phantom.shapes import Array, Part, Points, Shape, ellipsoid, shrink, tube, within

_FAR = 1e3  # half-length in mm of parts that run through the whole field of view
_SPINE_Y = -44.0
_PITCH = 32.0  # one lumbar vertebra with its disc


def cavity() -> Shape:
    """The inside of the abdominal wall: a superelliptic cylinder."""
    return _cylinder(120.0, 80.0, 8.0)


def walls(cavity: Shape, fat: float) -> list[Part]:
    """Table, skin and subcutaneous fat of thickness `fat` mm, muscle wall, back muscles,
    mesenteric fat.
    """
    body = _cylinder(120 + 11 + fat, 80 + 14 + 0.75 * fat, 2.0)
    floor = 2.0 - (80 + 14 + 0.75 * fat)
    table = Shape(
        lambda p: np.maximum(
            np.abs(p.y - np.float32(floor - 10) - p.x**2 / 900) - 6, np.abs(p.x) - 190
        ),
        (-190, floor - 18, -_FAR),
        (190, floor + 40, _FAR),
    )
    parts = [
        Part("other", table, "table"),
        Part("other", body, "muscle"),  # skin
        Part("other", shrink(body, 3), "fat"),
        Part("other", _cylinder(131, 89, 7.0), "muscle"),
    ]
    for side in (-1, 1):
        course = [(30 * side, -76, -300), (34 * side, -74, 0), (30 * side, -72, 300)]
        erector = tube(course, 25, (1.15, 0.8, 1))
        parts.append(Part("other", within(erector, shrink(body, 8).distance), "muscle"))
    return [*parts, Part("other", cavity, "fat")]


def chest(rng: np.random.Generator, cavity: Shape) -> list[Part]:
    """Lungs above the two domes of the diaphragm, heart, and the ribs around them."""
    apex = {1: rng.uniform(74, 90), -1: rng.uniform(60, 78)}
    gap = rng.uniform(24, 30)

    def lung(side: int) -> Shape:
        def distance(p: Points) -> Array:
            x = p.x * side
            dome = apex[side] - 50 * ((x - 62) / 60) ** 2 * (x > 62) - 34 * ((p.y - 10) / 80) ** 2
            dome -= np.float32(0.30) * np.maximum(-p.y - 10, 0)
            above = np.maximum(inner(p), (dome - p.z) * np.float32(0.8))
            return np.maximum(above, gap - x).astype(np.float32)

        low_x, high_x = (0.0, 125.0) if side > 0 else (-125.0, 0.0)
        return Shape(distance, (low_x, -80, -40), (high_x, 95, _FAR))

    inner = shrink(cavity, -1).distance
    centre = (rng.uniform(-26, -14), 28.0, rng.uniform(112, 124))
    heart = ellipsoid(centre, (56, 44, 40))
    pericardial_fat = within(shrink(heart, -5), inner)
    mediastinum = Shape(
        lambda p: np.maximum(np.maximum(inner(p), np.abs(p.x) - 30), 88 - p.z),
        (-30, -80, 80),
        (30, 95, _FAR),
    )
    parts = [Part("other", mediastinum, "muscle")]
    parts += [Part("lungs", lung(side), "lung") for side in (1, -1)]
    parts += [Part("other", pericardial_fat, "fat"), Part("other", within(heart, inner), "heart")]
    return [*parts, Part("other", _ribs(rng), "cortical_bone")]


def psoas(rng: np.random.Generator, size: float) -> list[Part]:
    """The psoas muscles, beside the lumbar spine and wider towards the pelvis."""
    bow = rng.uniform(0, 6)
    parts = []
    for side in (-1, 1):
        quadratus = tube([(62 * side, -58, 0), (70 * side, -56, -130)], 15, (1.3, 0.7, 1))
        upper = [(24 * side, -44, 12), (32 * side, -42, -35)]
        path = [*upper, ((39 + bow) * side, -36, -85), ((45 + bow) * side, -26, -130)]
        parts.append(Part("other", quadratus, "muscle"))
        parts.append(Part("psoas", tube(path, np.multiply([6, 16, 21, 22], size)), "muscle"))
    return parts


def spine() -> list[Part]:
    """Vertebral bodies with discs, pedicles, transverse and spinous processes; the canal lies
    open inside.
    """
    length = ((-44.0, -100.0, -_FAR), (44.0, -20.0, _FAR))

    def body(p: Points) -> Array:
        waist = 1 + np.float32(0.07) * np.cos(p.z * np.float32(2 * np.pi / _PITCH))
        q = np.sqrt((p.x / 23) ** 2 + ((p.y - _SPINE_Y) / 18) ** 2) / waist
        return ((q - 1) * 18).astype(np.float32)

    def disc(p: Points) -> Array:
        return np.maximum(body(p) + np.float32(0.5), _from_disc(p) - np.float32(4.0))

    def arch(p: Points) -> Array:
        level = np.float32(_PITCH / 2) - _from_disc(p)  # distance from the middle of the vertebra
        ring = np.abs(np.sqrt(p.x**2 + (p.y + 70) ** 2) - 12) - np.float32(3.5)
        ring = np.maximum(ring, level - 13)
        spinous = np.maximum(np.maximum(np.abs(p.x) - 4, np.abs(p.y + 86) - 10), level - 10)
        transverse = np.maximum(np.maximum(np.abs(p.x) - 38, np.abs(p.y + 64) - 4.5), level - 5)
        return np.minimum(ring, np.minimum(spinous, transverse)).astype(np.float32)

    def marrow(p: Points) -> Array:
        return np.maximum(body(p) + np.float32(2.5), np.float32(6.0) - _from_disc(p))

    canal = tube([(0, -70, -300), (0, -70, 300)], 9)
    return [
        Part("spine", Shape(arch, *length), "cortical_bone"),
        Part("other", canal, "cerebrospinal_fluid"),
        Part("spine", Shape(body, *length), "cortical_bone"),
        Part("spine", Shape(disc, *length), "disc"),
        Part("spine", Shape(marrow, *length), "cancellous_bone"),
    ]


def screws(rng: np.random.Generator) -> list[Part]:
    """Pedicle screws in two neighbouring vertebrae, and a rod on either side; labelled as the
    tissue that they replace.
    """
    level = _PITCH * (rng.integers(-2, 1) + 0.5)
    parts = []
    for side in (-1, 1):
        for z in (level, level + _PITCH):
            parts.append(Part("", tube([(22 * side, -88, z), (9 * side, -38, z)], 3.5), "metal"))
        rod = [(24 * side, -90, level - 8), (24 * side, -90, level + _PITCH + 8)]
        parts.append(Part("", tube(rod, 3.5), "metal"))
    return parts


def _cylinder(half_x: float, half_y: float, centre_y: float) -> Shape:
    """A superelliptic cylinder along z. Its distance is measured along the ray from the axis."""

    def distance(p: Points) -> Array:
        y = p.y - np.float32(centre_y)
        power = np.float32(2.5)
        q = (np.abs(p.x / half_x) ** power + np.abs(y / half_y) ** power) ** (1 / power)
        return ((1 - 1 / np.maximum(q, 1e-3)) * np.sqrt(p.x**2 + y**2)).astype(np.float32)

    return Shape(distance, (-half_x, centre_y - half_y, -_FAR), (half_x, centre_y + half_y, _FAR))


def _ribs(rng: np.random.Generator) -> Shape:
    """Ribs in the wall of the chest, sloping down to the front, down to an arched costal margin."""
    wall = _cylinder(126, 84.5, 7.5).distance
    start = np.float32(rng.uniform(0, 30))

    def distance(p: Points) -> Array:
        around = np.arctan2(p.y + 20, np.abs(p.x) + 1)  # -pi/2 at the back, pi/2 at the front
        height = p.z + np.float32(26) * around + start
        beside = np.abs(np.mod(height, np.float32(29)) - np.float32(14.5)) - np.float32(5)
        margin = -38 + 40 * (around + 0.4) - p.z  # no ribs below the costal margin
        return np.maximum(np.maximum(np.abs(wall(p)) - np.float32(4), beside), margin).astype(
            np.float32
        )

    return Shape(distance, (-131, -82, -80), (131, 97, _FAR))


def _from_disc(p: Points) -> Array:
    return np.abs(np.mod(p.z + np.float32(_PITCH / 2), np.float32(_PITCH)) - np.float32(_PITCH / 2))
