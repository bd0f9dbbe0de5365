"""A randomised abdomen: the anatomy of one patient, independent of any scanner.

Body coordinates are in mm, x to the patient's right, y to the front, z up, with the origin near the
first lumbar vertebra. Positions and sizes are those of a schematic adult. Every case draws its own
pose, organ sizes, organ positions, surface bumps and a smooth deformation of the whole. Parts are
painted in order, later ones over earlier ones, so neighbours touch without gaps.
"""

import numpy as np
from numpy.typing import NDArray

from sea_peft.phantom import bowel, torso
from sea_peft.phantom.patient import Anatomy, Build, Pose, draw_waves
from sea_peft.phantom.shapes import (
    Part,
    Shape,
    Vector,
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


def draw_abdomen(case: int, build: Build) -> Anatomy:
    """The patient with number `case`. The same number and build always give the same patient."""
    rng = np.random.default_rng([20, case])
    size = rng.uniform(*build.scale)
    pose = Pose(
        rotation(rng.uniform(-3, 3), rng.uniform(-3, 3), rng.uniform(-5, 5)),
        as_vector(size * rng.uniform(0.96, 1.04, 3)),
        as_vector(size * rng.uniform(-8, 8, 3)),
    )
    warp = tuple(draw_waves(rng, 3, (160, 340), 3.2 * size) for _ in range(3))
    bumps = tuple(draw_waves(rng, 4, (45 * size, 90 * size), 0.5) for _ in range(3))
    return Anatomy(
        case=case, pose=pose, warp=warp, bumps=bumps, parts=tuple(_Draw(rng, build).parts())
    )


class _Draw:
    """Draws the parts of one patient, holding the generator and the build."""

    def __init__(self, rng: np.random.Generator, build: Build) -> None:
        self.rng = rng
        self.build = build

    def parts(self) -> list[Part]:
        rng, build = self.rng, self.build
        cavity = torso.cavity()
        liver = within(self._liver(), cavity.distance)
        parts = torso.walls(cavity, fat=rng.uniform(*build.fat))
        parts += torso.chest(rng, cavity)
        parts += bowel.loops(rng, cavity)
        parts += [Part("liver", liver, "liver"), *self._liver_vessels(liver), *self._lesions(liver)]
        parts += [Part("spleen", within(self._spleen(), cavity.distance), "spleen")]
        parts += self._stomach() + self._pancreas_and_duodenum()
        parts += self._kidney("right_kidney", 1) + self._kidney("left_kidney", -1)
        fundus_to_neck = self._move([(60, 50, -38), (57, 42, -26), (50, 30, -14)], 4)
        gallbladder = tube(
            fundus_to_neck, np.multiply([15, 13, 5], self._size("gallbladder", 0.15))
        )
        parts.append(Part("gallbladder", shrink(gallbladder, -1.5), "bowel_wall"))
        parts.append(Part("gallbladder", gallbladder, "bile"))
        parts += torso.psoas(rng, self._size("psoas", 0.12))
        parts += torso.spine()
        parts += self._great_vessels()
        if build.spinal_screws:
            parts += torso.screws(rng)
        return parts

    def _size(self, structure: str, spread: float = 0.08) -> float:
        of_build = dict(self.build.organ_scale).get(structure, 1.0)
        return of_build * float(self.rng.uniform(1 - spread, 1 + spread))

    def _move(self, points: list[Vector], by: float) -> NDArray[np.float64]:
        """Shift a path as a whole by up to `by` mm, and each of its points by up to a third of
        that.
        """
        p = np.asarray(points, dtype=float)
        return p + self.rng.uniform(-by, by, 3) + self.rng.uniform(-by / 3, by / 3, p.shape)

    def _bumpy(self, shape: Shape, by: float) -> Shape:
        return bumpy(shape, self.rng.uniform(-by, by, 3))

    def _liver(self) -> Shape:
        rng, s = self.rng, self._size("liver")
        right = ellipsoid(
            _near(rng, (70, -2, 20), 5),
            np.multiply((66, 80, 80), s),
            rotation(z=rng.uniform(-8, 8)),
        )
        reach = rng.uniform(0.8, 1.2)  # how far the left lobe reaches over the stomach
        left = ellipsoid(
            _near(rng, (10, 44, 42), 4),
            np.multiply((60 * reach, 32, 36), s),
            rotation(y=rng.uniform(0, 15)),
        )
        # the visceral surface: an oblique plane that leaves room for kidney, duodenum and colon
        cut = half_space((-0.55, -0.18, -0.8), rng.uniform(-16, -6))
        return self._bumpy(minus(union(right, left, 26), cut, 14), 3)

    def _liver_vessels(self, liver: Shape) -> list[Part]:
        inside = shrink(liver, 4).distance
        portal = [
            self._move([(8, 8, -6), (32, 12, 14), (62, 8, 24), (92, 2, 30)], 4),
            self._move([(32, 12, 14), (22, 32, 30), (4, 42, 42)], 3),
        ]
        hepatic = [
            self._move([(22, -12, 76), (55, -20, 55), (88, -22, 30)], 4),
            self._move([(22, -8, 78), (45, 18, 62), (62, 40, 42)], 4),
            self._move([(20, -6, 78), (14, 26, 62), (0, 46, 50)], 4),
        ]
        stem = tube(portal[0][:2], [6.5, 6.0])
        parts = [Part("", stem, "blood_portal")]
        parts += [
            Part("", within(tube(p, np.linspace(5.5, 3, len(p))), inside), "blood_portal")
            for p in portal
        ]
        parts += [Part("", within(tube(p, [5, 4.5, 2.5]), inside), "blood_vein") for p in hepatic]
        return parts

    def _lesions(self, liver: Shape) -> list[Part]:
        rng, build = self.rng, self.build
        parts: list[Part] = []
        placed: list[tuple[NDArray[np.float64], float]] = []
        wanted = int(rng.integers(build.lesions[0], build.lesions[1] + 1))
        inside = shrink(liver, 1.5).distance
        for _ in range(400):
            if len(placed) == wanted:
                break
            r = rng.uniform(*build.lesion_radius)
            c = rng.uniform(liver.low, liver.high)
            deep = distance_at(liver, c) < -0.7 * r
            if deep and all(np.linalg.norm(c - c2) > r + r2 + 6 for c2, r2 in placed):
                placed.append((c, r))
                turn = rotation(rng.uniform(-90, 90), rng.uniform(-90, 90), rng.uniform(-90, 90))
                shape = self._bumpy(ellipsoid(c, r * rng.uniform(0.85, 1.15, 3), turn), 0.12 * r)
                parts.append(Part("liver_lesion", within(shape, inside), "lesion"))
                core = ellipsoid(c, np.full(3, 0.45 * r))
                parts.append(Part("liver_lesion", core, "lesion_core"))
        return parts

    def _spleen(self) -> Shape:
        rng, s = self.rng, self._size("spleen", 0.14)
        turn = rotation(x=rng.uniform(10, 30), y=rng.uniform(-5, 12))
        c = np.array(_near(rng, (-94, -28, 34), 4))
        # hollowed on the side that faces the stomach
        hollow = ellipsoid(c + np.array((46, 36, 4)), np.multiply((48, 44, 60), s), turn)
        return self._bumpy(
            minus(ellipsoid(c, np.multiply((33, 44, 56), s), turn), hollow.distance, 10), 2.5
        )

    def _stomach(self) -> list[Part]:
        rng, s = self.rng, self._size("stomach", 0.15)
        fundus: list[Vector] = [(-52, -22, 70), (-62, 6, 50), (-58, 34, 22)]
        path = self._move([*fundus, (-34, 52, -4), (-2, 50, -16), (22, 40, -12)], 5)
        wall = self._bumpy(tube(path, np.multiply([24, 33, 29, 23, 18, 11], s)), 2)
        lumen = shrink(wall, rng.uniform(4.5, 6.5))
        # gas gathers at the front, because the patient lies on the back
        gas = within(lumen, half_space((0, 1, 0), rng.uniform(26, 46)), 2)
        gullet = tube(
            [(-4, -18, 125), (-8, -18, 100), (-22, -16, 82), tuple(path[0])], [9, 9, 9, 9]
        )
        return [
            Part("other", gullet, "muscle"),
            Part("stomach", wall, "stomach_wall"),
            Part("stomach", lumen, "stomach_content"),
            Part("stomach", gas, "gas"),
        ]

    def _pancreas_and_duodenum(self) -> list[Part]:
        s, d = self._size("pancreas", 0.1), self._size("duodenum", 0.12)
        head = self._move(
            [
                (30, 10, -38),
                (28, 14, -24),
                (10, 24, -10),
                (-18, 20, 2),
                (-48, 2, 14),
                (-70, -14, 24),
            ],
            3,
        )
        pancreas = self._bumpy(tube(head, np.multiply([15, 17, 12, 12.5, 13, 10], s)), 2)
        sweep = self._move(
            [
                (24, 39, -12),
                (44, 26, -12),
                (52, 10, -26),
                (51, 2, -52),
                (36, -2, -68),
                (4, 0, -68),
                (-24, 8, -46),
            ],
            3,
        )
        duodenum = self._bumpy(tube(sweep, np.multiply([11, 12.5, 13, 13, 12.5, 12, 11], d)), 1.5)
        lumen = shrink(duodenum, 4.5)
        gas = within(lumen, half_space((0, 1, 0), self.rng.uniform(14, 26)), 2)
        splenic = tube(
            self._move([(8, 10, -6), (-24, 6, 4), (-52, -12, 20), (-80, -24, 30)], 2), 4.0
        )
        return [
            Part("other", splenic, "blood_portal"),
            Part("pancreas", pancreas, "pancreas"),
            Part("duodenum", duodenum, "bowel_wall"),
            Part("duodenum", lumen, "bowel_fluid"),
            Part("duodenum", gas, "gas"),
        ]

    def _kidney(self, structure: str, side: int) -> list[Part]:
        rng, s = self.rng, self._size(structure, 0.1)
        c = np.array(_near(rng, (62 * side, -36, -26 if side > 0 else -14), 5))
        turn = rotation(
            x=rng.uniform(6, 18), y=side * rng.uniform(6, 16), z=side * rng.uniform(-40, -15)
        )
        bean = self._bumpy(ellipsoid(c, np.multiply((29, 27, 56), s), turn), 1.8)
        hilum = turn @ np.array([-side * 30.0, 6, 0]) * s + c
        bean = minus(bean, ellipsoid(hilum, np.multiply((15, 11, 17), s), turn).distance, 8)
        medulla = shrink(bean, 8 * s)
        pelvis = ellipsoid(0.6 * hilum + 0.4 * c, np.multiply((12, 8, 20), s), turn)
        renal = [(4 * side, -2, -12), tuple(hilum)]
        return [
            Part("", ellipsoid(hilum, (14, 10, 16)), "fat"),
            Part("other", tube(renal, 4.5), "blood_vein"),
            Part(structure, bean, "kidney_cortex"),
            Part(structure, medulla, "kidney_medulla"),
            Part(structure, within(pelvis, shrink(bean, 2).distance), "renal_pelvis"),
        ]

    def _great_vessels(self) -> list[Part]:
        rng = self.rng
        bend = rng.uniform(-6, 6)
        chest = [(-12, -28, 125), (-10, -24, 90), (-8 + bend / 2, -14, 50)]
        aorta = [*chest, (-7 + bend, -9, 0), (-6 + bend, -6, -60), (-5, -5, -125)]
        cava = [
            (20, 0, 100),
            (21, -6, 70),
            (22, -12, 40),
            (20, -10, 0),
            (18, -8, -60),
            (16, -6, -125),
        ]
        ra, rc = self._size("aorta", 0.12), self._size("inferior_vena_cava", 0.14)
        offshoots = [
            [(-7 + bend, -6, 14), (-6, 10, 18), (-24, 14, 20)],
            [(-7 + bend, -4, -4), (-6, 12, -18), (-4, 20, -50), (-2, 30, -90)],
        ]
        parts = [Part("other", tube(p, 3.5), "blood_artery") for p in offshoots]
        parts.append(
            Part("other", tube([(12, 14, -4), (10, 18, -34), (10, 28, -80)], 5), "blood_portal")
        )
        parts.append(
            Part("inferior_vena_cava", tube(cava, 11.5 * rc, (1.25, 1.0, 1.0)), "blood_vein")
        )
        parts.append(Part("aorta", tube(aorta, np.linspace(13.5, 10.5, 6) * ra), "blood_artery"))
        return parts


def _near(rng: np.random.Generator, centre: Vector, by: float) -> Vector:
    return as_vector(np.asarray(centre) + rng.uniform(-by, by, 3))
