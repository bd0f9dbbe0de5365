"""Adaptive ranks: LoRA ranks in proportion to each site's importance, re-estimated every cycle.
The one that listens, but not to audits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sea_peft.adapters import Offer, Unit
from sea_peft.loop.policies.fixed import nothing_fits
from sea_peft.loop.policies.registry import Entry, register
from sea_peft.loop.policy import Allocation, Policy
from sea_peft.loop.rows import Decision
from sea_peft.loop.space import Space

_SMOOTHING = 0.85


class AdaptiveRank(Policy):
    """Affine at every norm; the rest of the budget goes to LoRA ranks by importance.

    In the manner of AdaLoRA (Zhang et al. 2023, arXiv 2303.10512), which shares a rank budget out
    by a smoothed sensitivity of the loss (eq. 9, β = 0.85) and gives nothing back for cost or for
    measured Dice. Differences: AdaLoRA starts above its budget and prunes singular values by
    |w·∇w|; a budget that holds at every moment leaves no room for that, so ranks start from the
    importance of the freshly built units, for which |w·∇w| is zero, and sensitivity is the loop's
    saliency: the summed gradient at a zero-initialised output, per rank. Ranks follow importance by
    highest averages (D'Hondt): the next step goes to the site whose importance divided by the rank
    it would then have is highest, until nothing fits.
    """

    def __init__(self, space: Space) -> None:
        super().__init__("adalora", space)
        self._affine = space.room().fill(
            space.cheapest_first(u for u in space.units if u.family == "affine")
        )
        self._ranks: dict[str, list[Unit]] = {}
        for unit in sorted(
            (u for u in space.units if u.family == "lora"), key=lambda u: (u.level, u.id)
        ):
            self._ranks.setdefault(unit.site.path, []).append(unit)
        self._importance: dict[str, float] = {}
        self._open: tuple[str, ...] = ()

    def needs_saliency(self, cycle: int) -> Sequence[str]:
        """At every site its smallest rank that is closed: a trained unit's own gradient says
        what it has learnt, not what is lacking.
        """
        return [
            next((u for u in ranks if u.id not in self._open), ranks[-1]).id
            for ranks in self._ranks.values()
        ]

    def told_saliency(self, cycle: int, saliency: Mapping[str, float]) -> None:
        for unit_id, value in saliency.items():
            unit = self.space.by_id[unit_id]
            now, before = value / unit.level, self._importance.get(unit.site.path)
            smoothed = now if before is None else _SMOOTHING * before + (1 - _SMOOTHING) * now
            self._importance[unit.site.path] = smoothed

    def allocate(self, cycle: int) -> Allocation:
        before = set(self._open)
        chosen = self._affine + self._by_importance()
        self._open = tuple(u.id for u in chosen)
        decisions = [
            Decision(
                u,
                "keep" if u in before else "add",
                None,
                "affine everywhere, LoRA ranks by importance",
            )
            for u in self._open
        ]
        decisions += [
            Decision(u, "drop", None, "another rank here, or other sites matter more")
            for u in sorted(before - set(self._open))
        ]
        return Allocation(active=self._open, decisions=tuple(decisions))

    def final(self) -> Allocation:
        """What the last cycle trained."""
        if not self._open:  # a time limit left no cycle to search in
            self.allocate(0)
        return Allocation(
            active=self._open,
            decisions=tuple(
                Decision(u, "keep", None, "the ranks of the last cycle") for u in self._open
            ),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"importance": dict(self._importance), "open": list(self._open)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._importance, self._open = dict(state["importance"]), tuple(state["open"])

    def _by_importance(self) -> list[Unit]:
        room = self.space.room(taken=self._affine)
        at: dict[str, int] = dict.fromkeys(
            self._ranks, -1
        )  # site → place of its unit in the list of its ranks

        def step(site: str) -> tuple[Unit, Unit | None]:
            """The next larger rank of this site, and the one that it takes the place of."""
            place, ranks = at[site], self._ranks[site]
            return ranks[place + 1], ranks[place] if place >= 0 else None

        while True:
            further = {s: step(s) for s in at if at[s] + 1 < len(self._ranks[s])}
            able = [s for s, (unit, now) in further.items() if room.fits(unit, instead_of=now)]
            if not able:
                return [self._ranks[site][place] for site, place in at.items() if place >= 0]
            merit = {s: self._importance.get(s, 0.0) / further[s][0].level for s in able}
            best = max((value, s) for s, value in merit.items())[1]
            room.take(further[best][0], instead_of=further[best][1])
            at[best] += 1


_OFFERS = {"affine": Offer(), "lora": Offer()}
_ABOUT = "affine and LoRA ranks by importance"


def _make(space: Space, _seed: int, _settings: object) -> AdaptiveRank:
    units = [unit for unit in space.units if unit.family in _OFFERS]
    if not any(space.fits([unit]) for unit in units):
        raise nothing_fits("adalora", _ABOUT, units, space)
    return AdaptiveRank(space)


register(
    Entry(name="adalora", about=f"{_ABOUT}, re-estimated every cycle", make=_make, offers=_OFFERS)
)
