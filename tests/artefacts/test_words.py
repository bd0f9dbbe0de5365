"""What names can do to a terminal, to Markdown and to a figure: nothing."""

from __future__ import annotations

import dataclasses
import re

import pytest
from example_run import make_events, make_result, write_run
from markdown_it import MarkdownIt

from sea_peft.artefacts import figures, plots
from sea_peft.artefacts.history import History
from sea_peft.artefacts.report import report_html, report_markdown
from sea_peft.artefacts.words import markdown, visible
from sea_peft.loop import events as ev

HOSTILE = [
    "\x1b]0;TITLE\x07\x1b[31mliver\x9b5m",
    "liver\u202egpj.exe\u2066\u200b\u200f",
    "liver\r\nseapeft: all is well\x08\x7f\u2028",
    "half \udc80 of a character \x00",
    "<img src=http://evil.example/a.png onerror=alert(1)>",
    "![x](http://evil.example/a.png) [y](javascript:alert(1)) http://evil.example www.evil.example",
    ":octocat: @admin *bold* _slant_ `code` ~~gone~~ <!-- --> &lt;b&gt; # | $\\frac$ \\",
]
COMMANDS = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff]"
)


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_of_a_name_is_obeyed(text):
    assert not COMMANDS.search(visible(text))


@pytest.mark.parametrize(
    "text", ["liver", "肝臓", "Leber ü", "می‌خواهم", "क्षि", "Ελληνικά, 5 µm", "👩‍⚕️"]
)
def test_names_in_any_script_are_left_as_they_are(text):
    assert visible(text) == text


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("place", ["{}", "# {}", "- {}", "**{}**", "| a |\n| --- |\n| {} |"])
def test_markdown_of_a_name_is_its_text_and_no_markup(text, place):
    reader = MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough")
    (plain,) = {reader.render(place.format("§")).replace("§", "{}")}
    shown = reader.render(place.format(markdown(text)))
    assert (
        re.sub("<[^>]*>", "", shown).strip()
        == re.sub("<[^>]*>", "", plain).strip().format(escaped(visible(text))).strip()
    )
    assert re.findall("<[^>]*>", shown) == re.findall("<[^>]*>", plain)


def escaped(text: str) -> str:
    return (
        text.strip()
        .replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace('"', "&quot;")
    )


def renamed(name: str):
    """A run with one label, one site and one family of this name."""

    def changed(value):
        if isinstance(value, str):
            return value.replace("liver", name).replace("stem_layers.0.conv", name)
        if isinstance(value, dict):
            return {changed(key): changed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [changed(item) for item in value]
        if dataclasses.is_dataclass(value):
            return type(value)(
                **{f.name: changed(getattr(value, f.name)) for f in dataclasses.fields(value)}
            )
        return value

    return [
        type(event)(**{f.name: changed(getattr(event, f.name)) for f in dataclasses.fields(event)})
        for event in make_events(shots=1)
    ]


@pytest.mark.parametrize("name", [name for name in HOSTILE if "\udc80" not in name])
def test_reports_and_figures_of_a_run_with_such_names(name, tmp_path):
    events = [event for event in renamed(name) if not isinstance(event, ev.TrainingStep)]
    report = report_markdown(make_result(events), events)
    assert not COMMANDS.search(report.replace("\n", ""))
    shown = MarkdownIt("commonmark", {"html": True}).enable("table").render(report)
    assert set(re.findall("<(/?[a-z0-9]+)", shown)) <= {
        *("h1", "h2", "p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"),
        *("/h1", "/h2", "/p", "/ul", "/li", "/table", "/thead", "/tbody", "/tr", "/th", "/td"),
    }
    page = report_html(write_run(tmp_path, events))
    assert not COMMANDS.search(page.replace("\n", "").replace("\t", ""))
    assert "<img src=http" not in page
    for figure in figures.FIGURES.values():
        assert plots.png(figure(History(events))).startswith(b"\x89PNG")
