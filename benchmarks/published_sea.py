"""The published SEA-PEFT (arXiv 2603.05822) as one policy: its loop and defaults, its mistakes
mended.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sea_peft.adapters import Unit
from sea_peft.loop import knapsack
from sea_peft.loop.policies.registry import Entry, register
from sea_peft.loop.policies.uniform import shuffled
from sea_peft.loop.policy import Allocation, Policy
from sea_peft.loop.ranking import ACTIVE, IDLE, PROBE, Standing
from sea_peft.loop.rows import Ablation, Decision, Ranking
from sea_peft.loop.space import Room, Space
from sea_peft.loop.utility import (
    UNMEASURED,
    Estimate,
    UtilitySettings,
    iqr,
    median,
    observe,
    score,
    value,
)

_CYCLES = 10
_UTILITY = UtilitySettings(decay=0.93, window=5, iqr_weight=0.25, exploration=0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedSettings:
    """The published defaults for more than one shot.

    Attributes:
        utility: how audits are combined into scores and values.
        votes: allocations in a row that must want a unit in, or out, until it moves.
        guard: allocations after a move in which a unit cannot be moved back.
        hysteresis: Dice by which the value of an active unit may lie below 0 until it is unwanted.
        audited: share of all units that one audit ablates.
        uniform: number of audits at the start whose units are drawn at random.
        horizon: audits after which a unit that was in none of them is owed one.
        exploration: share of an audit, and of the budget, kept for units that are not active.
        last: number of allocations in the final sweep.
        swaps: most single swaps in it.
    """

    utility: UtilitySettings = _UTILITY
    votes: int = 3
    guard: int = 3
    hysteresis: float = 0.02
    audited: float = 0.2
    uniform: int = 3
    horizon: int = 6
    exploration: float = 0.1
    last: int = 5
    swaps: int = 5


class PublishedSea(Policy):
    """The loop of SEA-PEFT (arXiv 2603.05822) and its public code.

    Every allocation solves a knapsack over the values of all measured units. A unit that three
    allocations in a row want becomes active, one that three in a row do not want becomes idle, and
    a unit that has moved is guarded for three. Audits take single units: at first at random, later
    those that are owed one, then by coverage and by uncertainty |EMA − score|, nine active ones to
    one idle. In the end the last five allocations, the knapsack without guards, and up to five
    single swaps in the last allocation compete.

    The paper audits 40 times in 8,000 steps and allocates after every second audit. Here are ten
    cycles, each with an audit and an allocation: the fewest in which a unit can be voted in (3),
    guarded (3) and voted out (3). All policies have the same steps, so few lie between two audits.

    Mended: utilities and thresholds are in Dice, and cost enters in the knapsack's ratio alone. A
    unit of any family has its cost and can be switched off. Audits are no moves, so votes and
    guards outlive them. What was allocated is remembered, not what was wanted. The last knapsack
    has no guards indeed. The window holds ΔDice as measured, not its averages. Audit patches are
    fixed, and of one of the shots.

    Idle units: the paper audits them by switching them on, so those that never trained have ΔDice 0
    and are never chosen. Here what active units leave of the budget trains idle ones as probes, and
    only open units are audited. First come those audited least, then smaller levels; larger ones
    wait while a smaller one is active at their place. The published budget never binds, but this
    one does: a tenth of it is kept from active units, as of the audits.

    What else differs: the paper switches on each set of the final sweep in the trained network, and
    ranks them by Dice on the audit patches. Here the loop tells a policy of single units alone, so
    sets are ranked by the sum of their scores, then by fewer parameters; the knapsack without
    guards mostly wins. The refit trains on from the searched weights, as it does for all policies.
    """

    audits = True
    most_audited: int
    settings: PublishedSettings

    def __init__(self, space: Space, seed: int, settings: PublishedSettings) -> None:
        super().__init__("sea_paper", space)
        self.settings, self._seed = settings, seed
        self._units = space.by_id
        self.most_audited = math.ceil(settings.audited * len(self._units))
        self._standing = dict.fromkeys(self._units, Standing())
        self._estimate = dict.fromkeys(self._units, UNMEASURED)
        self._debt = dict.fromkeys(self._units, 0)  # audits since the last one that the unit was in
        self._last: list[tuple[str, ...]] = []  # the active sets of the last allocations
        self._levels_below = self._count_levels()

    # -- what the loop asks and tells --------------------------------------------------------------

    def allocate(self, cycle: int) -> Allocation:
        """Votes by what the knapsack wants; probes fill the rest of the budget."""
        before = set(self._in(ACTIVE))
        moved = self._vote() if cycle else {}
        active = self._in(ACTIVE)
        for unit in self._in(PROBE):
            self._standing[unit] = dataclasses.replace(self._standing[unit], state=IDLE)
        probes = self.space.in_order(u.id for u in self._room(active).fill(self._owed(cycle)))
        for unit in probes:
            self._standing[unit] = dataclasses.replace(self._standing[unit], state=PROBE)
        self._last = [*self._last, active][-self.settings.last :]
        decisions = [
            self._decision(u, "add" if u in moved else "keep", moved.get(u, "active"))
            for u in active
        ]
        decisions += [self._decision(u, "drop", moved[u]) for u in sorted(before - set(active))]
        decisions += [self._decision(u, "probe", "audited least, or longest ago") for u in probes]
        return Allocation(active=active, probes=probes, decisions=tuple(decisions))

    def to_audit(self, cycle: int) -> Mapping[str, float]:
        """A fifth of all units. The decision about a probe changes at ΔDice 0, about an active unit
        at −hysteresis.
        """
        s = self.settings
        drawn = [u.id for u in self._drawn(cycle)]
        places = self.most_audited
        chosen = [u for u in drawn if self._is(u, ACTIVE, PROBE) and self._debt[u] >= s.horizon][
            :places
        ]
        active, probes = (
            [u for u in drawn if self._is(u, state) and u not in chosen]
            for state in (ACTIVE, PROBE)
        )
        left = places - len(chosen)
        of_probes = min(len(probes), max(round(left * s.exploration), left - len(active)))
        for pool, count in ((active, min(len(active), left - of_probes)), (probes, of_probes)):
            chosen += (
                pool[:count] if cycle < s.uniform else self._covered_and_uncertain(pool, count)
            )
        return {u: -s.hysteresis if self._is(u, ACTIVE) else 0.0 for u in sorted(chosen)}

    def audited(self, cycle: int, rows: Sequence[Ablation]) -> list[Ranking]:
        """Update estimates and debts. Returns one ranking row per measured unit."""
        self._debt = {u: debt + 1 for u, debt in self._debt.items()}
        for row in rows:
            known = self._estimate[row.unit]
            self._estimate[row.unit] = observe(
                known, row.delta, row.standard_error, self.settings.utility
            )
            self._debt[row.unit] = 0
        return [self._ranked(row) for row in rows]

    def final(self) -> Allocation:
        """The final sweep: the candidate with the largest sum of scores, then the cheapest."""
        candidates = dict.fromkeys(self._last, "one of the last allocations")
        for swapped in self._swapped(self._last[-1] if self._last else ()):
            candidates.setdefault(swapped, "one swap from the last allocation")
        items = [self.space.item(u, v) for u, v in self._values().items()]
        best = knapsack.greedy(items, self.space.capacity)
        candidates.setdefault(
            self.space.in_order(best.chosen), "the knapsack's solution without guards"
        )
        chosen = min(candidates, key=lambda c: (-sum(map(self._score, c)), self.space.used(c), c))
        was = set(self._in(ACTIVE))
        decisions = [
            self._decision(u, "keep" if u in was else "add", candidates[chosen]) for u in chosen
        ]
        refused = [u for u in self._units if u not in chosen]
        decisions += [self._decision(u, "refuse", f"not in {candidates[chosen]}") for u in refused]
        return Allocation(active=chosen, decisions=tuple(decisions))

    def state_dict(self) -> dict[str, Any]:
        return {
            "standing": {u: dataclasses.asdict(st) for u, st in self._standing.items()},
            "estimate": {u: dataclasses.asdict(e) for u, e in self._estimate.items()},
            "debt": dict(self._debt),
            "last": [list(active) for active in self._last],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._standing = {u: Standing(**st) for u, st in state["standing"].items()}
        self._estimate = {
            u: Estimate(**{**e, "window": tuple(e["window"])}) for u, e in state["estimate"].items()
        }
        self._debt = dict(state["debt"])
        self._last = [tuple(active) for active in state["last"]]

    # -- how it decides ----------------------------------------------------------------------------

    def _wanted(self) -> set[str]:
        """Guarded active units, then the knapsack's, then active ones of a value hardly below 0."""
        s, values = self.settings, self._values()
        guarded = [u for u in self._in(ACTIVE) if self._standing[u].guard]
        room = self._room(guarded, kept=s.exploration)
        free = [u for u in values if room.fits(self._units[u])]
        found = knapsack.greedy([self.space.item(u, values[u]) for u in free], int(room.left))
        room.fill(self._units[u] for u in found.chosen)
        tolerated = [u for u in self._in(ACTIVE) if u in values and -s.hysteresis <= values[u] <= 0]
        tolerated = [
            u.id
            for u in room.fill(
                self._units[u] for u in sorted(tolerated, key=lambda u: (-values[u], u))
            )
        ]
        return {*guarded, *found.chosen, *tolerated}

    def _vote(self) -> dict[str, str]:
        """Let guards run down, and every unguarded unit be voted on. Returns who moved, and why."""
        s, values = self.settings, self._values()
        for unit, st in self._standing.items():
            self._standing[unit] = dataclasses.replace(st, guard=max(0, st.guard - 1))
        wanted = self._wanted()
        for unit, st in self._standing.items():
            otherwise = (unit in wanted) != (st.state == ACTIVE) and not st.guard
            self._standing[unit] = dataclasses.replace(st, votes=st.votes + 1 if otherwise else 0)
        voted = [u for u, st in self._standing.items() if st.votes >= s.votes]
        moved = {u: f"not wanted {s.votes} times" for u in voted if self._is(u, ACTIVE)}
        self._standing |= dict.fromkeys(moved, Standing(IDLE, guard=s.guard))
        room = self._room(self._in(ACTIVE), kept=s.exploration)
        for unit in sorted(wanted & {*voted}, key=lambda u: (-values[u] / self._cost(u), u)):
            if room.take(self._units[unit]):
                self._standing[unit] = Standing(ACTIVE, guard=s.guard)
                moved[unit] = f"wanted {s.votes} times"
        return moved

    def _owed(self, cycle: int) -> list[Unit]:
        """Idle units in the order in which they become probes."""

        def key(unit: Unit) -> tuple[int, int, int, int]:
            audits = self._estimate[unit.id].audits
            return audits, -self._debt[unit.id], self._levels_below[unit.id], unit.site.order

        return sorted((u for u in self._drawn(cycle) if self._is(u.id, IDLE)), key=key)

    def _covered_and_uncertain(self, pool: Sequence[str], count: int) -> list[str]:
        """Half of the places go to those audited least, the others to the most uncertain."""
        covered = sorted(pool, key=lambda u: (self._estimate[u].audits, -self._debt[u]))[
            : -(-count // 2)
        ]
        others = [u for u in pool if u not in covered]
        return [
            *covered,
            *sorted(others, key=lambda u: -self._uncertainty(u))[: count - len(covered)],
        ]

    def _swapped(self, last: tuple[str, ...]) -> list[tuple[str, ...]]:
        """The last allocation with one unit swapped: the best scores that are out, each for the
        worst that makes room.
        """
        found: list[tuple[str, ...]] = []
        worst_first = sorted(last, key=lambda u: (self._score(u), u))
        for unit in sorted(self._measured(), key=lambda u: (-self._score(u), u)):
            for out in worst_first if unit not in last and len(found) < self.settings.swaps else ():
                kept = [u for u in last if u != out]
                if self._room(kept).take(self._units[unit]):
                    found.append(self.space.in_order([*kept, unit]))
                    break
        return found

    # -- small questions ---------------------------------------------------------------------------

    def _count_levels(self) -> dict[str, int]:
        """Unit → how many smaller levels there are of its family at its site."""
        groups: dict[str, list[Unit]] = {}
        for unit in self.space.cheapest_first():
            groups.setdefault(unit.group, []).append(unit)
        return {unit.id: place for own in groups.values() for place, unit in enumerate(own)}

    def _room(self, taken: Iterable[str], kept: float = 0.0) -> Room:
        """Room beside these units, with a share of the budget kept."""
        room = self.space.room(taken=[self._units[u] for u in taken])
        room.left -= self.space.capacity * kept
        return room

    def _drawn(self, cycle: int) -> list[Unit]:
        """All units in an order of this cycle's own."""
        return shuffled(self.space.units, [self._seed, 11, cycle])

    def _is(self, unit: str, *states: str) -> bool:
        return self._standing[unit].state in states

    def _in(self, state: str) -> tuple[str, ...]:
        return self.space.in_order(u for u in self._units if self._is(u, state))

    def _measured(self) -> list[str]:
        return [u for u, e in self._estimate.items() if e.audits]

    def _values(self) -> dict[str, float]:
        values = {u: value(e, self.settings.utility) for u, e in self._estimate.items()}
        return {u: v for u, v in values.items() if v is not None}

    def _score(self, unit: str) -> float:
        return score(self._estimate[unit], self.settings.utility) or 0.0

    def _uncertainty(self, unit: str) -> float:
        return abs((self._estimate[unit].ema or 0.0) - self._score(unit))

    def _cost(self, unit: str) -> int:
        return self.space.cost(self._units[unit])

    def _decision(self, unit: str, decision: str, reason: str) -> Decision:
        return Decision(unit, decision, value(self._estimate[unit], self.settings.utility), reason)

    def _ranked(self, row: Ablation) -> Ranking:
        e, st = self._estimate[row.unit], self._standing[row.unit]
        return Ranking(
            unit=row.unit,
            state=st.state,
            was=st.state,
            delta=row.delta,
            ema=e.ema,
            median=median(e),
            iqr=iqr(e),
            score=self._score(row.unit),
            standard_error=e.standard_error,
            audits=e.audits,
            votes=st.votes,
            guard=st.guard,
            reason="audited; allocations vote",
        )


register(
    Entry(
        name="sea_paper",
        about="the published search, audit, allocate, its mistakes mended",
        make=lambda space, seed, settings: PublishedSea(space, seed, settings),
        settings=lambda _cycles, _steps: PublishedSettings(),
        cycles=_CYCLES,
    )
)
