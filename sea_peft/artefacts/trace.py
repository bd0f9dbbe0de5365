"""The trace: one JSON line per event, the source of truth of a run.

The first line is `run_started` and carries the version of the schema, which `sea_peft.loop.events`
defines. Everything but the fields named `seconds` depends on data, settings and seed alone.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sea_peft import documents
from sea_peft.atomic import sync_folder, writing
from sea_peft.errors import UsageError
from sea_peft.loop.events import SCHEMA_VERSION, Event, RunStarted, TrainingStep

_LONGEST_TRACE = 1 << 30


class TraceWriter:
    """Callback that appends every event but `TrainingStep` to a JSON-lines file.

    Each line is on the disk before the call returns, so no checkpoint is ever ahead of the trace. A
    new writer refuses a file that exists. With `append=True` it continues after the last complete
    line; after `truncate` to the number of events in the checkpoint, a resumed run writes the same
    trace as an uninterrupted one. A partly written line is removed again.

    Raises:
        DiskError: the disk is full or the file cannot be written.
        UsageError: another process is writing it.
    """

    def __init__(self, path: Path, *, append: bool = False) -> None:
        self.path = path
        self._ends: list[int] = []  # byte offset after each complete line
        with writing(self.path):
            self._file = self.path.open("ab" if append else "xb", buffering=0)
            self._lock()
            with self.path.open("rb") as written:
                lines = itertools.takewhile(
                    lambda line: line.endswith(b"\n"), _lines(written, str(self.path))
                )
                self._ends = list(itertools.accumulate(len(line) for line in lines))
            self._cut()  # drops the incomplete line of a killed process
            sync_folder(self.path.parent)

    def _lock(self) -> None:
        """Keep other writers out until this one is closed or its process ends, if the file
        system can.
        """
        if os.name == "nt":
            return
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise UsageError(
                f"Another process is writing {self.path}: let it end, or end it, before this one"
                " goes on."
            ) from error
        except OSError:
            pass  # some network file systems have no locks

    @property
    def _end(self) -> int:
        """Byte offset after the last complete line."""
        return self._ends[-1] if self._ends else 0

    def _cut(self) -> None:
        """Drop everything after the last complete line."""
        self._file.truncate(self._end)
        self._file.seek(self._end)

    @property
    def count(self) -> int:
        """Number of events in the file: stored in checkpoints, for `truncate`."""
        return len(self._ends)

    def __call__(self, event: Event) -> None:
        if isinstance(event, TrainingStep):
            return
        try:
            line = (
                json.dumps(event.as_dict(), allow_nan=False, ensure_ascii=False).encode("utf-8")
                + b"\n"
            )
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Event {event.kind!r} holds a value that JSON cannot: {error}."
            ) from error
        with writing(self.path):
            try:
                left = memoryview(line)
                while left:  # a disk that fills up takes only a part of it
                    left = left[self._file.write(left) :]
                os.fsync(self._file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    self._cut()
                raise
        self._ends.append(self._end + len(line))

    def truncate(self, n_events: int) -> None:
        """Keep the first `n_events` events: those of the checkpoint that the run resumes from.

        Raises:
            UsageError: the file holds fewer events.
        """
        if n_events > self.count:
            raise UsageError(
                f"Cannot resume: {self.path} holds {self.count} events but the checkpoint was made"
                f" after {n_events}, so the trace was shortened; start a new run."
            )
        del self._ends[n_events:]
        with writing(self.path):
            self._cut()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close the file; closing twice is fine."""
        if not self._file.closed:
            with writing(self.path):
                os.fsync(self._file.fileno())
                self._file.close()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_trace(path: Path) -> list[Event]:
    """The events of a trace, in order.

    A last line without its newline is the incomplete one of a killed process, and is dropped. Any
    other unreadable line is an error.

    Raises:
        UsageError: there is no such file, or it is no trace, or one of another version.
    """
    events: list[Event] = []
    known: frozenset[str] = frozenset()
    try:
        with path.open("rb") as file:
            for number, line in enumerate(_lines(file, str(path)), start=1):
                if not line.endswith(b"\n"):
                    break
                where = f"{path}, line {number}"
                event = _event(line, where, first=number == 1)
                if isinstance(event, RunStarted):
                    known = _offered(event, where)
                for unit in _named(event):
                    if unit not in known:
                        raise UsageError(
                            f"{where}: unit {unit!r} is not on offer in this run: the trace is"
                            " damaged."
                        )
                events.append(event)
    except OSError as error:
        raise UsageError(
            f"Cannot read the trace {path}: {error.strerror}; name a run folder that has one."
        ) from error
    return events


def _lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    """The lines, one at a time, each with its newline; the last may lack it.

    Raises:
        UsageError: a line, or the file, is longer than any run's, and reading it could take all
            memory.
    """
    left = _LONGEST_TRACE
    while line := file.readline(documents.MOST_BYTES + 1):
        left -= len(line)
        if len(line) > documents.MOST_BYTES or left < 0:
            raise UsageError(
                f"{name} is longer than the trace of any run (a line of it, or all): this is not a"
                " trace of a run."
            )
        yield line


def _offered(event: RunStarted, where: str) -> frozenset[str]:
    units = frozenset(row.unit for row in event.units)
    if len(units) < len(event.units):
        raise UsageError(f"{where} offers one unit twice: the trace is damaged.")
    return units


def _named(event: Event) -> Iterator[str]:
    """Every unit that an event names."""
    for name in ("active", "probes", "saliency"):
        yield from getattr(event, name, ())
    for name in ("rows", "decisions"):
        yield from (row.unit for row in getattr(event, name, ()))


def _event(line: bytes, where: str, first: bool) -> Event:
    try:
        row = documents.load(line)
    except documents.Invalid as error:
        raise UsageError(
            f"{where}: {error}; the trace is damaged, run `seapeft adapt` again."
        ) from error
    if not isinstance(row, dict) or not isinstance(row.get("event"), str):
        raise UsageError(f"{where} is not an event: this is not a trace of a run.")
    kind = row.pop("event")
    if first != (kind == RunStarted.kind):
        raise UsageError(
            f"{where} is {kind!r}: a trace begins with {RunStarted.kind!r}, and with one alone."
        )
    if first and row.get("version") != SCHEMA_VERSION:
        raise UsageError(
            f"{where} has version {row.get('version')!r} but this sea_peft reads version"
            f" {SCHEMA_VERSION}: install the sea_peft that wrote it."
        )
    kinds = {cls.kind: cls for cls in Event.__subclasses__() if cls is not TrainingStep}
    if kind not in kinds:
        raise UsageError(
            f"{where} has the unknown event {kind!r}: install the sea_peft that wrote it."
        )
    try:
        return documents.check(kinds[kind], row)
    except documents.Invalid as error:
        raise UsageError(
            f"{where}: event {kind!r} is not as this sea_peft writes it ({error})."
        ) from error
