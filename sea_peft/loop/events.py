"""The events of the loop: plain frozen dataclasses, passed to one callback.

The trace, MLflow and progress bars subscribe to them; the loop knows none of these. Fields hold
only JSON types, so an event that is written to the trace and read back equals the original. Only
fields named `seconds` hold wall-clock times: everything else depends on data, settings and seed
alone.

These classes are the schema of the trace. Each line holds one event as `{"event": kind,
...fields}`, in this order:

    run_started
    searched (phase warmup)
    for every cycle:  saliency_measured?  allocated  searched (phase search)  audited?  ranked?
    allocated (final)  compared?  searched (phase refit) …
    scored (unadapted, head_only, adapted)  recommended  run_finished

Only policies that ask for them cause the events marked with ?. With --test cv, one `folded` per
shot follows `run_started`. Between the final allocation and the refit come the scores of the scans
that were held out while searching (`scored` with `on` held_out) or, at one shot, of its held-out
labels (held_out_labels), then `parts_kept` if a rule for connected parts helped there. The trace of
a killed run may end anywhere. Every `ranked` and `allocated`
can be computed again from `run_started`, `saliency_measured` and `audited` alone (`seapeft inspect
RUN --replay`).
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import pydantic
from pydantic import Field

from sea_peft.documents import (
    STRICT,
    Count,
    Dice,
    Duration,
    Facts,
    Name,
    Number,
    Parameters,
    Seed,
    Sha256,
    Text,
)
from sea_peft.loop.cost import PARAMETERS, Cost
from sea_peft.loop.rows import Ablation, Candidate, Decision, Ranking

SCHEMA_VERSION = 3
"""Version of the events below, kept in `run_started`. It changes whenever a field is renamed,
removed or given another meaning, or is added without a default. Readers refuse every other version
and unknown fields.
"""


_Network = Annotated[str, Field(pattern="^(un)?adapted$")]
_ScoredOn = Annotated[str, Field(pattern="^(test|cv|held_out|held_out_labels)$")]
_Cycle = Annotated[int, Field(ge=-1, le=10**6)]
Split = dict[Name, list[Name]]
PerCase = dict[Name, dict[Name, Dice]]


@dataclasses.dataclass(frozen=True)
class Event:
    """Base of all events.

    Its field types and ranges are checked when an event is read from a file. `kind` is the class
    name in snake case and names the event in the trace.
    """

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = STRICT
    kind: ClassVar[str] = "event"

    def __init_subclass__(cls) -> None:
        cls.kind = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    def as_dict(self) -> dict[str, Any]:
        """The event as JSON types, `{"event": kind, ...fields}`."""
        return {"event": self.kind, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """The first event: the units on offer and the rules of the run.

    Attributes:
        policy: its name.
        seed: of the run.
        limit: the most that may be spent, as `cost_kind` counts.
        head: the head's share of it.
        backbone_parameters: size of the backbone, counted the same way.
        units: every unit on offer.
        settings: those of the loop and of the policy.
        split: role → hashed case ids.
        begun_from: sha256 of the tensors of the adapter that the run began with; null if it began
            without one.
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
        """The kind of cost that this trace counts."""
        return PARAMETERS


