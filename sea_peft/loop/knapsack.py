"""The knapsack: which units go under the budget. Greedy and deterministic, with the exact optimum beside it as a yardstick."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp


@dataclasses.dataclass(frozen=True)
class Item:
    """A unit as the knapsack sees it. `group`: at most one item of a group is chosen (one level per site and family)."""

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
    """Highest value per parameter first, then the best affordable larger level of what was chosen; or the best single item, if that
    alone is worth more. Only items of positive value are taken. The order of `items` does not matter: ties go to the cheaper, then
    to the smaller id. Never above `capacity`.
    """
    fitting = sorted(
        (item for item in items if item.value > 0 and item.cost <= capacity),
        key=lambda item: (-item.value / max(item.cost, 1), item.cost, item.id),
    )
    if not fitting:
        return Choice((), 0.0, 0)
    chosen: dict[str, Item] = {}
    left = capacity
    for item in fitting:
        if item.group not in chosen and item.cost <= left:
            chosen[item.group] = item
            left -= item.cost
    while True:
        swaps = [
            (item.value - old.value, item)
            for item in fitting
            if (old := chosen.get(item.group)) is not None
            and item.value > old.value
            and item.cost - old.cost <= left
        ]
        if not swaps:
            break
        _, best = max(swaps, key=lambda swap: (swap[0], -swap[1].cost, swap[1].id))
        left += chosen[best.group].cost - best.cost
        chosen[best.group] = best
    single = max(fitting, key=lambda item: (item.value, -item.cost, item.id))
    together = sum(item.value for item in chosen.values())
    picked = [single] if single.value > together else list(chosen.values())
    return Choice(
        tuple(item.id for item in picked), sum(i.value for i in picked), sum(item.cost for item in picked)
    )


def exact(items: Sequence[Item], capacity: int) -> Choice:
    """The true optimum, by mixed-integer programming (scipy's HiGHS). Ids sorted."""
    worth = sorted((item for item in items if item.value > 0 and item.cost <= capacity), key=lambda item: item.id)
    if not worth:
        return Choice((), 0.0, 0)
    groups = sorted({item.group for item in worth})
    one_per_group = np.array([[item.group == group for item in worth] for group in groups], dtype=float)
    solution = milp(
        -np.array([item.value for item in worth]),
        constraints=[
            LinearConstraint(np.array([[item.cost for item in worth]], dtype=float), ub=capacity),
            LinearConstraint(one_per_group, ub=1),
        ],
        integrality=np.ones(len(worth)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if solution.x is None:
        raise RuntimeError(f"the exact knapsack did not finish: {solution.message}")
    picked = [item for item, x in zip(worth, solution.x, strict=True) if x > 0.5]
    return Choice(tuple(i.id for i in picked), sum(i.value for i in picked), sum(i.cost for i in picked))


def gap(found: Choice, optimum: Choice) -> float:
    """(optimum − found) / optimum, 0 where nothing is worth taking."""
    return max(0.0, (optimum.value - found.value) / optimum.value) if optimum.value > 0 else 0.0
