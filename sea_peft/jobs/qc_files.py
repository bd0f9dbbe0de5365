"""The table of `predict --qc`, and pages of masks that somebody should check first."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from sea_peft import __version__
from sea_peft.artefacts.words import visible
from sea_peft.atomic import write_text
from sea_peft.data.wording import count
from sea_peft.errors import UsageError
from sea_peft.jobs.quality import Judged

_HEADER = ["case", "label", "expected_dice", "low", "high", "flags"]


def write_qc(table: Path, judged: Mapping[str, Judged]) -> None:
    """`qc.csv`: a row for every case and label, the least trusted case first. Raises DiskError."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_HEADER)
    for case in worst_first(judged):
        found = judged[case]
        flags = " ".join(found.flags)
        rows.writerows(
            [case, label, *(f"{value:.3f}" for value in of), flags]
            for label, of in found.expected.items()
        )
        if not found.expected:
            rows.writerow([case, "", "", "", "", flags])
    write_text(table, text.getvalue())


def worst_first(judged: Mapping[str, Judged]) -> list[str]:
    """The cases: those with flags first, then by rising expected Dice."""
    return sorted(judged, key=lambda case: (not judged[case].flags, judged[case].mean))


def qc_page(judged: Mapping[str, Judged], pictures: Mapping[str, str]) -> str:
    """`qc.html`: each case with its flags, the expected Dice of its masks and its picture, in the
    order of `worst_first`.

    `pictures`: case → file beside the page.
    """
    flagged = sum(bool(found.flags) for found in judged.values())
    return page_of_masks(
        "Masks to look at",
        f"{flagged} of {count(len(judged), 'case')} flagged",
        "Flagged cases first, then the least trusted. A mask without a flag is not thereby right.",
        [ShownMask(case, judged[case], pictures.get(case)) for case in worst_first(judged)],
    )


@dataclasses.dataclass(frozen=True)
class ShownMask:
    """A case on a page: its judgement, its picture's file beside the page, and why it is there."""

    case: str
    judged: Judged
    picture: str | None
    why: str | None = None


def page_of_masks(title: str, heading: str, about: str, shown: Sequence[ShownMask]) -> str:
    """An HTML page of cases in this order, each with its flags, expected Dice by label, and
    picture.
    """
    import jinja2

    template = resources.files("sea_peft.artefacts").joinpath("qc.html.j2").read_text("utf-8")
    page = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    return page.from_string(template).render(
        title=title, heading=heading, about=about, shown=shown, version=__version__
    )


def require_own_table(table: Path) -> None:
    """Raise UsageError if `qc.csv` is a file of another kind."""
    if not table.exists():
        return
    try:
        first = table.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, ValueError):
        first = ""
    if first != ",".join(_HEADER):
        raise UsageError(f"{table} exists and is no table of `predict --qc`; choose another --out.")
