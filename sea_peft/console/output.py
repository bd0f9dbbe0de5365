"""The output of verbs: results go to stdout; progress, sentences and warnings go to stderr."""

import contextlib
import io
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.segment import Segment
from rich.status import Status
from rich.table import Column
from rich.text import Text

from sea_peft.artefacts.words import visible
from sea_peft.console.torchrun import Started
from sea_peft.data.progress import unwatched

# Piped or logged output is not cut at 80 columns, since it is not read in a window
_WIDTH_OF_A_FILE = 180
_SECONDS_BETWEEN_LINES = 5.0
_BARELY_BEGUN = 0.01  # of the work: too little to say from it how long the rest takes
_WARNING = "warning: "
# A command in backquotes, a command that ends the sentence, or a word
_UNBROKEN = re.compile(r"[^\s`]*`[^`]+`[^\s`]*|(?<=: )seapeft .+$|\S+")


class Output:
    """Speaks by the rules of the command line.

    Results go to stdout: tables for people, or with `json` exactly one JSON document. Everything
    else goes to stderr: with rich on a terminal, as plain lines elsewhere. `quiet` leaves only
    warnings and errors, `verbose` adds the log of libraries.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json, self.quiet, self.verbose = json, quiet, verbose
        self.answered = False
        self._at_work: Status | None = None
        self.results, self.notes = console(), console(stderr=True)
        handler = logging.StreamHandler()
        handler.setFormatter(_Formatter("%(name)s: %(message)s"))
        logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, handlers=[handler])
        logging.captureWarnings(verbose)
        if not verbose:
            warnings.simplefilter("ignore")  # those of libraries; ours are sentences

    @property
    def animated(self) -> bool:
        """Whether to show a spinner and bars: on a terminal that this process has to itself. What
        other processes of a run print, and torchrun, would end up in the middle of their lines.
        """
        return self.notes.is_terminal and not self.quiet and Started.here().size == 1

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Show a spinner on a terminal from the first moment until `rest`, since loading torch and
        MONAI alone takes seconds.
        """
        if self.animated:
            self._at_work = self.notes.status("working …", spinner_style="dim")
            self._at_work.start()
        elif self.notes.is_terminal:
            self.say("working …")
        try:
            yield
        finally:
            self.rest()

    def rest(self) -> None:
        """Stop the spinner: there is a result, a progress bar, or nothing to wait for."""
        if self._at_work is not None:
            self._at_work.stop()
            self._at_work = None

    def say(self, sentence: str) -> None:
        """A sentence about what is going on."""
        if not self.quiet:
            self._note(visible(sentence))

    def warn(self, sentence: str) -> None:
        """A sentence that must not be missed."""
        self._note(f"{_WARNING}{visible(sentence)}")

    def fail(self, sentence: str) -> None:
        """The sentence of an error. Raises OSError if stderr is full or closed."""
        self.notes.print(self._wrapped(visible(sentence)), soft_wrap=True, style="red")

    def result(self, document: object, *tables: RenderableType) -> None:
        """The result of a verb: `document` with --json, else the tables. Called once."""
        self.answered = True
        self.rest()
        if self.json:
            from sea_peft.documents import as_json

            unicode = (sys.stdout.encoding or "").lower().replace("-", "") in (
                "utf8",
                "utf16",
                "utf32",
            )
            text = json.dumps(
                as_json(document), indent=2, ensure_ascii=not unicode, allow_nan=False
            )
            print(_escaped(text), flush=True)
            return
        if self.results.is_terminal:
            self._print(tables)
            return
        with (
            self.results.capture() as captured
        ):  # tables are padded to a rectangle, which a file does not need
            self._print(tables)
        print("\n".join(line.rstrip() for line in captured.get().splitlines()), flush=True)

    def _note(self, sentence: str) -> None:
        text = Text(self._wrapped(sentence))
        if sentence.startswith(_WARNING):
            text.stylize("bold yellow", 0, len(_WARNING))
        with contextlib.suppress(OSError):  # stderr is full or closed, so there is nobody to tell
            self.notes.print(text, soft_wrap=True)

    def _wrapped(self, sentence: str) -> str:
        return wrapped(sentence, self.notes.width) if self.notes.is_terminal else sentence

    def _print(self, tables: Sequence[RenderableType]) -> None:
        for number, shown in enumerate(tables):
            if number:
                self.results.print()
            if isinstance(shown, Text) and self.results.is_terminal:
                self.results.print(
                    Text(wrapped(shown.plain, self.results.width), style=shown.style),
                    soft_wrap=True,
                )
            else:
                self.results.print(
                    shown, crop=False
                )  # a command that is longer than a line is shown whole

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[Callable[[float, int], None]]:
        """Show how far `what` is: by a bar with the time left if `animated`, otherwise by a line
        every few seconds.

        Yields what to call with (cases done, of); the case at work counts by a fraction.
        """
        if self.quiet:
            yield unwatched
        elif self.animated:
            self.rest()
            with bars(self.notes) as drawn:
                task = drawn.add_task(what, total=None)
                yield lambda done, of: drawn.update(task, completed=done, total=of)
        else:
            yield Lines(self, what)


