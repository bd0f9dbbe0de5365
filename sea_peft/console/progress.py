"""Shows a run as it happens: bars with the time left on a terminal, and a line per cycle
everywhere.
"""

from __future__ import annotations

import contextlib
import time

from rich.progress import Progress, TaskID

from sea_peft.console.output import Output, bars, time_left
from sea_peft.data.wording import count
from sea_peft.loop.events import (
    Allocated,
    Audited,
    Compared,
    Event,
    Folded,
    RunStarted,
    Searched,
    TrainingStep,
)

_CHECK = "check the data"
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
    """Listens to the events of a run and shows its progress."""

    def __init__(self, output: Output, name: str = "") -> None:
        self._output, self._name = output, name
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._open = contextlib.ExitStack()
        self._next_line = 0.0
        self._phase = ""
        self._began, self._first = 0.0, 0  # of the phase: when, and after which step
        self._offered, self._counts = 0, ""
        self._parts: list[str] = []  # of the run, in order, as far as they are known
        self._whole = TaskID(0)

    def __enter__(self) -> RunProgress:
        if self._output.animated and not self._name:
            self._output.rest()
            self._bars = self._open.enter_context(bars(self._output.notes))
            self._whole = self._bars.add_task("read the data set", total=None, estimated=False)
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def __call__(self, event: Event) -> None:
        if isinstance(event, TrainingStep):
            self._step(event)
        elif isinstance(event, RunStarted):
            self._offered, self._counts = len(event.units), event.cost_kind.many
            self._know(event)
            self._say(
                f"{count(len(event.units), 'unit')} on offer, at most {event.limit:,} of"
                f" {event.backbone_parameters:,} {self._counts}"
                f" ({event.limit / event.backbone_parameters:.2%}), policy {event.policy}."
            )
        elif isinstance(event, Searched) and event.phase == "refit":
            pass  # too frequent to show
        elif isinstance(event, Searched):
            name = "warm-up" if event.phase == "warmup" else f"cycle {event.cycle}"
            probes = f", {len(event.probes)} of them probes" if event.probes else ""
            self._say(
                f"{name}: {count(len(event.active) + len(event.probes), 'unit')} trained{probes},"
                f" loss {event.loss:.3f} ({event.seconds:.0f} s)"
            )
        elif isinstance(event, Audited):
            caveat = "" if event.independent else ", not independent of the training scan"
            self._say(
                f"cycle {event.cycle}: {count(len(event.rows), 'unit')} audited, Dice"
                f" {event.hard_dice:.3f} on audit patches{caveat} ({event.seconds:.0f} s)"
            )
        elif (
            isinstance(event, Allocated)
            and not event.final
            and event.cycle == 0
            and 0 < event.trial < self._offered
        ):
            self._say(
                f"the cycles have room to try {event.trial} of these units; the others, of less"
                " saliency for their cost, are left out"
            )
        elif isinstance(event, Allocated) and event.final:
            self._say(
                f"chosen: {count(len(event.active), 'unit')}, {event.used:,} of {event.limit:,}"
                f" {self._counts}"
            )
        elif isinstance(event, Compared):
            stands = ", ".join(f"{name} {dice:.3f}" for name, dice in event.dice.items())
            self._say(f"at the end of the search, on audit patches: {stands}")
        elif isinstance(event, Folded):
            self._say(
                f"without shot {event.fold + 1}: {count(len(event.active), 'unit')}"
                f" ({event.seconds:.0f} s)"
            )

    def _say(self, sentence: str) -> None:
        self._output.say(f"{self._name}: {sentence}" if self._name else sentence)

    def checked(self, done: int, of: int) -> None:
        """One case of the data set was checked; for the `progress` of a job."""
        self._show(_CHECK, done, of)

    def _know(self, event: RunStarted) -> None:
        """Set the parts of the run, now that it is known. What was shown so far was the first
        of them.
        """
        there = {"head_only": event.head > 0, "test": bool(event.split.get("test"))}
        names = (
            name
            for phase, name in _PHASES.items()
            if phase != "held_out" and there.get(phase, True)
        )
        self._parts = list(dict.fromkeys((_CHECK, *names)))
        if self._bars is not None:
            for what, task in self._tasks.items():
                self._bars.update(task, description=self._named(what))

    def _named(self, what: str) -> str:
        """The name with its place among the parts. Parts in between, or repeated for each shot,
        have none.
        """
        return (
            f"part {1 + self._parts.index(what)} of {len(self._parts)}: {what}"
            if what in self._parts
            else what
        )

    def _parts_done(self) -> int:
        """Those before the one at hand, and that one too once it is finished: a phantom, for
        one, is not checked.
        """
        assert self._bars is not None
        finished = {task.id for task in self._bars.tasks if task.finished}
        begun = [number for number, part in enumerate(self._parts) if part in self._tasks]
        return begun[-1] + (self._tasks[self._parts[begun[-1]]] in finished) if begun else 0

    def _step(self, event: TrainingStep) -> None:
        self._show(_PHASES.get(event.phase, event.phase), event.step, event.of)

    def _show(self, what: str, done: int, of: int) -> None:
        if self._bars is not None:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(
                    self._named(what), total=of, completed=done - 1
                )
                self._bars.update(self._whole, description="in all", total=len(self._parts) or None)
            self._bars.update(self._tasks[what], completed=done)
            self._bars.update(self._whole, completed=self._parts_done())
            return
        now = time.monotonic()
        if what != self._phase or done >= of or now >= self._next_line:
            if what != self._phase:
                self._began, self._first = now, done - 1
            self._phase, self._next_line = what, now + _SECONDS_BETWEEN_LINES
            left = (
                time_left(now - self._began, done - self._first, of - self._first)
                if now > self._began
                else ""
            )
            self._say(f"{self._named(what)}: {done} of {of}{left}")
