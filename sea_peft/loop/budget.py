"""The budget: reads it from text, and checks that it opens enough sites to choose among."""

import itertools
import math
import re
from fractions import Fraction

from sea_peft.errors import BudgetError, UsageError
from sea_peft.loop.cost import PARAMETERS, Cost
from sea_peft.loop.space import Space

_FORM = re.compile(r"(?P<number>\d{1,18}(\.\d{1,18})?|\.\d{1,18})\s*(?P<unit>%|k|M)?")


def parse_budget(text: str, whole: int, kind: Cost = PARAMETERS) -> int:
    """The most that may be spent, from `1%`, `0.01`, `47k` or `47000`.

    Args:
        text: as the user wrote it.
        whole: size of the backbone, in the units that the budget counts.
        kind: what the budget counts.

    Raises:
        UsageError: the text is no budget, is ambiguous, or asks for more than the backbone has.

    Examples:
        >>> parse_budget("1%", 4_701_084)
        47010
        >>> parse_budget("47k", 4_701_084)
        47000
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{text[:40]!r} is not a budget; write a share such as 1% or 0.01, or a count such as"
            " 47k.",
            "budget",
        )
    # exact decimals: 29% of 100 as floats would be 28
    number, unit = Fraction(match["number"]), match["unit"]
    if unit == "%":
        share = number / 100
    elif unit and number:
        return _within(int(number * {"k": 1_000, "M": 1_000_000}[unit]), text, whole, kind)
    elif number == 1:
        raise UsageError(
            f"A budget of {text} can mean 100% or one {kind.one}; write 1% for one per cent.",
            "budget",
        )
    elif number < 1:
        share = number
    else:
        if number != int(number):
            raise UsageError(
                f"A budget of {text} is neither a share below 1 nor a whole count; write {text}% or"
                " a count.",
                "budget",
            )
        return _within(int(number), text, whole, kind)
    if not 0 < share <= 1:
        raise UsageError(
            f"A budget of {text} is not between 0 and 100% of the backbone's {whole:,}"
            f" {kind.many}.",
            "budget",
        )
    return int(share * whole)


_NO_CHOICE = 2  # with so few open sites, there is nothing to choose


def _within(count: int, text: str, whole: int, kind: Cost) -> int:
    """`count`, if the backbone has as much. Raises UsageError otherwise."""
    if count > whole:
        said = (
            f"A budget of {text} is more than the backbone's {whole:,} {kind.many}; write a smaller"
            " count or a share such as 1%."
        )
        raise UsageError(said, "budget")
    return count


def check_feasible(space: Space, whole: int) -> str | None:
    """Check that a budget opens enough sites to choose among.

    Args:
        space: the units on offer under the budget.
        whole: size of the backbone, in the units that the budget counts.

    Returns:
        None, or a sentence for the user that names larger budgets, if hardly any site can be opened
            beside the head.

    Raises:
        BudgetError: the head and the cheapest unit do not fit together.
    """
    if not space.units:
        raise BudgetError(
            "The budget profile offers no unit on this backbone; choose another profile.", "profile"
        )
    cheapest = space.cheapest_first()[0]
    if not space.fits([cheapest]):
        need = space.used([cheapest.id])
        raise BudgetError(
            f"A budget of {space.limit:,} {space.kind.many} fits no unit: the head takes"
            f" {space.head:,} and the cheapest unit {space.cost(cheapest):,}; ask for at least"
            f" {need:,} ({need / whole:.4%} of the backbone)."
        )
    costs: dict[str, int] = {}
    for unit in space.units:
        costs[unit.site.path] = min(space.cost(unit), costs.get(unit.site.path, space.cost(unit)))
    sites = len(costs)
    totals = list(
        itertools.accumulate(sorted(costs.values()), initial=space.head)
    )  # of the head and 0, 1, 2, … sites
    opened = sum(total <= space.limit for total in totals) - 1
    if opened > _NO_CHOICE or opened == sites:
        return None
    more = sorted({n for n in (math.ceil(sites / 4), math.ceil(sites / 2), sites) if n > opened})
    ladder = ", ".join(f"{n} with {totals[n]:,} ({totals[n] / whole:.1%})" for n in more)
    return (
        f"A budget of {space.limit:,} {space.kind.many} opens {opened} of the {sites} sites beside"
        f" the head's {space.head:,}, which leaves nothing to choose. Sites that a budget opens:"
        f" {ladder}; ask for one of these."
    )
