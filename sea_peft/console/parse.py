"""Words of the command line → values. Each raises typer.BadParameter, which names the flag."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import typer

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def size(text: str) -> tuple[int, int, int]:
    """`48,48,32` → voxels along D, H, W."""
    if not re.fullmatch(r"\s*\d+\s*([,x×]\s*\d+\s*){2}", text):
        raise typer.BadParameter(f"{text!r} is not a size; write three whole numbers of voxels such as 48,48,32.")
    d, h, w = (int(part) for part in re.split(r"[,x×]", text))
    return d, h, w


def millimetres(text: str) -> tuple[float, float, float]:
    """`1.5,1.5,2` → mm along D, H, W; one number stands for all three."""
    try:
        parts = [float(part) for part in text.split(",")]
    except ValueError:
        parts = []
    if len(parts) == 1:
        parts *= 3
    if len(parts) != 3 or not all(0 < part <= 100 for part in parts):
        raise typer.BadParameter(f"{text!r} is not a voxel size; write three numbers of mm such as 1.5,1.5,2.")
    return parts[0], parts[1], parts[2]


def window(text: str) -> tuple[float, float]:
    """`-175,250` → low and high end in Hounsfield units."""
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)\s*", text)
    if match is None or float(match[1]) >= float(match[2]):
        raise typer.BadParameter(f"{text!r} is not a window; write its low and its high end such as -175,250.")
    return float(match[1]), float(match[2])


def tests(text: str) -> int | str:
    """`20`, `none` or `cv`: what a run is scored on."""
    if text in ("none", "cv"):
        return text
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is not a number of test cases; write one from 1 up, none or cv.")
    return int(text)


def settings(texts: Sequence[str]) -> dict[str, Any]:
    """`feature_size=24`, `blocks=[1,2,2]`, `merging=monai<1.5` → name to value: JSON where it is, else the text."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise typer.BadParameter(f"{text!r} is not a setting; write NAME=VALUE such as feature_size=24.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value.strip("'\"")
    return found


def duration(text: str) -> float:
    """`90s`, `20m`, `2h` or `1h30m` → seconds."""
    if not re.fullmatch(r"(\d+(\.\d+)?[smh])+", text.strip()):
        raise typer.BadParameter(f"{text!r} is not a time; write 90s, 20m or 2h.")
    seconds = sum(float(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+(?:\.\d+)?)([smh])", text))
    if seconds <= 0:
        raise typer.BadParameter(f"{text!r} leaves no time at all; write 90s, 20m or 2h.")
    return seconds
