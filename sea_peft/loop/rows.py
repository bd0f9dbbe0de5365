"""The rows of events: what is said of one unit. Plain values, the same in the loop, in the trace and read back from it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from sea_peft.adapters import Unit


class _Row:
    """Whoever reads a row back refuses a field that it does not know."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate(_Row):
    """A unit on offer. `site`: path of its module; `order`: the site's place in the network's execution; `cost`: its trainable parameters."""

    unit: str
    family: str
    level: int
    placement: str
    site: str
    kind: str
    stage: str
    order: int
    cost: int

    @classmethod
    def of(cls, unit: Unit) -> Candidate:
        """The row of a unit."""
        site = unit.site
        return cls(
            unit=unit.id, family=unit.family, level=unit.level, placement=unit.placement, site=site.path, kind=site.kind,
            stage=site.stage, order=site.order, cost=unit.cost,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation(_Row):
    """ΔDice of one unit: mean over patches of Dice with it on minus Dice with it off; `standard_error`: standard error of that mean,
    None where there is one patch alone and nothing to estimate it from. `deltas`: of every patch it was measured on."""

    unit: str
    delta: float
    standard_error: float | None
    patches: int
    deltas: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking(_Row):
    """Where an audit leaves a unit. `state`, `was`: idle, probe, active or cooling. `delta`: of this audit, None where the unit only moved.
    `ema` to `standard_error`: what is known of it by now, None while it is unmeasured; `audits`: how often it was measured."""

    unit: str
    state: str
    was: str
    delta: float | None
    ema: float | None
    median: float | None
    iqr: float | None
    score: float | None
    standard_error: float | None
    audits: int
    votes: int
    guard: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Decision(_Row):
    """What was decided of one unit, and why. `decision`: keep, add, drop, probe or refuse. `value`: Dice, None while unmeasured."""

    unit: str
    decision: str
    value: float | None
    reason: str
