"""The help of every verb."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from sea_peft.cli import app, run


def verbs(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from verbs(inner, (*path, name))


@pytest.mark.parametrize("path", verbs(typer.main.get_command(app)), ids=" ".join)
def test_types_are_words_of_the_field(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Usage: seapeft" in shown
    assert not re.findall(r"<(?:bool|int|float|str|path|list)\b.*>", shown)
    assert max(map(len, shown.splitlines())) <= 80
