"""A drawing of the network as SVG: one box per site in execution order, grouped by stage and block, coloured
by what is placed there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from html import escape

from sea_peft.artefacts.history import History
from sea_peft.artefacts.palette import REFUSED, UNDECIDED, family_colours
from sea_peft.artefacts.view import UnitRow, summarise
from sea_peft.artefacts.words import visible

_BOX, _GAP, _WIDTH, _LEFT = 22, 3, 1080, 96
_GROUP_GAP, _LINE, _MOST_IN_GROUP = 14, 50, 36
_CHARACTER = 5.2  # pixels of one character of a block's name at 9 px
_LETTERS = {"conv": "C", "transposed": "T", "norm": "N", "linear": "L", "block": "B"}


def network_drawing(history: History) -> str:
    """The SVG text. A box is filled by family where units are on (striped for several), grey where all were
    refused; it is dashed where no unit was measured. Its letter is the kind of site, its tooltip says what was
    found."""
    rows: dict[str, list[UnitRow]] = {}
    for row in summarise(history):
        rows.setdefault(row.site, []).append(row)
    colours = family_colours(row.family for row in history.units.values())
    parts: list[str] = []
    top = 8.0
    stages = itertools.groupby(history.sites.items(), key=lambda item: str(item[1].stage))
    for stage, sites in stages:
        x, start = float(_LEFT), top
        for block, members in _blocks([(site, str(row.kind)) for site, row in sites]):
            width = max(len(members) * (_BOX + _GAP), len(block) * _CHARACTER)
            if x > _LEFT and x + width > _WIDTH:
                x, top = float(_LEFT), top + _LINE
            parts.append(f'<text x="{x:.0f}" y="{top + 9:.0f}" class="block">{_text(block)}</text>')
            for i, (site, kind) in enumerate(members):
                parts.append(_box(x + i * (_BOX + _GAP), top + 14, site, kind, rows[site], colours))
            x += width + _GROUP_GAP
        top += _LINE
        parts.append(
            f'<line x1="0" x2="{_WIDTH}" y1="{top - 5:.0f}" y2="{top - 5:.0f}" class="rule"/>'
            f'<text x="4" y="{(start + top) / 2 + 2:.0f}" class="stage">{_text(stage)}</text>'
        )
    height = top + 26
    parts += _legend(top + 4, colours)
    style = (
        "text{font-family:system-ui,sans-serif;fill:#222}.block{font-size:9px;fill:#666}.stage{font-size:13px;"
        "font-weight:600}.kind{font-size:10px;text-anchor:middle;pointer-events:none}.legend{font-size:11px}"
        ".rule{stroke:#ddd}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" '
        f'aria-label="The network with its placed adapters"><style>{style}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>'
    )


def _blocks(sites: list[tuple[str, str]]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Neighbouring sites that share the first two components of their module path, at most 36 at a time."""
    for block, members in itertools.groupby(sites, key=lambda site: ".".join(site[0].split(".")[:2])):
        group = list(members)
        for first in range(0, len(group), _MOST_IN_GROUP):
            yield block, group[first : first + _MOST_IN_GROUP]


def _box(x: float, y: float, site: str, kind: str, rows: list[UnitRow], colours: dict[str, str]) -> str:
    on = sorted({row.family for row in rows if row.on})
    measured = any(row.utility is not None for row in rows)
    refused = measured or any(row.decision == "refuse" for row in rows)
    fills = [colours[family] for family in on] or [REFUSED if refused else UNDECIDED]
    width = _BOX / len(fills)
    stripes = "".join(
        f'<rect x="{x + i * width:.1f}" y="{y:.0f}" width="{width:.1f}" height="{_BOX}" fill="{fill}"/>'
        for i, fill in enumerate(fills)
    )
    tip = "\n".join([f"{site} ({kind})", *(_tip(row) for row in rows)])
    ink = "#fff" if on else "#555"
    return (
        f"<g><title>{_text(tip)}</title>{stripes}"
        f'<rect x="{x:.1f}" y="{y:.0f}" width="{_BOX}" height="{_BOX}" fill="none"{_border(measured)}/>'
        f'<text x="{x + _BOX / 2:.1f}" y="{y + 15:.0f}" class="kind" style="fill:{ink}">'
        f"{_LETTERS.get(kind, _text(kind[:1].upper()))}</text></g>"
    )


def _border(measured: bool) -> str:
    return ' stroke="#777"' if measured else ' stroke="#111" stroke-dasharray="2 2"'


def _tip(row: UnitRow) -> str:
    worth = "unmeasured" if row.utility is None else f"utility {row.utility * 100:+.2f} Dice points"
    level = "" if row.level is None else f" {row.level}"
    return f"{row.family}{level}: {'on' if row.on else 'off'}, {worth}, {row.cost:,} parameters; {row.reason}"


def _text(text: str) -> str:
    """Text of somebody else's as text of an SVG."""
    return escape(visible(text, keep="\n"))


def _legend(y: float, colours: dict[str, str]) -> list[str]:
    entries = [(colour, family, True) for family, colour in colours.items()]
    entries += [(REFUSED, "refused", True), (UNDECIDED, "dashed: no unit measured there", False)]
    parts, x = [], float(_LEFT)
    for colour, name, measured in entries:
        parts.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="12" height="12" fill="{colour}"{_border(measured)}/>'
            f'<text x="{x + 17:.0f}" y="{y + 10:.0f}" class="legend">{_text(name)}</text>'
        )
        x += 34 + len(name) * 6.2
    letters = ", ".join(f"{letter} {kind}" for kind, letter in _LETTERS.items())
    parts.append(f'<text x="{x:.0f}" y="{y + 10:.0f}" class="legend" style="fill:#666">{letters}</text>')
    return parts
