"""The drawing of the network in the HTML report: one box per site in execution order, grouped by
stage and block, coloured by its units.
"""

import dataclasses
import itertools
from collections.abc import Sequence

from sea_peft.artefacts.history import History
from sea_peft.artefacts.names import block
from sea_peft.artefacts.palette import REFUSED, UNDECIDED, family_colours
from sea_peft.artefacts.view import UnitRow, summarise
from sea_peft.loop.cost import Cost

LETTERS = {"conv": "C", "transposed": "T", "norm": "N", "linear": "L", "block": "B"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
    """One site.

    Attributes:
        letter: for the kind of site.
        fill: CSS: the family's colour if units are on (striped for several), grey if all were
            refused.
        on: whether a unit is on.
        measured: whether a unit was measured.
        tips: lines about its units.
    """

    letter: str
    fill: str
    on: bool
    measured: bool
    tips: tuple[str, ...]


Drawing = list[tuple[str, list[tuple[str, list[Box]]]]]
"""Stage → block → boxes."""


def network_drawing(history: History) -> Drawing:
    """Group the sites. Neighbouring sites that share the first two components of their module path
    form one block.
    """
    units: dict[str, list[UnitRow]] = {}
    for row in summarise(history):
        units.setdefault(row.site, []).append(row)
    colours = family_colours(row.family for row in history.units.values())
    boxes = {
        site: _box(
            site, first.kind, history.names[site], units[site], colours, history.started.cost_kind
        )
        for site, first in history.sites.items()
    }
    return [
        (
            stage,
            [
                (path, [boxes[site] for site in sites])
                for path, sites in itertools.groupby(inside, block)
            ],
        )
        for stage, inside in itertools.groupby(
            history.sites, lambda site: history.sites[site].stage
        )
    ]


def _box(
    site: str, kind: str, name: str, rows: Sequence[UnitRow], colours: dict[str, str], cost: Cost
) -> Box:
    on = sorted({row.family for row in rows if row.on})
    measured = any(row.utility is not None for row in rows)
    refused = measured or any(row.decision == "refuse" for row in rows)
    fills = [colours[family] for family in on] or [REFUSED if refused else UNDECIDED]
    stripes = (
        f"{fill} {100 * i / len(fills):.0f}% {100 * (i + 1) / len(fills):.0f}%"
        for i, fill in enumerate(fills)
    )
    tips = (f"{site} ({kind}), {name}", *(_tip(row, cost) for row in rows))
    return Box(
        letter=LETTERS.get(kind, kind[:1].upper()),
        fill=f"linear-gradient(90deg, {', '.join(stripes)})",
        on=bool(on),
        measured=measured,
        tips=tips,
    )


def _tip(row: UnitRow, cost: Cost) -> str:
    worth = "unmeasured" if row.utility is None else f"utility {row.utility * 100:+.2f} Dice points"
    return (
        f"{row.family} {row.level}: {'on' if row.on else 'off'}, {worth}, {row.cost:,} {cost.many};"
        f" {row.reason}"
    )
