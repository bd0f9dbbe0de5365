"""What the loop says while it runs: plain frozen dataclasses handed to one callback.

The trace, MLflow and progress bars subscribe to these; the loop knows none of them. Fields hold only JSON types, so that
an event written to the trace and read back is equal to the event that was emitted. Wall-clock times stand only in fields
named `seconds`: everything else is a function of data, settings and seed.

These classes are the schema of the trace, which holds one of them a line as `{"event": kind, ...fields}`, in this order:

    run_started
    searched (phase warmup)
    for every cycle:  saliency_measured?  allocated  searched (phase search)  audited?  ranked?
    allocated (final)  compared?  searched (phase refit) …
    scored (unadapted, head_only, adapted)  recommended  run_finished

Events with ? come only from policies that ask for them. With --test cv a `folded` for each of the shots comes right after `run_started`. Between
the final allocation and the refit stand the scores of the scans that were held out while searching (`scored` with `on` held_out), at two shots
or more. A killed run's trace ends anywhere. From `run_started`, `saliency_measured` and `audited`
alone every `ranked` and `allocated` can be worked out again (`seapeft inspect RUN --replay`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, ClassVar

from sea_peft.loop.rows import Ablation, Candidate, Decision, Ranking

SCHEMA_VERSION = 3
"""Of the events below, kept in `run_started`. What is renamed, left out or given another meaning, and a new field without a default, makes a
new version; readers refuse every version but their own, and every field that they do not know."""


@dataclasses.dataclass(frozen=True)
class Event:
    """Base of all events; `kind` is the class name in snake case and names the event in the trace."""

    kind: ClassVar[str] = "event"

    def __init_subclass__(cls) -> None:
        cls.kind = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    def as_dict(self) -> dict[str, Any]:
        """The event as JSON types, `{"event": kind, ...fields}`."""
        return {"event": self.kind, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class RunStarted(Event):
    """First event: what is on offer and under which rules. `split`: hashed case ids per role."""

    policy: str
    seed: int
    limit: int
    head: int
    backbone_parameters: int
    units: list[Candidate]
    settings: dict[str, Any]
    split: dict[str, list[str]]
    version: int = SCHEMA_VERSION


@dataclasses.dataclass(frozen=True)
class TrainingStep(Event):
    """One optimizer step (progress only; not written to the trace). `phase`: head_only, warmup, search or refit."""

    phase: str
    step: int
    of: int
    loss: float


@dataclasses.dataclass(frozen=True)
class Searched(Event):
    """The training part of one cycle: which units were trained, from step to step, and the mean loss."""

    cycle: int
    phase: str
    first_step: int
    last_step: int
    loss: float
    active: list[str]
    probes: list[str]
    seconds: float


@dataclasses.dataclass(frozen=True)
class SaliencyMeasured(Event):
    """First-order estimate of what idle units could bring (loss decrease of one optimizer step); not a utility."""

    cycle: int
    saliency: dict[str, float]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Audited(Event):
    """One audit. `dice_on`: mean Dice with every gate as it is. `hard_dice`: hard Dice with every gate as it is."""

    cycle: int
    dice_on: float
    hard_dice: float
    rows: list[Ablation]
    patches: int
    naive_patches: int
    independent: bool
    seconds: float


@dataclasses.dataclass(frozen=True)
class Ranked(Event):
    """The ranking after an audit: of every unit that was measured or moved."""

    cycle: int
    rows: list[Ranking]


@dataclasses.dataclass(frozen=True)
class Allocated(Event):
    """One allocation. `value`: the knapsack's objective. `coverage`: share of the units on offer
    that were measured so far. `trial`: units that the cycles together can try; `debt`: those of them that were not measured yet."""

    cycle: int
    active: list[str]
    probes: list[str]
    used: int
    limit: int
    head: int
    value: float
    changes: int
    coverage: float
    decisions: list[Decision]
    final: bool
    seconds: float
    trial: int = 0
    debt: int = 0


@dataclasses.dataclass(frozen=True)
class Compared(Event):
    """Candidates compared on the audit cases at the end of the search. `dice`: candidate name → mean Dice. `chosen`: which is ahead of the
    policy's own and the unadapted backbone. `per_patch`: candidate name → Dice of every audit patch, in the same order."""

    dice: dict[str, float]
    chosen: str
    reason: str
    per_patch: dict[str, list[float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Scored(Event):
    """Score of one arm (unadapted, head_only, adapted) on whole scans. `per_case`: hashed id → label → Dice; `dice` is null when the arm
    cannot predict the labels. `on`: the test cases ("test"); the shots, each by what was fitted without it ("cv"); the scans held out while
    searching, by what the search had led to before the refit ("held_out")."""

    arm: str
    dice: float | None
    per_label: dict[str, float]
    per_case: dict[str, dict[str, float]]
    seconds: float
    on: str = "test"


@dataclasses.dataclass(frozen=True)
class Folded(Event):
    """One part of leave-one-out: everything searched and fitted without one of the shots, and scored on it. `split`: hashed ids of the scans
    that were trained on (support), audited on and scored (test). `active`, `used`: of the adapter. `dice`: arm → label → Dice of the scored
    scan. `rates`: the adapter's sensitivity and specificity → label → rate."""

    fold: int
    split: dict[str, list[str]]
    active: list[str]
    used: int
    dice: dict[str, dict[str, float]]
    rates: dict[str, dict[str, float]]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Recommended(Event):
    """Which network predictions use unless asked otherwise, "adapted" or "unadapted", and on what evidence, in words."""

    network: str
    evidence: str


@dataclasses.dataclass(frozen=True)
class RunFinished(Event):
    """Last event."""

    status: str
    active: list[str]
    used: int
    reason: str


Callback = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The callback of a run that nobody watches."""
