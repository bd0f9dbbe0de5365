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
the final allocation and the refit stand the scores of the scans that were held out while searching (`scored` with `on` held_out), or, at one
shot, of its held-out labels (held_out_labels). A killed run's trace ends anywhere. From `run_started`, `saliency_measured` and `audited`
alone every `ranked` and `allocated` can be worked out again (`seapeft inspect RUN --replay`).
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import pydantic
from pydantic import Field

from sea_peft.documents import STRICT, Count, Dice, Duration, Facts, Name, Number, Parameters, Seed, Sha256, Text
from sea_peft.loop.cost import PARAMETERS, Cost
from sea_peft.loop.rows import Ablation, Candidate, Decision, Ranking

SCHEMA_VERSION = 3
"""Of the events below, kept in `run_started`. What is renamed, left out or given another meaning, and a new field without a default, makes a
new version; readers refuse every version but their own, and every field that they do not know."""


_Network = Annotated[str, Field(pattern="^(un)?adapted$")]
_ScoredOn = Annotated[str, Field(pattern="^(test|cv|held_out|held_out_labels)$")]
_Cycle = Annotated[int, Field(ge=-1, le=10**6)]
Split = dict[Name, list[Name]]
PerCase = dict[Name, dict[Name, Dice]]


@dataclasses.dataclass(frozen=True)
class Event:
    """Base of all events; `kind` is the class name in snake case and names the event in the trace. Types and ranges of fields hold for what
    is read from a file."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = STRICT
    kind: ClassVar[str] = "event"

    def __init_subclass__(cls) -> None:
        cls.kind = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    def as_dict(self) -> dict[str, Any]:
        """The event as JSON types, `{"event": kind, ...fields}`."""
        return {"event": self.kind, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """First event: what is on offer and under which rules.

    Attributes:
        limit: the most that may be spent, as `cost_kind` counts.
        head: what the head takes of it.
        backbone_parameters: what the backbone has of the same.
        units: every unit on offer.
        settings: those of the loop and of the policy.
        split: role → hashed case ids.
        begun_from: sha256 of the adapter's tensors that the run began with, null where it began from nothing.
        version: of this schema.
    """

    policy: Name
    seed: Seed
    limit: Parameters
    head: Count
    backbone_parameters: Parameters
    units: list[Candidate]
    settings: Facts
    split: Split
    begun_from: Sha256 | None = None
    version: int = SCHEMA_VERSION

    @property
    def cost_kind(self) -> Cost:
        """What the costs in this trace count."""
        return PARAMETERS


@dataclasses.dataclass(frozen=True)
class TrainingStep(Event):
    """One optimizer step (progress only; not written to the trace). `phase`: head_only, warmup, search or refit."""

    phase: str
    step: int
    of: int
    loss: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Searched(Event):
    """The training part of one cycle: which units were trained, from step to step, and the mean loss."""

    cycle: _Cycle
    phase: Name
    first_step: Count
    last_step: Count
    loss: Number
    active: list[Name]
    probes: list[Name]
    seconds: Duration


@dataclasses.dataclass(frozen=True)
class SaliencyMeasured(Event):
    """First-order estimate of what idle units could bring (loss decrease of one optimizer step); not a utility."""

    cycle: _Cycle
    saliency: dict[Name, Number]
    seconds: Duration


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audited(Event):
    """One audit. `dice_on`: mean Dice with every gate as it is. `hard_dice`: hard Dice with every gate as it is."""

    cycle: _Cycle
    dice_on: Dice
    hard_dice: Dice
    rows: list[Ablation]
    patches: Count
    naive_patches: Count
    independent: bool
    seconds: Duration


@dataclasses.dataclass(frozen=True)
class Ranked(Event):
    """The ranking after an audit: of every unit that was measured or moved."""

    cycle: _Cycle
    rows: list[Ranking]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Allocated(Event):
    """One allocation. `value`: the knapsack's objective. `coverage`: share of the units on offer
    that were measured so far. `trial`: units that the cycles together can try; `debt`: those of them that were not measured yet."""

    cycle: _Cycle
    active: list[Name]
    probes: list[Name]
    used: Count
    limit: Count
    head: Count
    value: Number
    changes: Count
    coverage: Number
    decisions: list[Decision]
    final: bool
    seconds: Duration
    trial: Count = 0
    debt: Count = 0


@dataclasses.dataclass(frozen=True)
class Compared(Event):
    """Candidates compared on the audit cases at the end of the search. `dice`: candidate name → mean Dice. `chosen`: which is ahead of the
    policy's own and the unadapted backbone. `per_patch`: candidate name → Dice of every audit patch, in the same order."""

    dice: dict[Name, Dice]
    chosen: Name
    reason: Text
    per_patch: dict[Name, list[Dice]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored(Event):
    """Score of one arm on whole scans.

    Attributes:
        arm: `unadapted`, `head_only` or `adapted`.
        dice: mean Dice, null when the arm cannot predict the labels.
        per_label: label → mean Dice.
        per_case: hashed id → label → Dice.
        on: what was scored. `test`: the test cases. `cv`: the shots, each by an adapter that was fitted without it. `held_out`: the scans
            held out while searching, after the search and before the refit. `held_out_labels`: at one shot, that scan's held-out labels.
    """

    arm: Name
    dice: Dice | None
    per_label: dict[Name, Dice]
    per_case: PerCase
    seconds: Duration
    on: _ScoredOn = "test"

    @property
    def held_out(self) -> bool:
        """Whether this is of the search, and not of what ships."""
        return self.on.startswith("held_out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folded(Event):
    """One part of leave-one-out: a whole search and refit without one of the shots, scored on that shot.

    Attributes:
        fold: its number, from 0.
        split: role → hashed ids of the scans trained on (`support`), audited on (`audit`) and scored (`test`).
        active: ids of the units in the adapter.
        used: what these and the head take of the budget.
        dice: arm → label → Dice of the scored scan.
        rates: `sensitivity` and `specificity` of the adapter → label → rate.
    """

    fold: Count
    split: Split
    active: list[Name]
    used: Count
    dice: PerCase
    rates: PerCase
    seconds: Duration


@dataclasses.dataclass(frozen=True)
class Recommended(Event):
    """Which network predictions use unless asked otherwise, "adapted" or "unadapted", and on what evidence, in words."""

    network: _Network
    evidence: Text


@dataclasses.dataclass(frozen=True)
class RunFinished(Event):
    """Last event."""

    status: Name
    active: list[Name]
    used: Count
    reason: Text


Callback = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The callback of a run that nobody watches."""
