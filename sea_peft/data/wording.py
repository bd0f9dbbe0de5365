"""Paths and shapes as they appear in sentences."""

from collections.abc import Iterable, Sequence
from pathlib import Path


def shown(path: Path) -> str:
    """The path on one line, whatever characters its name has."""
    return "".join(c if c.isprintable() else "?" for c in str(path))


def times(shape: Iterable[object]) -> str:
    """`5×6×7`."""
    return "×".join(str(n) for n in shape)


def count(n: int, noun: str) -> str:
    """`1 case`, `2 cases`.

    Examples:
        >>> count(1, "shot"), count(5, "shot")
        ('1 shot', '5 shots')
    """
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def in_plain_words(shape: Sequence[int]) -> str:
    """Why a file with these axes holds no single volume, as a part of a sentence."""
    axes = f"has {len(shape)} axes ({times(shape)}); a 3D volume is needed"
    if len(shape) < 3:
        return f"{axes}, and this is one picture: export the whole series as one file"
    return (
        f"{axes}, and this holds {shape[-1]} of them: split it into one file per channel or point"
        " in time"
    )
