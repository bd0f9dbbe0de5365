"""Topologies that treat every site alike: one family, one size or one share of the budget
everywhere; and random ones.
"""

from collections.abc import Sequence

import numpy as np

from sea_peft.adapters import Unit
from sea_peft.loop.space import Space


def everywhere(own: Sequence[Unit], level: int, placement: str) -> list[Unit]:
    """One unit per site: at `level`, or at the largest smaller level if the site is too narrow
    for it.
    """
    at: dict[str, Unit] = {}
    for unit in sorted(own, key=lambda u: u.level):
        if unit.placement == placement and (unit.level <= level or unit.site.path not in at):
            at[unit.site.path] = unit
    return list(at.values())


def one_family(space: Space, seed: int) -> list[Unit]:
    """One design everywhere, at the largest level that fits as a whole. If not even the smallest
    fits, from the cheapest site up.
    """
    variants = sorted({(u.level, u.placement) for u in space.units})
    topologies = [everywhere(space.units, *variant) for variant in variants]
    affordable = [t for t in topologies if space.fits(t)]
    if affordable:
        return max(affordable, key=lambda t: (space.total(t), t[0].id))
    cheapest = min(topologies, key=lambda t: (space.total(t), t[0].id), default=[])
    return space.room().fill(space.cheapest_first(cheapest))


def everything(space: Space, seed: int) -> list[Unit]:
    """All units on offer, whatever they cost: fine-tuning, and adapters at the size of their
    papers.
    """
    return list(space.units)


def equal_shares(space: Space, seed: int) -> list[Unit]:
    """An equal share of the budget for each (site, family), which takes the largest unit that its
    share pays for.

    Shares are recomputed after each group, cheapest first, so that wide sites get what narrow ones
    cannot spend.
    """
    groups: dict[str, list[Unit]] = {}
    for unit in space.units:
        groups.setdefault(unit.group, []).append(unit)
    waiting = sorted(
        groups.values(), key=lambda g: (max(map(space.cost, g)), g[0].site.order, g[0].group)
    )
    chosen: list[Unit] = []
    room = space.room()
    for served, group in enumerate(waiting):
        share = room.part(len(waiting) - served)
        affordable = [u for u in group if share.fits(u)]
        if affordable:
            chosen += room.fill([max(affordable, key=lambda u: (space.cost(u), u.id))])
    return chosen + room.fill(space.cheapest_first())


def affine_lora(space: Space, seed: int) -> list[Unit]:
    """Affine everywhere, then LoRA r4 from the cheapest site up: the strongest fixed topology known
    when the project began.
    """
    return affine_then_lora(space, 4)


def affine_then_lora(space: Space, rank: int) -> list[Unit]:
    """Affine at every norm, then LoRA of this rank from the cheapest site up."""
    affine = space.cheapest_first(u for u in space.units if u.family == "affine")
    lora = space.cheapest_first(u for u in space.units if u.family == "lora" and u.level == rank)
    return space.room().fill([*affine, *lora])


def cheapest(space: Space, seed: int) -> list[Unit]:
    """The cheapest unit first, over the whole audit space."""
    return space.room().fill(space.cheapest_first())


def random(space: Space, seed: int) -> list[Unit]:
    """Units in random order, each taken if it fits: the baseline that any choice must beat."""
    return space.room().fill(shuffled(space.units, [seed, 7]))


def shuffled(units: Sequence[Unit], seed: Sequence[int]) -> list[Unit]:
    """The units in an order that depends on the seed and their ids alone."""
    known = sorted(units, key=lambda u: u.id)
    return [known[i] for i in np.random.default_rng(seed).permutation(len(known))]


def nothing(space: Space, seed: int) -> list[Unit]:
    """No unit: the head alone."""
    return []
