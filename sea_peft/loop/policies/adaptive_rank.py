"""Adaptive ranks: LoRA ranks in proportion to each site's importance, re-estimated every cycle. The rival that listens, but not to audits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sea_peft.adapters import Unit, total_cost
from sea_peft.loop.policies.base import Allocation, Decision, Space
from sea_peft.loop.policies.filling import cheapest_first, fill

_SMOOTHING = 0.85


class AdaptiveRank:
    """Affine at every norm; the rest of the budget goes to LoRA ranks by importance.

    In the manner of AdaLoRA (Zhang et al. 2023, arXiv 2303.10512), which shares a rank budget out by a smoothed sensitivity of the loss
    (eq. 9, β = 0.85) and gives nothing back for cost or for measured Dice. Differences: AdaLoRA starts above its budget and prunes
    singular values by |w·∇w|; a budget that holds at every moment leaves no room for that, so ranks start from the importance of the
    freshly built units, for which |w·∇w| is zero, and sensitivity is the loop's promise: the summed gradient at a zero-initialised
    output, per rank. Ranks follow importance by highest averages (D'Hondt): the next step goes to the site whose importance divided by
    the rank it would then have is highest, until nothing fits.
    """

    name = "adalora"
    audits = False
    outside_budget = False
    trial: tuple[str, ...] = ()

    def __init__(self, space: Space) -> None:
        self.space = space
        self._affine = fill(cheapest_first(u for u in space.units if u.family == "affine"), space.capacity)
        self._ranks: dict[str, list[Unit]] = {}
        for unit in sorted((u for u in space.units if u.family == "lora"), key=lambda u: (u.level, u.id)):
            self._ranks.setdefault(unit.site.path, []).append(unit)
        self._importance: dict[str, float] = {}
        self._open: tuple[str, ...] = ()

    def to_promise(self, cycle: int) -> Sequence[str]:
        """At every site its smallest rank that is closed: a trained unit's own gradient says what it has learnt, not what is lacking."""
        return [next((u for u in ranks if u.id not in self._open), ranks[-1]).id for ranks in self._ranks.values()]

    def promised(self, cycle: int, promise: Mapping[str, float]) -> None:
        for unit_id, value in promise.items():
            unit = self.space.by_id[unit_id]
            now, before = value / unit.level, self._importance.get(unit.site.path)
            smoothed = now if before is None else _SMOOTHING * before + (1 - _SMOOTHING) * now
            self._importance[unit.site.path] = smoothed

    def allocate(self, cycle: int) -> Allocation:
        before = set(self._open)
        chosen = self._affine + self._by_importance()
        self._open = tuple(u.id for u in chosen)
        decisions = [
            Decision(u, "keep" if u in before else "add", None, "affine everywhere, LoRA ranks by importance")
            for u in self._open
        ]
        decisions += [
            Decision(u, "drop", None, "another rank here, or other sites matter more")
            for u in sorted(before - set(self._open))
        ]
        return Allocation(self._open, decisions=tuple(decisions))

    def to_audit(self, cycle: int) -> Mapping[str, float]:
        return {}

    def audited(self, cycle: int, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        raise RuntimeError(f"{self.name} asks for no audit")

    def final(self) -> Allocation:
        """What the last cycle trained."""
        if not self._open:  # a time limit left no cycle to search in
            self.allocate(0)
        return Allocation(
            self._open, decisions=tuple(Decision(u, "keep", None, "the ranks of the last cycle") for u in self._open)
        )

    def state_dict(self) -> dict[str, Any]:
        return {"importance": dict(self._importance), "open": list(self._open)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._importance, self._open = dict(state["importance"]), tuple(state["open"])

    def _by_importance(self) -> list[Unit]:
        left = self.space.capacity - total_cost(self._affine)
        at: dict[str, int] = dict.fromkeys(self._ranks, -1)  # site → place of its unit in the list of its ranks

        def step(site: str) -> int:
            """Parameters that the next larger rank of this site costs."""
            now = self._ranks[site][at[site]].cost if at[site] >= 0 else 0
            return self._ranks[site][at[site] + 1].cost - now

        while True:
            able = [s for s in at if at[s] + 1 < len(self._ranks[s]) and step(s) <= left]
            if not able:
                return [self._ranks[site][place] for site, place in at.items() if place >= 0]
            best = max(able, key=lambda s: (self._importance.get(s, 0.0) / self._ranks[s][at[s] + 1].level, s))
            left -= step(best)
            at[best] += 1
