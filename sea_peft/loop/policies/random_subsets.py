"""Random subsets of the audit space: what a choice is worth is what it is better than these."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from sea_peft.adapters import Unit
from sea_peft.loop.policies.base import Space
from sea_peft.loop.policies.filling import fill


def unrestricted(space: Space, seed: int) -> list[Unit]:
    """Units in random order, each taken when it fits."""
    return fill(_shuffled(space.units, [seed, 7]), space.capacity)


@dataclasses.dataclass(frozen=True)
class SameMix:
    """Random units in a given mix of families: what another policy spent on each family, spent at random places and levels.

    `draw`: which of several draws. `mix`: family → parameters; where the sum is above the capacity, all are scaled down alike. What a
    family leaves over (its last unit rarely fits exactly) goes to random units of any family of the mix.
    """

    draw: int
    mix: Mapping[str, int]

    def __call__(self, space: Space, seed: int) -> list[Unit]:
        """The subset of this draw under this seed."""
        order = _shuffled(space.units, [seed, 7, self.draw])
        asked = sum(self.mix.values())
        share = min(1.0, space.capacity / asked) if asked else 0.0
        chosen: list[Unit] = []
        for family in sorted(self.mix):
            chosen += fill([u for u in order if u.family == family], int(self.mix[family] * share))
        return fill([u for u in order if u.family in self.mix], space.capacity, chosen)


def _shuffled(units: Sequence[Unit], seed: Sequence[int]) -> list[Unit]:
    """In an order that depends on the seed and the units' ids alone."""
    known = sorted(units, key=lambda u: u.id)
    return [known[i] for i in np.random.default_rng(seed).permutation(len(known))]