def wrapped(sentence: str, width: int) -> str:
    """Break a sentence into lines of at most `width` columns, between words and never inside a
    command.

    A command that is wider than a line stays whole, so that it can be copied from the terminal.

    Examples:
        >>> print(wrapped("One shot leaves no test case; use `seapeft adapt --shots 5`.", 30))
        One shot leaves no test case;
        use `seapeft adapt --shots 5`.
    """
    if cell_len(sentence) <= width:
        return sentence
    lines: list[str] = []
    for part in _UNBROKEN.findall(sentence):
        if lines and cell_len(lines[-1]) + 1 + cell_len(part) <= width:
            lines[-1] += f" {part}"
        else:
            lines.append(part)
    return "\n".join(lines)


def prepare_streams() -> None:
    """Let stdout and stderr escape characters that their encoding lacks instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def abandon(stream: IO[str]) -> None:
    """Drop what could not be written to a stream, so that it is not tried again when the
    process ends.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Lines:
    """Progress without a bar: a line at the end, and on the way every few seconds."""

    def __init__(self, output: Output, what: str) -> None:
        self._output, self._what = output, what
        self._began = time.monotonic()
        self._next = self._began + _SECONDS_BETWEEN_LINES

    def __call__(self, done: float, of: int) -> None:
        now = time.monotonic()
        if done == 0:  # the work whose time is reported begins only now
            self._began = now
        if done >= of or now >= self._next:
            self._output.say(
                f"{self._what}: {int(done)} of {of}{time_left(now - self._began, done, of)}"
            )
            self._next = now + _SECONDS_BETWEEN_LINES


def time_left(seconds: float, done: float, of: int) -> str:
    """`, about 0:40 left` after `seconds` of work; empty at the end, and at the start, where the
    first windows or steps, slower than all others, would stand for the whole.
    """
    if not _BARELY_BEGUN * of < done < of:
        return ""
    return f", about {timer(seconds / done * (of - done))} left"


def timer(seconds: float) -> str:
    """A time such as `0:08`, `2:05` or `1:12:00`.

    Examples:
        >>> timer(125), timer(4320)
        ('2:05', '1:12:00')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _Count(ProgressColumn):
    """`3 of 8`; empty until the total is known."""

    def render(self, task: Task) -> Text:
        return Text(
            "" if task.total is None else f"{int(task.completed)} of {int(task.total)}",
            justify="right",
        )


class _Times(ProgressColumn):
    """Each time with its name: `0:20 so far, 1:20 left`, and `took 1:40` at the end. No time left
    is shown for tasks that are not `estimated`.
    """

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(f"took {timer(task.finished_time or 0.0)}")
        left = task.time_remaining if task.fields.get("estimated", True) else None
        return Text(
            f"{timer(task.elapsed or 0.0)} so far"
            + ("" if left is None else f", {timer(left)} left")
        )


class _Console(Console):
    """Lets only its own colours control the terminal, whatever the text contains."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield (
                segment
                if segment.control
                else segment._replace(text=visible(segment.text, keep="\n"))
            )


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), keep="\n\t")


def _escaped(document: str) -> str:
    """The same JSON document with `\\u001b` for what `visible` would spell out, so that
    programs read the names as they are.
    """
    return re.sub(
        r"[^ -~\n]", lambda c: c[0] if visible(c[0]) == c[0] else json.dumps(c[0])[1:-1], document
    )


def console(stderr: bool = False) -> Console:
    """A console that shows text literally: it interprets no markup and colours no numbers."""
    made = _Console(stderr=stderr, highlight=False, markup=False)
    if not made.is_terminal:
        made.width = _WIDTH_OF_A_FILE
    return made


def bars(notes: Console) -> Progress:
    """Progress bars on stderr, removed when they are done. The spinner shows that the process
    is alive.
    """
    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        _Count(Column(no_wrap=True)),
        _Times(Column(no_wrap=True)),
    )
    return Progress(*columns, console=notes, transient=True, expand=True)
