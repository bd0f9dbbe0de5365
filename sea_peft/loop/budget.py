"""The budget: how many parameters may be trained, and whether they open enough sites for a choice."""

import itertools
import math
import re
from fractions import Fraction

from sea_peft.errors import BudgetError, UsageError
from sea_peft.loop.space import Space

_FORM = re.compile(r"(?P<number>\d{1,18}(\.\d{1,18})?|\.\d{1,18})\s*(?P<unit>%|k|M)?")


def parse_budget(text: str, parameters: int) -> int:
    """`1%`, `0.01`, `47k` or `47000` → trainable parameters, given the backbone's. Raises UsageError where it can be read two ways."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{text[:40]!r} is not a budget; write a share such as 1% or 0.01, or a count such as 47k.", "budget"
        )
    # exact decimals: 29% of 100 as floats would be 28
    number, unit = Fraction(match["number"]), match["unit"]
    if unit == "%":
        share = number / 100
    elif unit and number:
        return _within(int(number * {"k": 1_000, "M": 1_000_000}[unit]), text, parameters)
    elif number == 1:
        raise UsageError(f"A budget of {text} can mean 100% or one parameter; write 1% for one per cent.", "budget")
    elif number < 1:
        share = number
    else:
        if number != int(number):
            raise UsageError(
                f"A budget of {text} is neither a share below 1 nor a whole count; write {text}% or a count.", "budget"
            )
        return _within(int(number), text, parameters)
    if not 0 < share <= 1:
        raise UsageError(
            f"A budget of {text} is not between 0 and 100% of the backbone's {parameters:,} parameters.", "budget"
        )
    return int(share * parameters)


_NO_CHOICE = 2  # sites, of which one is hardly ever another's rival


def _within(count: int, text: str, parameters: int) -> int:
    """A count that the backbone has. Raises UsageError where it has fewer parameters: that many cannot be a budget for adapting it."""
    if count > parameters:
        said = f"A budget of {text} is more than the backbone's {parameters:,} parameters; write a smaller count or a share such as 1%."
        raise UsageError(said, "budget")
    return count


def check_feasible(space: Space, parameters: int) -> str | None:
    """Whether a budget opens enough sites for a choice. `parameters`: the backbone's.

    Returns:
        None, or a sentence for the user where hardly any site can be opened beside the head, with the budgets that open more.

    Raises:
        BudgetError: the head and the cheapest unit do not fit together.
    """
    if not space.units:
        raise BudgetError("The budget profile offers no unit on this backbone; choose another profile.", "profile")
    cheapest = space.cheapest_first()[0]
    if not space.fits([cheapest]):
        need = space.used([cheapest.id])
        raise BudgetError(
            f"A budget of {space.limit:,} parameters fits no unit: the head takes {space.head:,} and the cheapest unit "
            f"{space.cost(cheapest):,}; ask for at least {need:,} ({need / parameters:.4%} of the backbone)."
        )
    costs: dict[str, int] = {}
    for unit in space.units:
        costs[unit.site.path] = min(unit.cost, costs.get(unit.site.path, unit.cost))
    sites = len(costs)
    totals = list(itertools.accumulate(sorted(costs.values()), initial=space.head))  # of the head and 0, 1, 2, … sites
    opened = sum(total <= space.limit for total in totals) - 1
    if opened > _NO_CHOICE or opened == sites:
        return None
    more = sorted({n for n in (math.ceil(sites / 4), math.ceil(sites / 2), sites) if n > opened})
    ladder = ", ".join(f"{n} with {totals[n]:,} ({totals[n] / parameters:.1%})" for n in more)
    return (
        f"A budget of {space.limit:,} parameters opens {opened} of the {sites} sites beside the head's {space.head:,}, which leaves nothing to "
        f"choose. Sites that a budget opens: {ladder}; ask for one of these."
    )
