"""The knapsack: which units go under the budget. Greedy and deterministic, with the exact optimum beside it as a yardstick.

This is the multiple-choice knapsack problem: of the levels of one family at one site at most one is taken.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

# Values are sums of floats: what differs by less is the same.
_ROUNDING = 1e-9
# Pairs that `exact` keeps without asking whether they can still win: asking costs more than so few.
_FEW = 32


@dataclasses.dataclass(frozen=True)
class Item:
    """A unit as the knapsack sees it. `group`: at most one item of a group is chosen (one level per site and family). `cost`: at least 1."""

    id: str
    group: str
    cost: int
    value: float


@dataclasses.dataclass(frozen=True)
class Choice:
    """Chosen ids in the order of choice, their total value and cost."""

    chosen: tuple[str, ...]
    value: float
    cost: int


def greedy(items: Iterable[Item], capacity: int) -> Choice:
    """Again and again the affordable exchange that adds most value per added parameter: a new item, or a larger level for a smaller one;
    or the best single item, if that alone is worth more. Only items of positive value are taken. The order of `items` does not matter:
    ties go to the cheaper, then to the smaller id. Never above `capacity`, and never below half of the optimum.

    Source: the greedy algorithm on incremental efficiencies of Sinha & Zoltners 1979 (Operations Research 27:503).
    """
    groups = _undominated(items, capacity)
    chosen: dict[str, Item] = {}
    left = capacity
    exchanges: list[tuple[float, int, str, Item]] = []  # a heap with each group's best exchange

    def offer(group: str) -> None:
        paid, had = (chosen[group].cost, chosen[group].value) if group in chosen else (0, 0.0)
        affordable = [i for i in groups[group] if i.value > had and i.cost - paid <= left]
        if affordable:
            heapq.heappush(exchanges, min((-(i.value - had) / (i.cost - paid), i.cost, i.id, i) for i in affordable))

    for group in groups:
        offer(group)
    while exchanges:
        item = heapq.heappop(exchanges)[-1]
        added = item.cost - (chosen[item.group].cost if item.group in chosen else 0)
        if added <= left:
            chosen[item.group] = item
            left -= added
        offer(item.group)
    together = list(chosen.values())
    single = min((i for own in groups.values() for i in own), key=lambda i: (-i.value, i.cost, i.id), default=None)
    return _choice([single] if single and single.value > sum(i.value for i in together) else together)


def exact(items: Iterable[Item], capacity: int, known: Choice = Choice((), 0.0, 0)) -> Choice:
    """The true optimum. Ids sorted. `known`: a choice that fits, such as the greedy one; what cannot be as good is not looked at.

    Group after group, all (cost, value) pairs that no other beats in both (Nemhauser & Ullmann 1969, Management Science 15:494), less
    those whose linear relaxation over the groups to come stays below `known`: at most `capacity` pairs, mostly a handful. Not
    `scipy.optimize.milp`, which is the tests' oracle: its solver writes to the process's stdout even when told not to, stdout is where
    `--json` puts its document, and at this size it takes five times as long.
    """
    floor = known.value * (1 - _ROUNDING)
    settled, groups = _within_reach(list(_undominated(items, capacity).values()), capacity, floor)
    if not groups:
        return _choice(sorted(settled, key=lambda i: i.id))
    capacity -= sum(i.cost for i in settled)
    floor -= sum(i.value for i in settled)
    # the most decided groups first: their alternatives are pruned soonest
    groups.sort(key=lambda own: (-max(i.value / i.cost for i in own), own[0].id))
    steps = sorted(
        (-value / cost, cost, value, number) for number, own in enumerate(groups) for cost, value in _concave(own)
    )
    added_cost = np.array([cost for _, cost, _, _ in steps])
    added_value = np.array([value for _, _, value, _ in steps])
    of_group = np.array([number for *_, number in steps])
    cost, value = np.zeros(1, dtype=np.int64), np.zeros(1)
    layers: list[
        tuple[np.ndarray, np.ndarray]
    ] = []  # per group: which pair each pair came from, and by which item (0: none)
    asked = 0  # pairs there were when it was last asked which of them can still win
    for number, own in enumerate(groups):
        came_from = np.tile(np.arange(len(cost)), len(own) + 1)
        by = np.repeat(np.arange(len(own) + 1), len(cost))
        cost = cost[came_from] + np.array([0, *(i.cost for i in own)])[by]
        value = value[came_from] + np.array([0.0, *(i.value for i in own)])[by]
        fits = cost <= capacity
        if len(cost) > max(_FEW, 2 * asked):
            later = of_group > number
            fits &= value + _relaxed(added_cost[later], added_value[later], capacity - cost) >= floor
            asked = int(fits.sum())
        order = np.lexsort((-value, cost))
        order = order[fits[order]]
        best_so_far = np.maximum.accumulate(value[order])
        kept = order[np.append(True, value[order][1:] > best_so_far[:-1])]
        cost, value = cost[kept], value[kept]
        layers.append((came_from[kept], by[kept]))
    picked = list(settled)
    pair = int(value.argmax())
    for own, (came_from, by) in zip(reversed(groups), reversed(layers), strict=True):
        if by[pair]:
            picked.append(own[by[pair] - 1])
        pair = came_from[pair]
    return _choice(sorted(picked, key=lambda i: i.id))


def gap(found: Choice, optimum: Choice) -> float:
    """(optimum − found) / optimum, 0 where nothing is worth taking."""
    return max(0.0, (optimum.value - found.value) / optimum.value) if optimum.value > 0 else 0.0


def _choice(picked: Sequence[Item]) -> Choice:
    return Choice(tuple(i.id for i in picked), sum(i.value for i in picked), sum(i.cost for i in picked))


def _undominated(items: Iterable[Item], capacity: int) -> dict[str, list[Item]]:
    """Group → what may be taken of it, by rising cost and rising value: affordable, of positive value, and worth more than all cheaper."""
    groups: dict[str, list[Item]] = {}
    for item in sorted(items, key=lambda i: (i.cost, -i.value, i.id)):
        own = groups.get(item.group, [])
        if item.cost <= capacity and item.value > (own[-1].value if own else 0.0):
            groups[item.group] = [*own, item]
    return groups


def _within_reach(groups: Sequence[Sequence[Item]], capacity: int, floor: float) -> tuple[list[Item], list[list[Item]]]:
    """The items that every choice worth `floor` holds, and, by group, those that one can hold or do without.

    At a price λ per parameter no choice is worth more than λ·capacity + Σ over groups of the best value − λ·cost, and one that holds an item
    falls short of that by what the item is behind the best of its group (Lagrangian relaxation; variable fixing of Dembo & Hammer 1980).
    λ is the value per parameter at which the linear relaxation runs out of capacity.
    """
    steps = sorted((-value / cost, cost) for own in groups for cost, value in _concave(own))
    spent = np.cumsum([cost for _, cost in steps])
    out = int(np.searchsorted(spent, capacity, side="right"))
    price = -steps[out][0] if out < len(steps) else 0.0
    best = [max(0.0, *(i.value - price * i.cost for i in own)) for own in groups]
    slack = price * capacity + sum(best) - floor + _ROUNDING
    settled: list[Item] = []
    open_: list[list[Item]] = []
    for own, most in zip(groups, best, strict=True):
        kept = [i for i in own if most - (i.value - price * i.cost) <= slack]
        if len(kept) == 1 and most > slack:  # without any of the group there is too little
            settled += kept
        elif kept:
            open_.append(kept)
    return settled, open_


def _concave(own: Sequence[Item]) -> list[tuple[int, float]]:
    """Steps (added cost, added value) of falling value per cost that lie on or above all items of a group: its linear relaxation."""
    corners: list[tuple[int, float]] = [(0, 0.0)]
    for item in own:
        while len(corners) > 1 and _slope(corners[-2], corners[-1]) <= _slope(corners[-1], (item.cost, item.value)):
            corners.pop()
        corners.append((item.cost, item.value))
    return [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(corners)]


def _slope(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def _relaxed(cost: np.ndarray, value: np.ndarray, left: np.ndarray) -> np.ndarray:
    """The most value that steps in this order can add when `left` parameters are left, the last step taken in part."""
    spent, gained = np.append(0, np.cumsum(cost)), np.append(0.0, np.cumsum(value))
    per_parameter = np.append(value / cost, 0.0)
    whole = (np.searchsorted(spent, left, side="right") - 1).clip(0)
    return gained[whole] + (left - spent[whole]) * per_parameter[whole]
