"""A patient: the structures that have a label, the build, and the drawn anatomy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sea_peft.phantom.shapes import Part, Vector

# Label code = 1 + index. The last three are structures that no source weights know.
STRUCTURES = (
    "liver",
    "spleen",
    "right_kidney",
    "left_kidney",
    "stomach",
    "pancreas",
    "aorta",
    "inferior_vena_cava",
    "spine",
    "lungs",
    "liver_lesion",
    "gallbladder",
    "duodenum",
    "psoas",
)


@dataclass(frozen=True, kw_only=True)
class Build:
    """The kind of patient that is drawn. Lengths are in mm, ranges are uniform."""

    scale: tuple[float, float] = (0.94, 1.08)
    fat: tuple[float, float] = (10.0, 28.0)
    organ_scale: tuple[
        tuple[str, float], ...
    ] = ()  # structures larger or smaller than in the adult
    lesions: tuple[int, int] = (1, 3)
    lesion_radius: tuple[float, float] = (11.0, 22.0)
    spinal_screws: bool = False


@dataclass(frozen=True)
class Pose:
    """world = rotation @ (scale * body) + shift, in mm."""

    rotation: NDArray[np.float64]
    scale: Vector
    shift: Vector


@dataclass(frozen=True)
class Waves:
    """A smooth random field: sum of weights * sin(vectors . p + phases), p in mm of the world."""

    vectors: NDArray[np.float64]  # [n, 3], 1/mm
    phases: NDArray[np.float64]  # [n]
    weights: NDArray[np.float64]  # [n]


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """One patient: pose and deformation of the whole, bumps of the surfaces, and the parts in
    painting order.
    """

    case: int
    pose: Pose
    warp: tuple[Waves, ...]  # displacement along x, y, z in mm
    bumps: tuple[Waves, ...]  # three
    parts: tuple[Part, ...]


def draw_waves(
    rng: np.random.Generator, n: int, length: tuple[float, float], weight: float
) -> Waves:
    """`n` random plane waves with lengths in mm and at most this weight each."""
    direction = rng.normal(size=(n, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return Waves(
        direction * (2 * np.pi / rng.uniform(*length, (n, 1))),
        rng.uniform(0, 2 * np.pi, n),
        weight * rng.uniform(0.6, 1.0, n),
    )
