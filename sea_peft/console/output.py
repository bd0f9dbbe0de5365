"""Where everything that a verb says goes: results to stdout; progress, sentences and warnings to stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

# What is piped or logged is not cut at 80 columns: nobody looks at it in a window
_WIDTH_OF_A_FILE = 180
_SECONDS_BETWEEN_LINES = 5.0


class Output:
    """Says things by the rules of the command line.

    Results go to stdout: tables for people, or with `json` exactly one JSON document. Everything else goes to stderr: with rich
    on a terminal, as plain lines elsewhere. `quiet` leaves only warnings and errors, `verbose` adds what libraries log.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json, self.quiet, self.verbose = json, quiet, verbose
        self.answered = False
        self.results, self.notes = console(), console(stderr=True)
        logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="%(name)s: %(message)s")
        if not verbose:
            warnings.simplefilter("ignore")  # those of libraries; ours are sentences

    def say(self, sentence: str) -> None:
        """A sentence about what is going on."""
        if not self.quiet:
            self.notes.print(Text(sentence), soft_wrap=True)

    def warn(self, sentence: str) -> None:
        """A sentence that must not be missed."""
        self.notes.print(Text.assemble(("warning: ", "bold yellow"), sentence), soft_wrap=True)

    def result(self, document: Any, *tables: RenderableType) -> None:
        """The result of a verb: `document` with --json, else the tables. Called once."""
        self.answered = True
        if self.json:
            print(json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False))
            return
        if self.results.is_terminal:
            self._print(tables)
            return
        with self.results.capture() as captured:  # tables are padded to a rectangle, which a file does not need
            self._print(tables)
        print("\n".join(line.rstrip() for line in captured.get().splitlines()))

    def _print(self, tables: Sequence[RenderableType]) -> None:
        for number, shown in enumerate(tables):
            if number:
                self.results.print()
            self.results.print(shown)

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[Callable[[float, int], None]]:
        """A callback that takes (done, of), with fractions for a case at hand: a bar with the time left on a terminal, a line with
        it every few seconds elsewhere."""
        if self.quiet:
            yield lambda done, of: None
        elif self.notes.is_terminal:
            with bars(self.notes) as drawn:
                task = drawn.add_task(what, total=None)
                yield lambda done, of: drawn.update(task, completed=done, total=of)
        else:
            yield Lines(self, what)


class Lines:
    """Progress where there is no terminal: a line at the end, and on the way every few seconds."""

    def __init__(self, output: Output, what: str) -> None:
        self._output, self._what = output, what
        self._began = time.monotonic()
        self._next = self._began + _SECONDS_BETWEEN_LINES

    def __call__(self, done: float, of: int) -> None:
        now = time.monotonic()
        if done >= of or now >= self._next:
            self._output.say(f"{self._what}: {int(done)} of {of}{time_left(now - self._began, done, of)}")
            self._next = now + _SECONDS_BETWEEN_LINES


def time_left(seconds: float, done: float, of: int) -> str:
    """`, about 40 s left` after `seconds` of work; nothing at the start and at the end."""
    if not 0 < done < of:
        return ""
    left = seconds / done * (of - done)
    return f", about {left:.0f} s left" if left < 100 else f", about {left / 60:.0f} min left"


def console(stderr: bool = False) -> Console:
    """A console that keeps to its text: no guessing at markup or numbers to colour in it."""
    made = Console(stderr=stderr, highlight=False, markup=False)
    if not made.is_terminal:
        made.width = _WIDTH_OF_A_FILE
    return made


def bars(notes: Console) -> Progress:
    """Progress bars on stderr, gone when they are done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=notes,
        transient=True,
    )


def _plain(value: Any) -> Any:
    """`value` as JSON knows it: no NaN or infinity, no tuples, no paths."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
