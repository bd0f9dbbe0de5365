"""A randomised brain with a glioma: the anatomy of one patient, independent of any scanner.

Coordinates are in mm: x to the patient's right, y to the front, z up, with the origin between the
thalami. Only what skull stripping leaves is drawn. Positions and sizes are those of a schematic
adult. Every case draws its own pose, deformation, gyri, ventricles and tumour. Parts are painted in
order, later ones over earlier ones.
"""

import numpy as np

from sea_peft.phantom.patient import Anatomy, Build, Pose, draw_waves
from sea_peft.phantom.shapes import (
    Part,
    Points,
    Shape,
    as_vector,
    bumpy,
    distance_at,
    ellipsoid,
    half_space,
    minus,
    rotation,
    shrink,
    tube,
    union,
    within,
)

# Label code = 1 + index, as in BraTS since 2023; a name is a part of the tumour, and the three do
# not overlap.
TUMOUR = ("necrotic", "oedema", "enhancing")

_OFF_MIDLINE = 24.0  # mm from the midline to the nearest centre of a tumour


def draw_brain(case: int, build: Build) -> Anatomy:
    """The patient with number `case`. The same number and build always give the same patient."""
    rng = np.random.default_rng([30, case])
    pose = Pose(
        rotation(rng.uniform(-4, 4), rng.uniform(-4, 4), rng.uniform(-4, 4)),
        as_vector(rng.uniform(*build.scale) * rng.uniform(0.96, 1.04, 3)),
        as_vector(rng.uniform(-4, 4, 3)),
    )
    warp = tuple(draw_waves(rng, 3, (90, 200), 1.6) for _ in range(3))
    gyri = tuple(draw_waves(rng, 10, (15, 27), 0.45) for _ in range(2))
    coarse = draw_waves(rng, 5, (30, 60), 0.5)
    return Anatomy(
        case=case, pose=pose, warp=warp, bumps=(*gyri, coarse), parts=tuple(_parts(rng, build))
    )


def _parts(rng: np.random.Generator, build: Build) -> list[Part]:
    hemispheres = _hemispheres()
    cortex = bumpy(
        shrink(hemispheres, 1.5), (2.6, 2.6, 0.8)
    )  # sulci, where the fluid between them shows
    white = bumpy(shrink(hemispheres, 9.5), (4.5, 4.5, 0.8))
    atrophy = float(rng.uniform(0, 1))  # the older the patient, the wider the fluid spaces
    cerebellum = bumpy(ellipsoid((0, -48, -38), (50, 34, 27)), (0.8, 0.8, 0))
    stem = tube([(0, -12, -8), (0, -16, -34), (0, -24, -90)], [15, 14, 9])
    parts = [
        Part("other", shrink(union(hemispheres, cerebellum, 4), -2.5), "cerebrospinal_fluid"),
        Part("other", shrink(cortex, 1.2 * atrophy), "grey_matter"),
        Part("other", white, "white_matter"),
        Part("other", _fissure(1.2 + atrophy), "cerebrospinal_fluid"),
        Part("other", within(_slab(0.8), hemispheres.distance), "dura"),
        *(_sylvian(side, 2.0 + 1.5 * atrophy) for side in (-1, 1)),
        Part("other", cerebellum, "grey_matter"),
        Part("other", bumpy(shrink(cerebellum, 9), (2.0, -2.0, 0)), "white_matter"),
        Part("other", stem, "white_matter"),
        Part("other", within(_callosum(), hemispheres.distance), "white_matter"),
    ]
    for side in (-1, 1):
        parts += _deep_nuclei(side)
    oedema, core = _tumour(rng, build, within(white, hemispheres.distance))
    parts += _gliosis(rng, int(rng.integers(0, 5)))
    parts += oedema
    for side in (-1, 1):
        parts += _ventricle(rng, side, 0.85 + 0.5 * atrophy)
    third = ellipsoid((0, -2, 2), (2.2 + 1.5 * atrophy, 13, 10))
    fourth = ellipsoid((0, -36, -38), (7, 5, 9))
    parts += [Part("other", shape, "cerebrospinal_fluid") for shape in (third, fourth)]
    return [*parts, *core]


def _hemispheres() -> Shape:
    """Both hemispheres in one: frontal to occipital, with the temporal lobes below."""
    upper = minus(ellipsoid((0, 0, 10), (66, 84, 56)), half_space((0, 0, -1), 14), 16)
    lobes = [ellipsoid((side * 45, 6, -20), (19, 38, 18), rotation(x=-6)) for side in (-1, 1)]
    return union(union(upper, lobes[0], 10), lobes[1], 10)


