"""The events of one run, ordered for reading by figures, tables, report and inspect."""

import dataclasses
from collections.abc import Iterable
from functools import cached_property
from typing import TypeVar

from sea_peft.artefacts.names import short_names
from sea_peft.errors import UsageError
from sea_peft.loop import events
from sea_peft.loop.rows import Candidate, Ranking

E = TypeVar("E", bound=events.Event)


@dataclasses.dataclass(kw_only=True)
class Cycle:
    """The events of one cycle; those that have not happened (yet) are missing."""

    number: int
    searched: list[events.Searched] = dataclasses.field(default_factory=list)
    saliency_measured: events.SaliencyMeasured | None = None
    audited: events.Audited | None = None
    ranked: events.Ranked | None = None
    allocated: events.Allocated | None = None


class History:
    """A run so far.

    Attributes:
        events: in the order in which they happened, without training steps.
        scored: arm → its score on the test cases or by leave-one-out.
        held_out: arm → its score on the scans or labels held out while searching.

    Raises:
        UsageError: there is no `RunStarted` among the events.
    """

    def __init__(self, told: Iterable[events.Event]) -> None:
        self.events = [event for event in told if not isinstance(event, events.TrainingStep)]
        started = self._last(events.RunStarted)
        if started is None:
            raise UsageError("The trace is empty: the run ended before it began; start it again.")
        self.started = started
        self.cycles = self._in_cycles()
        self.compared, self.recommended = (
            self._last(events.Compared),
            self._last(events.Recommended),
        )
        self.finished = self._last(events.RunFinished)
        self.parts_kept = self._last(events.PartsKept)
        self.folds = self._all(events.Folded)
        self.scored = {event.arm: event for event in self._all(events.Scored) if not event.held_out}
        self.held_out = {event.arm: event for event in self._all(events.Scored) if event.held_out}
        audited = self._last(events.Audited)
        self.independent = None if audited is None else audited.independent

    def _all(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def _last(self, kind: type[E]) -> E | None:
        return next(reversed(self._all(kind)), None)

    def _in_cycles(self) -> list[Cycle]:
        cycles: dict[int, Cycle] = {}
        for event in self.events:
            if isinstance(
                event,
                (
                    events.Searched,
                    events.SaliencyMeasured,
                    events.Audited,
                    events.Ranked,
                    events.Allocated,
                ),
            ):
                cycle = cycles.setdefault(event.cycle, Cycle(number=event.cycle))
                if isinstance(event, events.Searched):
                    cycle.searched.append(event)
                else:
                    setattr(cycle, event.kind, event)
        return [cycles[n] for n in sorted(cycles)]

    @cached_property
    def units(self) -> dict[str, Candidate]:
        """Unit id → its row of `RunStarted`, in execution order of the sites."""
        rows = sorted(self.started.units, key=lambda row: (row.order, row.site, row.unit))
        return {row.unit: row for row in rows}

    @cached_property
    def sites(self) -> dict[str, Candidate]:
        """Site → the first of its unit rows (site, kind, stage, order), in execution order."""
        sites: dict[str, Candidate] = {}
        for row in self.units.values():
            sites.setdefault(row.site, row)
        return sites

    @cached_property
    def names(self) -> dict[str, str]:
        """Site → its short name, as `short_names` gives it."""
        return short_names((site, row.stage, row.kind) for site, row in self.sites.items())

    @property
    def allocations(self) -> list[events.Allocated]:
        """The allocations, oldest first."""
        return [cycle.allocated for cycle in self.cycles if cycle.allocated is not None]

    @property
    def tested_on(self) -> str | None:
        """What the arms were scored on: "test" cases, or the shots by "cv"; None if they were
        not.
        """
        return next((scored.on for scored in self.scored.values()), None)

    @property
    def active(self) -> list[str]:
        """Units that are on: those shipped, or those of the last allocation while the run
        continues.
        """
        if self.finished is not None:
            return self.finished.active
        return self.allocations[-1].active if self.allocations else []

    def ranking(self, cycle: int | None = None) -> dict[str, Ranking]:
        """Unit → its latest row of `Ranked` up to and including `cycle` (None: the last)."""
        rows: dict[str, Ranking] = {}
        for record in self.cycles:
            if record.ranked is not None and (cycle is None or record.number <= cycle):
                rows.update({row.unit: row for row in record.ranked.rows})
        return rows

    def cost(self, units: Iterable[str]) -> int:
        """The total cost of these units, without the head."""
        known = self.units
        return sum(known[unit].cost for unit in units)
