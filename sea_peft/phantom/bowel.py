"""Bowel: colon and loops of small bowel. They have no label and look like stomach and duodenum."""

import numpy as np
from numpy.typing import NDArray

from sea_peft.phantom.shapes import Distance, Part, Shape, Vector, half_space, shrink, tube, within


def loops(rng: np.random.Generator, cavity: Shape) -> list[Part]:
    """Ascending, transverse and descending colon with stool and gas, and six loops of small
    bowel.
    """
    inside = shrink(cavity, 2).distance
    parts: list[Part] = []
    for _ in range(6):
        centre = rng.uniform((-65, 12, -115), (60, 62, -45))
        path = centre + np.cumsum(rng.normal(size=(5, 3)) * (22, 12, 14), axis=0)
        path = np.clip(path, (-90, -5, -135), (85, 72, -38))
        parts += _gut(
            tube(path, rng.uniform(10, 14)),
            inside,
            "bowel_fluid",
            gas_from=float(rng.uniform(30, 90)),
        )
    colon: list[tuple[list[Vector], float]] = [
        ([(92, 0, -130), (96, 0, -90), (92, 14, -58)], 21),
        ([(90, 20, -52), (60, 56, -54), (10, 70, -58), (-40, 66, -44), (-84, 36, -8)], 17),
        ([(-96, 10, 0), (-104, -14, -40), (-104, -16, -90), (-94, -6, -130)], 15),
    ]
    for course, radius in colon:
        shape = tube(_jitter(rng, course), radius * rng.uniform(0.8, 1.15))
        parts += _gut(shape, inside, "stool", gas_from=float(rng.uniform(10, 70)))
    return parts


def _gut(shape: Shape, inside: Distance, content: str, gas_from: float) -> list[Part]:
    wall = within(shape, inside)
    lumen = shrink(wall, 3)
    return [
        Part("other", wall, "bowel_wall"),
        Part("other", lumen, content),
        Part("other", within(lumen, half_space((0, 1, 0), gas_from), 2), "gas"),
    ]


def _jitter(rng: np.random.Generator, path: list[Vector]) -> NDArray[np.float64]:
    p = np.asarray(path, dtype=float)
    return p + rng.uniform(-6, 6, p.shape)