def _slab(half: float) -> Shape:
    """The midline, `half` mm to either side, above the corpus callosum and in front of and
    behind it.
    """

    def distance(p: Points) -> np.ndarray:
        inside = np.sqrt((p.y / 46) ** 2 + ((p.z - 6) / 26) ** 2) * 26 - 26
        return np.maximum(np.abs(p.x) - np.float32(half), -inside).astype(np.float32)

    return Shape(distance, (-half, -90, -60), (half, 90, 80))


def _fissure(half: float) -> Shape:
    return within(_slab(half), half_space((0, 0, 1), -30))


def _sylvian(side: int, radius: float) -> Part:
    course = [(side * 38, 32, -10), (side * 56, 20, -4), (side * 63, 0, 4), (side * 62, -22, 12)]
    return Part(
        "other", tube(course, [radius, 1.4 * radius, radius, 0.7 * radius]), "cerebrospinal_fluid"
    )


def _callosum() -> Shape:
    return tube(
        [(0, 34, 6), (0, 28, 20), (0, 4, 28), (0, -26, 24), (0, -34, 12)],
        [4, 4, 4, 4, 5],
        (5, 1, 1),
    )


def _deep_nuclei(side: int) -> list[Part]:
    caudate = tube([(side * 12, 24, 6), (side * 15, 10, 20), (side * 20, -14, 20)], [6, 5, 3])
    putamen = ellipsoid((side * 26, 5, 2), (5.5, 17, 11), rotation(z=side * -8))
    thalamus = ellipsoid((side * 11, -12, 6), (8.5, 15, 10), rotation(z=side * 15))
    return [Part("other", shape, "grey_matter") for shape in (caudate, putamen, thalamus)]


def _ventricle(rng: np.random.Generator, side: int, size: float) -> list[Part]:
    """One lateral ventricle with its horns, and the choroid plexus in it, which takes up
    contrast agent.
    """
    size *= float(rng.uniform(0.85, 1.15))
    body = [
        (side * 7, 34, 8),
        (side * 9, 16, 19),
        (side * 13, -10, 23),
        (side * 22, -32, 15),
        (side * 24, -52, 8),
    ]
    horn = [(side * 22, -32, 15), (side * 33, -22, -10), (side * 35, -2, -20)]
    plexus = [(side * 17, -22, 19), (side * 22, -33, 13), (side * 28, -27, 2)]
    return [
        Part("other", tube(body, np.multiply([4, 5.5, 5.5, 7, 3], size)), "cerebrospinal_fluid"),
        Part("other", tube(horn, np.multiply([5, 3, 2.5], size)), "cerebrospinal_fluid"),
        Part("other", tube(plexus, 2.2), "choroid_plexus"),
    ]


def _gliosis(rng: np.random.Generator, count: int) -> list[Part]:
    """Old small-vessel damage beside the ventricles: bright in T2 and FLAIR like oedema, but
    not tumour.
    """
    parts = []
    for _ in range(count):
        side = rng.choice((-1, 1))
        centre = (side * rng.uniform(22, 32), rng.uniform(-40, 38), rng.uniform(18, 32))
        parts.append(Part("other", ellipsoid(centre, rng.uniform(3, 6, 3)), "gliosis"))
    return parts


def _tumour(rng: np.random.Generator, build: Build, white: Shape) -> tuple[list[Part], list[Part]]:
    """Oedema, which keeps to the white matter, and the core: an enhancing rim around necrosis,
    both uneven.
    """
    radius = float(rng.uniform(*build.lesion_radius))
    while True:
        side = float(rng.choice((-1, 1)))
        centre = np.array(
            (side * rng.uniform(_OFF_MIDLINE, 46), rng.uniform(-52, 48), rng.uniform(-4, 42))
        )
        if distance_at(white, centre) < -6:
            break
    turn = rotation(*rng.uniform(-90, 90, 3))
    spread = ellipsoid(centre, radius * rng.uniform(0.8, 1.2, 3) + rng.uniform(6, 20), turn)
    lobe = ellipsoid(centre + rng.uniform(-14, 14, 3), radius + rng.uniform(4, 12, 3))
    oedema = within(bumpy(union(spread, lobe, 10), (1.5, -1.5, 4.0)), white.distance, 2)
    mass = bumpy(
        ellipsoid(centre, radius * rng.uniform(0.8, 1.2, 3), turn), (1.0, 0.8, 0.16 * radius)
    )
    necrosis = bumpy(shrink(mass, rng.uniform(0.3, 0.5) * radius), (1.0, -0.8, -0.1 * radius))
    return [Part("oedema", oedema, "oedema")], [
        Part("enhancing", mass, "tumour"),
        Part("necrotic", necrosis, "necrosis"),
    ]
