"""The rows of events, each about one unit: plain values, the same in the loop and in the trace."""

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
    """Base of all rows. Reading one back refuses unknown fields and values out of range."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = STRICT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate(_Row):
    """A unit on offer.

    Attributes:
        unit: its id.
        family: its adapter family.
        level: its size.
        placement: of the adapter at its site, where a family has several.
        site: path of its module.
        kind: kind of the site.
        stage: stage of the site.
        order: the site's place in the order of execution.
        cost: its share of the budget.
    """

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
            unit=unit.id,
            family=unit.family,
            level=unit.level,
            placement=unit.placement,
            site=site.path,
            kind=site.kind,
            stage=site.stage,
            order=site.order,
            cost=cost,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation(_Row):
    """ΔDice of one unit: Dice with it on minus Dice with it off.

    Attributes:
        unit: its id.
        delta: mean ΔDice over patches.
        standard_error: of that mean; None with a single patch.
        patches: number of patches.
        deltas: ΔDice of each patch.
    """

    unit: Name
    delta: Number
    standard_error: Number | None
    patches: Count
    deltas: tuple[Number, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking(_Row):
    """The state of a unit after an audit.

    Attributes:
        unit: its id.
        state: idle, probe, active or cooling.
        was: its state before.
        delta: ΔDice in this audit; None if the unit only moved.
        ema: exponential moving average of ΔDice. This and the next four are None while unmeasured.
        median: of ΔDice over the window.
        iqr: interquartile range of ΔDice over the window.
        score: median − λ·IQR.
        standard_error: over the patches of the last audit.
        audits: number of audits that measured it.
        votes: net votes since it entered this state.
        guard: cycles for which it cannot move.
        reason: for the state, in words.
    """

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
    """The decision about one unit.

    Attributes:
        unit: its id.
        decision: keep, add, drop, probe or refuse.
        value: in Dice; None while unmeasured.
        reason: in words.
    """

    unit: Name
    decision: _Decided
    value: Number | None
    reason: Text
