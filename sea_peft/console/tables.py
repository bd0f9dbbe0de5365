"""Results as tables for a terminal, in 80 columns if possible."""

import math
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sea_peft.artefacts.words import visible

_STATES = {
    "ok": "green",
    "warning": "bold yellow",
    "problem": "bold red",
    "done": "green",
    "failed": "bold red",
}


# nobody reads more, and laying out thousands of them takes longer than checking as many scans
_MOST_ROWS = 500
# of more columns, two blanks between them instead of three leave room for a name of a case
_FEW_COLUMNS = 7


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()
) -> Table:
    """A table with a title. Columns named in `right` hold numbers and do not wrap. If there are
    very many rows, the last line says how many are left out.
    """
    made = _titled(title)
    made.collapse_padding = len(columns) > _FEW_COLUMNS
    for name in columns:
        number = name in right
        made.add_column(
            visible(name), justify="right" if number else "left", no_wrap=number, overflow="fold"
        )
    every = list(rows)
    for row in every[:_MOST_ROWS]:
        made.add_row(*(cell(value) for value in row))
    if len(every) > _MOST_ROWS:
        made.caption, made.caption_justify = (
            f"… and {len(every) - _MOST_ROWS:,} more; --json has them all",
            "left",
        )
    return made


def facts(pairs: Iterable[tuple[str, object]], title: str = "") -> Table:
    """Names and values, one per line."""
    made = _titled(title, header=False)
    made.add_column(no_wrap=True, style="dim")
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(visible(name), cell(value))
    return made


def _titled(title: str, header: bool = True) -> Table:
    return Table(
        title=visible(title) or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD if header else None,
        show_header=header,
        pad_edge=False,
        show_edge=False,
    )


def cell(value: object) -> RenderableType:
    """Any value as one cell: numbers with separators, lists with commas, a dash for a missing
    value.
    """
    if isinstance(value, Text | Group):
        return value
    if value is None or value in ("", (), []) or (isinstance(value, float) and math.isnan(value)):
        return Text("–", style="dim")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, int):
        return Text(f"{value:,}")
    if isinstance(value, float):
        return Text(f"{value:.3f}")
    if isinstance(value, (list, tuple)):
        return Text(visible(", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value)))
    return Text(visible(str(value)))


def state(word: str) -> Text:
    """ok, warning, problem, done or failed, in its colour."""
    return Text(word, style=_STATES.get(word, ""))


def times(values: Iterable[float] | None) -> str | None:
    """Sizes such as `240×240×155` or `1×1×1.5`; None if there are none."""
    return None if values is None else "×".join(f"{v:g}" for v in values)
