"""Replays decisions: a policy receives the measurements in its trace, and must choose what the
trace says was chosen. Builds no network.
"""

import dataclasses
from collections.abc import Sequence

from pydantic import ValidationError

from sea_peft import documents
from sea_peft.adapters import Unit
from sea_peft.artefacts.history import History
from sea_peft.backbones import Site
from sea_peft.errors import UsageError
from sea_peft.jobs.optimum import optimum
from sea_peft.loop.events import Allocated, Audited, Event, Ranked, RunStarted, SaliencyMeasured
from sea_peft.loop.policies import make_policy
from sea_peft.loop.policy import Allocation, Policy
from sea_peft.loop.rows import Ablation, Candidate
from sea_peft.loop.space import Space


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replayed:
    """One allocation decided again.

    Attributes:
        cycle: its number.
        final: whether it is the final choice.
        units_on: number of active units.
        active_differs: active units of only the trace (`-unit`) or only the replay (`+unit`).
        probes_differ: the same for probes.
        ranks_differ: units whose state or score differs in the ranking before it.
        gap: how far the greedy knapsack falls short of the exact optimum, as a share of it.
    """

    cycle: int
    final: bool
    units_on: int
    active_differs: tuple[str, ...]
    probes_differ: tuple[str, ...]
    ranks_differ: tuple[str, ...]
    gap: float

    @property
    def same(self) -> bool:
        """Whether ranking and knapsack gave the same result again."""
        return not (self.active_differs or self.probes_differ or self.ranks_differ)


def replay(events: Sequence[Event]) -> list[Replayed]:
    """Decide every allocation of a trace again, from the saliencies and audits in it, by the
    policy's own ranking and knapsack.

    Raises:
        UsageError: the trace is empty or damaged, or this version does not know its policy or
            settings.
    """
    started = History(events).started
    policy = _policy(started)
    replayed: list[Replayed] = []
    ranked: tuple[str, ...] = ()
    rows: list[Ablation] = []
    for event in events:
        if isinstance(event, SaliencyMeasured):
            policy.needs_saliency(event.cycle)
            policy.told_saliency(event.cycle, event.saliency)
        elif isinstance(event, Audited):
            policy.to_audit(event.cycle)
            rows = event.rows
        elif isinstance(event, Ranked):
            again = {row.unit: row for row in policy.audited(event.cycle, rows)}
            then = {row.unit: row for row in event.rows}
            ranked = tuple(
                unit for unit in sorted({*again, *then}) if again.get(unit) != then.get(unit)
            )
        elif isinstance(event, Allocated):
            found = policy.final() if event.final else policy.allocate(event.cycle)
            active, probes = (
                _differences(event.active, found.active),
                _differences(event.probes, found.probes),
            )
            replayed.append(
                Replayed(
                    cycle=event.cycle,
                    final=event.final,
                    units_on=len(event.active),
                    active_differs=active,
                    probes_differ=probes,
                    ranks_differ=ranked,
                    gap=_gap(found),
                )
            )
            ranked = ()
    return replayed


def _policy(started: RunStarted) -> Policy:
    """The policy as it was when the run began."""
    space = Space(
        tuple(_unit(row) for row in started.units),
        started.limit,
        started.head,
        kind=started.cost_kind,
    )
    loop, own = (started.settings.get(part) or {} for part in ("loop", "policy"))
    try:
        return make_policy(
            started.policy, space, seed=started.seed, cycles=loop.get("cycles", 1), settings=own
        )
    except (ValidationError, TypeError, ValueError) as error:
        said = documents.complaint(error) if isinstance(error, ValidationError) else str(error)
        raise UsageError(
            f"The trace's settings are not those of this sea_peft ({said}); replay it with the"
            " sea_peft that wrote it."
        ) from error


def _gap(found: Allocation) -> float:
    best = optimum(found.items, found.capacity)
    return max(0.0, (best - found.value) / best) if best > 0 else 0.0


def _unit(row: Candidate) -> Unit:
    """A unit from its row in the trace. Channels and strides are not stored there, since no
    policy uses them.
    """
    site = Site(
        path=row.site,
        kind=row.kind,
        in_channels=0,
        out_channels=0,
        stride=(1, 1, 1),
        stage=row.stage,
        order=row.order,
    )
    unit = Unit(
        family=row.family, level=row.level, placement=row.placement, site=site, cost=row.cost
    )
    if unit.id != row.unit:
        raise UsageError(
            f"The trace says of unit {row.unit!r} that it is {unit.id!r}: it is damaged."
        )
    return unit


def _differences(then: Sequence[str], again: Sequence[str]) -> tuple[str, ...]:
    gone, came = set(then) - set(again), set(again) - set(then)
    return (*(f"-{unit}" for unit in sorted(gone)), *(f"+{unit}" for unit in sorted(came)))
