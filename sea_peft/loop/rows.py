"""The rows of events: what is said of one unit. Plain values, the same in the loop, in the trace and read back from it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, ClassVar

import pydantic
from pydantic import Field

from sea_peft.documents import STRICT, Count, Name, Number, Text

if TYPE_CHECKING:
    from sea_peft.adapters import Unit


_Level = Annotated[int, Field(ge=0, le=65535)]
_Placement = Annotated[str, Field(max_length=256)]
_State = Annotated[str, Field(pattern="^(idle|probe|active|cooling)$")]
_Decided = Annotated[str, Field(pattern="^(keep|add|drop|probe|refuse)$")]


class _Row:
    """Whoever reads a row back refuses a field that it does not know, and a value out of its range."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = STRICT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate(_Row):
    """A unit on offer. `site`: path of its module; `order`: the site's place in the network's execution; `cost`: what it takes of the budget."""

    unit: Name
    family: Name
    level: _Level
    placement: _Placement
    site: Name
    kind: Name
    stage: Name
    order: Count
    cost: Count

    @classmethod
    def of(cls, unit: Unit, cost: int) -> Candidate:
        """The row of a unit that takes `cost` of the budget."""
        site = unit.site
        return cls(
            unit=unit.id, family=unit.family, level=unit.level, placement=unit.placement, site=site.path, kind=site.kind,
            stage=site.stage, order=site.order, cost=cost,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation(_Row):
    """ΔDice of one unit: mean over patches of Dice with it on minus Dice with it off; `standard_error`: standard error of that mean,
    None where there is one patch alone and nothing to estimate it from. `deltas`: of every patch it was measured on."""

    unit: Name
    delta: Number
    standard_error: Number | None
    patches: Count
    deltas: tuple[Number, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking(_Row):
    """Where an audit leaves a unit. `state`, `was`: idle, probe, active or cooling. `delta`: of this audit, None where the unit only moved.
    `ema` to `standard_error`: what is known of it by now, None while it is unmeasured; `audits`: how often it was measured."""

    unit: Name
    state: _State
    was: _State
    delta: Number | None
    ema: Number | None
    median: Number | None
    iqr: Number | None
    score: Number | None
    standard_error: Number | None
    audits: Count
    votes: int
    guard: int
    reason: Text


@dataclasses.dataclass(frozen=True)
class Decision(_Row):
    """What was decided of one unit, and why. `decision`: keep, add, drop, probe or refuse. `value`: Dice, None while unmeasured."""

    unit: Name
    decision: _Decided
    value: Number | None
    reason: Text
