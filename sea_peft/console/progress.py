"""A run as it happens: bars with the time left on a terminal, a line per cycle everywhere."""

from __future__ import annotations

import contextlib
import time

from rich.progress import Progress, TaskID

from sea_peft.console.output import Output, bars, time_left
from sea_peft.data.wording import count
from sea_peft.loop.events import Allocated, Audited, Compared, Event, Folded, RunStarted, Searched, TrainingStep

_PHASES = {
    "prepare": "prepare the shots",
    "head_only": "fit the head alone",
    "warmup": "search and refit",
    "search": "search and refit",
    "refit": "search and refit",
    "test": "score on test cases",
    "held_out": "score what is held out",
}
_SECONDS_BETWEEN_LINES = 15.0


class RunProgress:
    """Listens to the events of a run and shows how far it is."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._open = contextlib.ExitStack()
        self._next_line = 0.0
        self._phase = ""
        self._began, self._first = 0.0, 0  # of the phase: when, and after which step
        self._offered = 0

    def __enter__(self) -> RunProgress:
        if self._output.notes.is_terminal and not self._output.quiet:
            self._bars = self._open.enter_context(bars(self._output.notes))
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def __call__(self, event: Event) -> None:
        if isinstance(event, TrainingStep):
            self._step(event)
        elif isinstance(event, RunStarted):
            self._offered = len(event.units)
            self._output.say(
                f"{count(len(event.units), 'unit')} on offer, at most {event.limit:,} of {event.backbone_parameters:,} parameters "
                f"({event.limit / event.backbone_parameters:.2%}), policy {event.policy}."
            )
        elif isinstance(event, Searched) and event.phase == "refit":
            pass  # comes in many small parts
        elif isinstance(event, Searched):
            name = "warm-up" if event.phase == "warmup" else f"cycle {event.cycle}"
            probes = f", {len(event.probes)} of them probes" if event.probes else ""
            self._output.say(
                f"{name}: {count(len(event.active) + len(event.probes), 'unit')} trained{probes}, loss {event.loss:.3f} "
                f"({event.seconds:.0f} s)"
            )
        elif isinstance(event, Audited):
            caveat = "" if event.independent else ", not independent of the training scan"
            self._output.say(
                f"cycle {event.cycle}: {count(len(event.rows), 'unit')} audited, Dice {event.hard_dice:.3f} on audit patches{caveat} "
                f"({event.seconds:.0f} s)"
            )
        elif isinstance(event, Allocated) and not event.final and event.cycle == 0 and 0 < event.trial < self._offered:
            self._output.say(
                f"the cycles have room to try {event.trial} of these units; the others, of less saliency for their cost, are left out"
            )
        elif isinstance(event, Allocated) and event.final:
            self._output.say(
                f"chosen: {count(len(event.active), 'unit')}, {event.used:,} of {event.limit:,} parameters"
            )
        elif isinstance(event, Compared):
            stands = ", ".join(f"{name} {dice:.3f}" for name, dice in event.dice.items())
            self._output.say(f"at the end of the search, on audit patches: {stands}")
        elif isinstance(event, Folded):
            self._output.say(
                f"without shot {event.fold + 1}: {count(len(event.active), 'unit')} ({event.seconds:.0f} s)"
            )

    def checked(self, done: int, of: int) -> None:
        """A case of the data set was checked; for the `progress` of a job."""
        self._show("check the data", done, of)

    def _step(self, event: TrainingStep) -> None:
        self._show(_PHASES.get(event.phase, event.phase), event.step, event.of)

    def _show(self, what: str, done: int, of: int) -> None:
        if self._bars is not None:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=of, completed=done - 1)
            self._bars.update(self._tasks[what], completed=done)
            return
        now = time.monotonic()
        if what != self._phase or done >= of or now >= self._next_line:
            if what != self._phase:
                self._began, self._first = now, done - 1
            self._phase, self._next_line = what, now + _SECONDS_BETWEEN_LINES
            left = time_left(now - self._began, done - self._first, of - self._first) if now > self._began else ""
            self._output.say(f"{what}: {done} of {of}{left}")
