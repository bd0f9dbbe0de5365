"""The knapsack: which units go under the budget. Greedy and deterministic.

This is the multiple-choice knapsack problem: at most one level of a family is taken at each site.
"""

import dataclasses
import heapq
from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True)
class Item:
    """A unit as the knapsack sees it.

    Attributes:
        id: of the unit.
        group: at most one item of a group is chosen (one level per site and family).
        cost: at least 1.
        value: in Dice, or any other measure that adds up.
    """

    id: str
    group: str
    cost: int
    value: float


@dataclasses.dataclass(frozen=True)
class Choice:
    """The chosen ids in the order of choice, with their total value and cost."""

    chosen: tuple[str, ...]
    value: float
    cost: int


def greedy(items: Iterable[Item], capacity: int) -> Choice:
    """Choose items by greedy exchange.

    Repeats the affordable exchange that adds the most value for its added cost: a new item, or a
    larger level for a smaller one. Returns the best single item instead if that alone is worth
    more. Takes only items of positive value, never exceeds `capacity`, and never falls below half
    of the optimum. The order of `items` does not matter: ties go to the cheaper item, then to the
    smaller id.

    Source: the greedy algorithm on incremental efficiencies of Sinha & Zoltners 1979 (Operations
    Research 27:503).

    Examples:
        >>> rank_4, rank_8 = Item("r4", "lora@conv1", 40, 0.02), Item("r8", "lora@conv1", 80, 0.03)
        >>> greedy([rank_4, rank_8, Item("a", "affine@norm1", 8, 0.01)], capacity=60)
        Choice(chosen=('a', 'r4'), value=0.03, cost=48)
    """
    groups = _undominated(items, capacity)
    chosen: dict[str, Item] = {}
    left = capacity
    exchanges: list[tuple[float, int, str, Item]] = []  # a heap with each group's best exchange

    def offer(group: str) -> None:
        paid, had = (chosen[group].cost, chosen[group].value) if group in chosen else (0, 0.0)
        affordable = [i for i in groups[group] if i.value > had and i.cost - paid <= left]
        if affordable:
            heapq.heappush(
                exchanges,
                min((-(i.value - had) / (i.cost - paid), i.cost, i.id, i) for i in affordable),
            )

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
    single = min(
        (i for own in groups.values() for i in own),
        key=lambda i: (-i.value, i.cost, i.id),
        default=None,
    )
    return _choice(
        [single] if single and single.value > sum(i.value for i in together) else together
    )


def _choice(picked: Sequence[Item]) -> Choice:
    return Choice(
        tuple(i.id for i in picked), sum(i.value for i in picked), sum(i.cost for i in picked)
    )


def _undominated(items: Iterable[Item], capacity: int) -> dict[str, list[Item]]:
    """Group → its candidates by rising cost: affordable, of positive value, and worth more than
    every cheaper one.
    """
    groups: dict[str, list[Item]] = {}
    for item in sorted(items, key=lambda i: (i.cost, -i.value, i.id)):
        own = groups.get(item.group, [])
        if item.cost <= capacity and item.value > (own[-1].value if own else 0.0):
            groups[item.group] = [*own, item]
    return groups
