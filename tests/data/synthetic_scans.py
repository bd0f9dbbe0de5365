"""Small scans made of a ball in a ball, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sea_peft.data.cases import Case
from sea_peft.data.volumes import Volume

AFFINE = np.array([[-1.2, 0, 0, 30], [0, -1.0, 0, 20], [0, 0, 2.0, -10], [0, 0, 0, 1]])


def ball(shape: Sequence[int], fraction: float = 0.3) -> np.ndarray:
    """A bool ellipsoid in the middle, its half-axes `fraction` of the extent."""
    grid = np.indices(shape)
    half = [(n - 1) / 2 for n in shape]
    return sum(((grid[a] - half[a]) / (fraction * shape[a])) ** 2 for a in range(3)) <= 1


def scan(
    seed: int, shape: Sequence[int] = (14, 12, 9), organ: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """A CT-like image (air, body, organ with noise) and its label map."""
    rng = np.random.default_rng(seed)
    body, inner = ball(shape, 0.45), ball(shape, 0.25)
    image = np.where(body, 40.0, -1000.0) + inner * 60 + rng.normal(0, 5, shape)
    return image.astype(np.float32), (inner * organ).astype(np.uint8)


class MemoryCase(Case):
    """A case held in memory, as phantoms are."""

    def __init__(
        self, case_id: str, images: dict[str, np.ndarray], label: np.ndarray | None, affine=AFFINE
    ):
        self.id = case_id
        self.channels = tuple(images)
        self._images = images
        self._label = label
        self._affine = affine

    def image(self, channel: str) -> Volume:
        return Volume(self._images[channel], self._affine)

    def label(self) -> Volume | None:
        return None if self._label is None else Volume(self._label, self._affine)