@dataclasses.dataclass(frozen=True)
class TrainingStep(Event):
    """One optimizer step. For progress only: it is not written to the trace.

    Attributes:
        phase: head_only, warmup, search or refit.
        step: its number, from 1.
        of: number of steps in all.
        loss: of this step.
    """

    phase: str
    step: int
    of: int
    loss: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Searched(Event):
    """The training of one cycle.

    Attributes:
        cycle: its number, from 0; -1 for the warm-up.
        phase: warmup, search or refit.
        first_step: number of steps done before it.
        last_step: number of steps done after it.
        loss: mean over its steps.
        active: ids of the active units.
        probes: ids of the units on probation.
        seconds: wall-clock time.
    """

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
    """First-order estimates of what idle units could bring (loss decrease of one optimizer
    step); not utilities.
    """

    cycle: _Cycle
    saliency: dict[Name, Number]
    seconds: Duration


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audited(Event):
    """One audit.

    Attributes:
        cycle: the cycle that it follows.
        dice_on: mean Dice with every gate as it is.
        hard_dice: mean hard Dice with every gate as it is.
        rows: one per audited unit.
        patches: patch forwards that it took.
        naive_patches: patch forwards that auditing every unit on every patch would have taken.
        independent: whether it measured on scans that the search does not train on.
        seconds: wall-clock time.
    """

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
    """The ranking after an audit: one row per unit that was measured or moved."""

    cycle: _Cycle
    rows: list[Ranking]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Allocated(Event):
    """One allocation.

    Attributes:
        cycle: the cycle that it is for.
        active: ids of the active units.
        probes: ids of the units on probation.
        used: cost of all of these and the head.
        limit: the budget.
        head: cost of the head.
        value: the knapsack's objective.
        changes: number of units that became active or ceased to be.
        coverage: share of the units on offer that have been measured so far.
        decisions: one per unit that was considered.
        final: whether this is the final choice.
        seconds: wall-clock time.
        trial: number of units that the cycles together can try.
        debt: number of those that have not been measured yet.
    """

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
    """Candidates compared on the audit cases at the end of the search.

    Attributes:
        dice: candidate → mean Dice.
        chosen: the better of the policy's own result and the unadapted backbone.
        reason: how the candidates compare, in words.
        per_patch: candidate → Dice of each audit patch, in the same order.
    """

    dice: dict[Name, Dice]
    chosen: Name
    reason: Text
    per_patch: dict[Name, list[Dice]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored(Event):
    """The score of one arm on whole scans.

    Attributes:
        arm: `unadapted`, `head_only` or `adapted`.
        dice: mean Dice; null if the arm cannot predict the labels.
        per_label: label → mean Dice.
        per_case: hashed id → label → Dice.
        seconds: wall-clock time.
        on: the scans that were scored. `test`: the test cases. `cv`: the shots, each by an adapter
            fitted without it. `held_out`: scans held out while searching, scored between search and
            refit. `held_out_labels`: at one shot, that scan's held-out labels.
        kept: of the adapted arm, if labels were added to those that the network knows: known label
            → Dice between its masks and the unadapted network's, outside the added labels.
    """

    arm: Name
    dice: Dice | None
    per_label: dict[Name, Dice]
    per_case: PerCase
    seconds: Duration
    on: _ScoredOn = "test"
    kept: dict[Name, Dice] = dataclasses.field(default_factory=dict)

    @property
    def held_out(self) -> bool:
        """Whether this scores the search, rather than the adapter that ships."""
        return self.on.startswith("held_out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartsKept(Event):
    """Which connected parts of the adapted network's masks are kept: what helped on scans held out
    while searching.

    Attributes:
        rules: label → `largest`, a number of parts, or `min-ml=X`; labels of which all are kept are
            left out.
        gains: label → Dice that its rule adds there, averaged over scans.
        scans: how many were held out.
    """

    rules: dict[Name, Name]
    gains: dict[Name, Dice]
    scans: Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folded(Event):
    """One fold of leave-one-out: a whole search and refit without one of the shots, scored on that
    shot.

    Attributes:
        fold: its number, from 0.
        split: role → hashed ids of the scans trained on (`support`), audited on (`audit`) and
            scored (`test`).
        active: ids of the units in the adapter.
        used: cost of these and the head.
        dice: arm → label → Dice of the scored scan.
        rates: `sensitivity` and `specificity` of the adapter → label → rate.
        seconds: wall-clock time.
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
    """The network that predictions use by default, "adapted" or "unadapted", and the evidence
    for it in words.
    """

    network: _Network
    evidence: Text


@dataclasses.dataclass(frozen=True)
class RunFinished(Event):
    """The last event.

    Attributes:
        status: how the run ended.
        active: ids of the units in the adapter.
        used: cost of these and the head.
        reason: why it ended.
    """

    status: Name
    active: list[Name]
    used: Count
    reason: Text


Callback = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The callback of a run that nobody watches: does nothing."""
