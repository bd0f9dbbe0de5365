"""Ranks that enter one by one as an l1 penalty on them falls: after ARENA."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sea_peft.adapters import Offer, Unit
from sea_peft.loop.policies.fixed import nothing_fits
from sea_peft.loop.policies.registry import Entry, register
from sea_peft.loop.policy import Allocation, Policy
from sea_peft.loop.rows import Decision
from sea_peft.loop.space import Room, Space

_CYCLES = 5  # one for each rank of the default profile, from 1 to 16


@dataclasses.dataclass(frozen=True)
class PathSettings:
    """How the path is walked.

    Attributes:
        cycles: in how many equal parts the budget is spent.
    """

    cycles: int


class L1Ranks(Policy):
    """Affine at every norm; LoRA ranks on the path of an l1 penalty, as far as the budget pays.

    After ARENA (Baklouti et al., MICCAI 2025, arXiv 2507.15793): W ← W + B·diag(v)·A, and the loss
    plus λ·|v|₁, by proximal steps v ← sign(v)·max(|v| − ηλ, 0). A rank whose v is 0 stays out as
    long as |∂L/∂v| ≤ λ. All ranks share one λ, and none is cheaper than another. The ranks that
    remain are those that training found. Written from the paper's abstract and excerpts: its whole
    text and its code were not at hand.

    ARENA begins with the same rank everywhere and shrinks. A budget that holds at every moment has
    no room for that: 1% of the UNet does not pay for rank 1 everywhere. So the condition is read
    from the other end of the path. λ falls from above every |∂L/∂v|, where no rank is in, until the
    budget is spent: an equal part of it each cycle, with gradients measured anew at what has been
    trained by then, as in stagewise regression (Efron et al. 2004).

    - |∂L/∂v| of a rank, with the best b of |b| ≤ 1 behind it, is Σ|∂L/∂b|: the loop's saliency of
      the next larger LoRA at a site, whose output is zero-initialised, by rank.
    - A site moves by one level a cycle (1, 2, 4, …): the gradient of its next ranks is known only
      once those before have learnt.

    Differences: ranks that are in are trained without the penalty, since all policies share the
    training; so none shrinks, and none leaves. A larger LoRA that opens during the search begins
    afresh. ARENA has no affine units: they are added as in `adalora`, `spt` and `affine_lora`, so
    that these differ only in their choice of ranks and places.
    """

    settings: PathSettings

    def __init__(self, space: Space, settings: PathSettings) -> None:
        super().__init__("arena", space)
        self.settings = settings
        own = [u for u in space.units if u.family in _OFFERS]
        if not any(space.fits([unit]) for unit in own):
            raise nothing_fits("arena", _ABOUT, own, space)
        self._affine = space.room().fill(
            space.cheapest_first(u for u in own if u.family == "affine")
        )
        self._ranks: dict[str, list[Unit]] = {}
        for unit in sorted((u for u in own if u.family == "lora"), key=lambda u: (u.level, u.id)):
            self._ranks.setdefault(unit.group, []).append(unit)
        self._at = dict.fromkeys(
            self._ranks, -1
        )  # group → place of its unit in the list of its ranks
        self._slope: dict[str, float] = {}  # group → |∂L/∂v| of its next ranks

    def needs_saliency(self, cycle: int) -> Sequence[str]:
        """Of every site the next larger LoRA."""
        return [self._next(group).id for group in self._growing()]

    def told_saliency(self, cycle: int, saliency: Mapping[str, float]) -> None:
        for unit_id, value in saliency.items():
            unit = self.space.by_id[unit_id]
            self._slope[unit.group] = value / unit.level

    def allocate(self, cycle: int) -> Allocation:
        before = {unit.id for unit in self._open()} if cycle else set()
        return self._path(before, share=min(1.0, (cycle + 1) / self.settings.cycles))

    def final(self) -> Allocation:
        """What the last cycle trained; if a time limit came first, the rest of the path by the last
        gradients.
        """
        return self._path({unit.id for unit in self._open()}, share=1.0)

    def state_dict(self) -> dict[str, Any]:
        return {"at": dict(self._at), "slope": dict(self._slope)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._at, self._slope = dict(state["at"]), dict(state["slope"])

    def _path(self, before: set[str], share: float) -> Allocation:
        """Let ranks enter until this share of the budget is spent.

        `before`: the units that were open.
        """
        room = self.space.room(taken=self._open())
        keep = self.space.capacity * (1 - share)
        while True:
            grown = [group for group in self._growing() if self._grow(group, room, keep)]
            if keep or not grown:  # at the end of the path, whatever still fits enters
                break
        now = [unit.id for unit in self._open()]
        decisions = [Decision(u, "keep" if u in before else "add", None, self._why(u)) for u in now]
        decisions += [
            Decision(u, "drop", None, "more ranks here") for u in sorted(before - set(now))
        ]
        return Allocation(active=self.space.in_order(now), decisions=tuple(decisions))

    def _grow(self, group: str, room: Room, keep: float) -> bool:
        """Move to the next larger LoRA here, if it fits."""
        at, ranks = self._at[group], self._ranks[group]
        grown = room.take(ranks[at + 1], keep, instead_of=ranks[at] if at >= 0 else None)
        self._at[group] += grown
        return grown

    def _growing(self) -> list[str]:
        """The groups that have a larger LoRA, steepest first; of equal slope, the cheaper first."""
        able = [group for group, at in self._at.items() if at + 1 < len(self._ranks[group])]
        return sorted(
            able, key=lambda g: (-self._slope.get(g, 0.0), self.space.cost(self._next(g)), g)
        )

    def _next(self, group: str) -> Unit:
        return self._ranks[group][self._at[group] + 1]

    def _open(self) -> list[Unit]:
        return self._affine + [self._ranks[group][at] for group, at in self._at.items() if at >= 0]

    def _why(self, unit_id: str) -> str:
        slope = self._slope.get(self.space.by_id[unit_id].group)
        return "at every norm" if slope is None else f"|∂L/∂v| of a rank {slope:.2e}"


_OFFERS = {"affine": Offer(), "lora": Offer()}
_ABOUT = "affine and the LoRA ranks that an l1 penalty lets in"

register(
    Entry(
        name="arena",
        about=f"{_ABOUT}, measured anew every cycle",
        make=lambda space, _seed, settings: L1Ranks(space, settings),
        settings=lambda cycles, _steps: PathSettings(cycles),
        offers=_OFFERS,
        cycles=_CYCLES,
    )
)
