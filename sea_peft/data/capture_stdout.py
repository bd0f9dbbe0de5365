"""Keeps the output of C++ libraries from the terminal, and turns it into notes."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

_LONGEST = 160
_MOST = 20
_MOST_BYTES = 1 << 20


@contextlib.contextmanager
def capture_stdout(notes: list[str]) -> Iterator[None]:
    """Collect everything that is written to the process's standard output and error in `notes`,
    line by line.

    ITK, GDCM and MetaIO write there past Python. Their lines name source files and addresses; only
    the message is kept.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    with contextlib.ExitStack() as undo, tempfile.TemporaryFile() as kept:
        for descriptor in (1, 2):
            try:
                saved = os.dup(descriptor)
            except OSError:  # closed: nothing can be written to it
                continue
            os.dup2(kept.fileno(), descriptor)
            undo.callback(os.close, saved)
            undo.callback(os.dup2, saved, descriptor)
        try:
            yield
        finally:
            undo.close()
            kept.seek(0)
            notes += _messages(kept.read(_MOST_BYTES).decode(errors="replace"))


def _messages(text: str) -> list[str]:
    """The messages in the output, each once, without source files, addresses and empty lines."""
    lines = [re.sub(r"^\S*\s*\(0x[0-9a-f]+\):\s*", "", line.strip()) for line in text.splitlines()]
    kept = dict.fromkeys(
        line for line in lines if line and not re.match(r"(WARNING: )?In \S+\.\w+, line \d+", line)
    )
    said = ["".join(c if c.isprintable() else "?" for c in line) for line in kept]
    short = [line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…" for line in said[:_MOST]]
    return short if len(said) <= _MOST else [*short, f"and {len(said) - _MOST} messages more"]
