"""Topologies that treat every site alike: one family everywhere, one size everywhere, one share of the budget everywhere."""

from __future__ import annotations

from sea_peft.adapters import Unit, total_cost
from sea_peft.loop.policies.base import Space
from sea_peft.loop.policies.filling import cheapest_first, everywhere, fill


def one_family(space: Space, seed: int) -> list[Unit]:
    """One design everywhere, at the largest level at which all of it fits; where not even the smallest fits, from the cheapest up."""
    variants = sorted({(u.level, u.placement) for u in space.units})
    topologies = [everywhere(space.units, *variant) for variant in variants]
    affordable = [t for t in topologies if total_cost(t) <= space.capacity]
    if affordable:
        return max(affordable, key=lambda t: (total_cost(t), t[0].id))
    cheapest = min(topologies, key=lambda t: (total_cost(t), t[0].id), default=[])
    return fill(cheapest_first(cheapest), space.capacity)


def everything(space: Space, seed: int) -> list[Unit]:
    """All that is on offer, whatever it costs: fine-tuning, and adapters at the size that their papers give them."""
    return list(space.units)


def equal_shares(space: Space, seed: int) -> list[Unit]:
    """The same number of parameters for every (site, family): each takes the largest unit that its share pays for.

    Shares are recomputed as groups are served, cheapest first, so that what a narrow site cannot spend goes to the wider ones.
    """
    groups: dict[str, list[Unit]] = {}
    for unit in space.units:
        groups.setdefault(unit.group, []).append(unit)
    waiting = sorted(groups.values(), key=lambda g: (max(u.cost for u in g), g[0].site.order, g[0].group))
    chosen: list[Unit] = []
    left = space.capacity
    for served, group in enumerate(waiting):
        share = left / (len(waiting) - served)
        affordable = [u for u in group if u.cost <= share]
        if affordable:
            chosen.append(max(affordable, key=lambda u: (u.cost, u.id)))
            left -= chosen[-1].cost
    return fill(cheapest_first(space.units), space.capacity, chosen)


def _affine_then(rank: int, space: Space) -> list[Unit]:
    """Affine at every norm, then LoRA of this rank from the cheapest site up."""
    affine = fill(cheapest_first(u for u in space.units if u.family == "affine"), space.capacity)
    lora = [u for u in space.units if u.family == "lora" and u.level == rank]
    return fill(cheapest_first(lora), space.capacity, affine)


def affine_lora(space: Space, seed: int) -> list[Unit]:
    """Affine everywhere, LoRA r4 from the cheapest site up: the strongest fixed topology known when this was begun."""
    return _affine_then(4, space)


def affine_lora_lowest(space: Space, seed: int) -> list[Unit]:
    """Affine everywhere and LoRA at its lowest rank everywhere, or from the cheapest site up where not all of it fits."""
    return _affine_then(min((u.level for u in space.units if u.family == "lora"), default=0), space)


def cheapest(space: Space, seed: int) -> list[Unit]:
    """The cheapest unit first, over the whole audit space."""
    return fill(cheapest_first(space.units), space.capacity)


def nothing(space: Space, seed: int) -> list[Unit]:
    """No unit: the head alone."""
    return []
