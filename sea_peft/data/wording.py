"""Paths and shapes as they appear in sentences."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def shown(path: Path) -> str:
    """The path on one line, whatever characters its name has."""
    return "".join(c if c.isprintable() else "?" for c in str(path))


def times(shape: Iterable[object]) -> str:
    """`5×6×7`."""
    return "×".join(str(n) for n in shape)
