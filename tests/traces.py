"""Traces of two runs, made comparable."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from sea_peft.loop.events import Event


def without_times(events: Iterable[Event]) -> list[Event]:
    """The same events with every `seconds` set to 0, to compare two runs."""
    return [
        dataclasses.replace(event, seconds=0.0) if hasattr(event, "seconds") else event  # type: ignore[call-arg]
        for event in events
    ]
