"""Parsers of command-line values. Each raises typer.BadParameter, which names the flag."""

import json
import re
from collections.abc import Sequence

import typer

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def size(text: str) -> tuple[int, int, int]:
    """`48,48,32` → voxels along D, H, W."""
    if not re.fullmatch(r"\s*\d+\s*([,x×]\s*\d+\s*){2}", text):
        raise typer.BadParameter(
            f"{text!r} is not a size; write three whole numbers of voxels such as 48,48,32."
        )
    d, h, w = (int(part) for part in re.split(r"[,x×]", text))
    return d, h, w


def millimetres(text: str) -> tuple[float, float, float]:
    """`1.5,1.5,2` → mm along D, H, W. One number stands for all three."""
    try:
        parts = [float(part) for part in text.split(",")]
    except ValueError:
        parts = []
    if len(parts) == 1:
        parts *= 3
    if len(parts) != 3 or not all(0 < part <= 100 for part in parts):
        raise typer.BadParameter(
            f"{text!r} is not a voxel size; write three numbers of mm such as 1.5,1.5,2."
        )
    return parts[0], parts[1], parts[2]


def numbers(text: str) -> tuple[float, ...]:
    """`0.5,0.5` → numbers."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no list of numbers; write them as 0.5,0.5."
        ) from None


def intensity(text: str) -> tuple[str, tuple[float, float] | None]:
    """`window:-175,250`, `percentile:0.5,99.5`, `minmax`, `zscore`, `none` or `none:0,4095` → its
    name, and its range if it has one.
    """
    kind, colon, ends = text.strip().partition(":")
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)\s*", ends)
    both = None if match is None else (float(match[1]), float(match[2]))
    ordered = both is None or both[0] < both[1]
    fits = {
        "window": both,
        "percentile": both,
        "none": both or not colon,
        "minmax": not colon,
        "zscore": not colon,
    }
    if not ordered or not fits.get(kind):
        raise typer.BadParameter(
            f"{text!r} is no scaling of grey values; write window:LOW,HIGH (such as"
            " window:-175,250), percentile:LOW,HIGH, minmax, zscore or none."
        )
    return kind, both


def orientation(text: str) -> str:
    """`RAS`, `LAI`, …: the directions of D, H and W."""
    codes = text.strip().upper()
    if len(codes) != 3 or not all(
        sum(code in pair for code in codes) == 1 for pair in ("RL", "AP", "SI")
    ):
        raise typer.BadParameter(
            f"{text!r} is no orientation; write one letter of R/L, A/P and S/I for each of the axes"
            " D, H, W, such as RAS or LPS."
        )
    return codes


def tests(text: str) -> int | str:
    """`20`, `none` or `cv`: the cases that a run is scored on."""
    if text in ("none", "cv"):
        return text
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(
            f"{text!r} is not a number of test cases; write one from 1 up, none or cv."
        )
    return int(text)


def codes(text: str) -> tuple[str, tuple[int, ...]]:
    """`liver=1` or `tumour=1,2,4` → name and codes."""
    name, equals, listed = text.partition("=")
    if not equals or not name.strip() or not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", listed):
        raise typer.BadParameter(
            f"{text!r} names no codes; write NAME=CODES such as liver=5 or tumour=1,2,4."
        )
    return name.strip(), tuple(int(code) for code in listed.split(","))


def settings(texts: Sequence[str]) -> dict[str, object]:
    """`feature_size=24`, `blocks=[1,2,2]`, `merging=monai<1.5` → name to value: JSON if it parses,
    else the text.
    """
    found: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise typer.BadParameter(
                f"{text!r} is not a setting; write NAME=VALUE such as feature_size=24."
            )
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value.strip("'\"")
    return found


def duration(text: str) -> float:
    """A time such as `90s`, `20m`, `2h` or `1h30m`, in seconds.

    Examples:
        >>> duration("1h30m")
        5400.0
    """
    if not re.fullmatch(r"(\d+(\.\d+)?[smh])+", text.strip()):
        raise typer.BadParameter(f"{text!r} is not a time; write 90s, 20m or 2h.")
    seconds = sum(
        float(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
    )
    if seconds <= 0:
        raise typer.BadParameter(f"{text!r} leaves no time at all; write 90s, 20m or 2h.")
    return seconds
