"""The report: Markdown that a person reads first, and one HTML page that works offline."""

import base64
import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence
from importlib import resources

from sea_peft import __version__
from sea_peft.artefacts import figures
from sea_peft.artefacts.commands import Commands
from sea_peft.artefacts.drawing import LETTERS, network_drawing
from sea_peft.artefacts.finding_tables import Table, unit_cells
from sea_peft.artefacts.findings import UNKNOWN, findings
from sea_peft.artefacts.history import History
from sea_peft.artefacts.known_labels import TITLE
from sea_peft.artefacts.names import in_short
from sea_peft.artefacts.palette import REFUSED, family_colours
from sea_peft.artefacts.plots import svg
from sea_peft.artefacts.result import Result
from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.artefacts.trace import read_trace
from sea_peft.artefacts.view import summarise
from sea_peft.artefacts.words import code, markdown, visible
from sea_peft.data.wording import count
from sea_peft.loop.events import Event


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image with its caption, which must not name a patient. `kind`: its media type."""

    caption: str
    data: bytes
    kind: str = "image/png"

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        return f"data:{self.kind};base64,{base64.b64encode(self.data).decode('ascii')}"


_CAPTIONS = {
    "active_sites": (
        "A row for every place in the network, in the order in which a scan passes through it; a"
        " column for every cycle. The last column is what was shipped."
    ),
    "utility_against_cost": (
        "Every measured unit: how many Dice points the audit cases lose when it is switched off"
        " (bars: standard error over patches), and how many {many} it takes. Units above the dashed"
        " line give more per {one} than the last one that still fitted."
    ),
    "utilities_over_cycles": "How the same numbers moved from audit to audit.",
    "budget_ledger": (
        "What the {many} were spent on in every cycle; nothing may cross the red line."
    ),
    "dice_over_cycles": (
        "Left: the audit cases while the search went on, with what they are compared with. Right:"
        " the test cases, which were never looked at before."
    ),
}
# a word around an @, without the punctuation behind it
_UNIT_ID = re.compile(r"(\w[^\s@]*@[^\s:;,)]*[^\s:;,).])")


def report_markdown(
    result: Result | None, events: Iterable[Event], commands: Commands = UNKNOWN
) -> str:
    """`report.md`: verdict, caveats, Dice, budget, and which units were placed or refused, and why.

    Args:
        result: `result.json` of the run; None while it continues.
        events: the trace.
        commands: how to continue, without paths, since the report may be shared.
    """
    history = History(events)
    found = findings(history, commands)
    parts = [f"# {markdown(found.headline)}", "", markdown(_facts(result, history)), ""]
    said = [f"{markdown(advice.text)} {code(advice.command)}" for advice in found.advice]
    said += map(markdown, found.verdict)
    parts += [*(f"- {sentence}" for sentence in said), ""] if said else []
    parts += [
        "## Before you trust it",
        "",
        *(f"- {markdown(caveat)}" for caveat in found.caveats),
        "",
    ]
    sections = {
        found.scored_on: found.dice,
        TITLE: found.known,
        "Budget": found.budget,
        f"What was placed where: units ({history.started.cost_kind.many})": found.placement,
        "Why these": found.placed,
        "Why not those": found.refused,
    }
    for title, table in sections.items():
        if table.rows:
            parts += [f"## {title}", "", _markdown(table), ""]
    return "\n".join(parts)


def report_html(
    run_folder: RunFolder, overlays: Sequence[Picture] = (), explanation: Sequence[Picture] = ()
) -> str:
    """One self-contained HTML page of a run: verdict, tables, a drawing of the network, figures.
    Loads nothing from elsewhere.

    Args:
        run_folder: a run, finished or not.
        overlays: pictures of the best, median and worst test case.
        explanation: pictures that explain the network, for a section of their own.

    Raises:
        UsageError: the folder's trace or result cannot be read.
    """
    import jinja2

    history = History(read_trace(run_folder.trace))
    result = run_folder.read_result() if run_folder.result.exists() else None
    template = resources.files("sea_peft.artefacts").joinpath("report.html.j2").read_text("utf-8")
    kind = history.started.cost_kind
    drawn = [
        Picture(
            _CAPTIONS[name].format(one=kind.one, many=kind.many),
            svg(figure(history)),
            "image/svg+xml",
        )
        for name, figure in figures.FIGURES.items()
    ]
    commands = (
        Commands.of(run_folder.read_config().typed) if run_folder.config.is_file() else UNKNOWN
    )
    pages = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_readable
    )
    pages.filters["in_short"] = functools.partial(in_short, names=history.names)
    pages.filters["around_ids"] = _UNIT_ID.split
    return pages.from_string(template).render(
        name=run_folder.title,
        facts=_facts(result, history),
        cost=kind.many,
        found=findings(history, commands),
        known_labels=TITLE,
        names=history.names,
        every=unit_cells(history, summarise(history)),
        drawing=network_drawing(history),
        colours=family_colours(row.family for row in history.units.values()) | {"refused": REFUSED},
        letters=LETTERS,
        figures=drawn,
        overlays=overlays,
        explanation=explanation,
        version=__version__,
    )


def _readable(value: object) -> object:
    """Text without characters that would reverse or hide the rest of the page. Markup made by
    macros is already safe.
    """
    return visible(value) if type(value) is str else value


def _facts(result: Result | None, history: History) -> str:
    facts = [
        f"policy {history.started.policy}",
        f"seed {history.started.seed}",
        count(sum(not a.final for a in history.allocations), "cycle"),
    ]
    if result is not None:
        peak = f"peak memory {result.peak_memory_bytes / 2**30:.1f} GiB"
        facts += [result.device, f"{result.seconds.total / 60:.1f} minutes", peak]
    return ", ".join(facts)


def _markdown(table: Table) -> str:
    header, *rows = ([markdown(cell) for cell in line] for line in (table.header, *table.rows))
    return "\n".join(
        "| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows)
    )
