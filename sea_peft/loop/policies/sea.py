"""The `sea` policy: self-auditing allocation (SEA-PEFT, arXiv 2603.05822). Decides from saliencies
and audits; pure, replayable.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sea_peft.loop import knapsack, ranking
from sea_peft.loop.final_choice import Evidence, choose
from sea_peft.loop.knapsack import Item
from sea_peft.loop.policies.registry import Entry, register
from sea_peft.loop.policy import Allocation, GoesOn, Policy
from sea_peft.loop.ranking import RankingSettings
from sea_peft.loop.rows import Ablation, Decision, Ranking
from sea_peft.loop.space import Space
from sea_peft.loop.trial import Levels, on_trial, prior
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeaSettings(GoesOn):
    """How `sea` searches.

    Attributes:
        cycles: number of audits.
        probe_share: share of the budget that each cycle moves from the least promising probes to
            untried units.
        audit_units: most units that one audit ablates.
        growth: how the worth of a larger level grows with its cost: 1 in proportion, 0 not at all.
        saliency: weight of saliency in a unit's worth before any audit, from 0 to 1.
        utility: how audits are combined into scores.
        ranking: when votes move a unit.
    """

    cycles: int = 3
    probe_share: float = 0.15
    audit_units: int = 20
    growth: float = 0.5
    saliency: float = 0.5
    utility: UtilitySettings = dataclasses.field(default_factory=UtilitySettings)
    ranking: RankingSettings = dataclasses.field(default_factory=RankingSettings)


# Of a run, for each unit that an audit ablates: at 120 steps audits take a quarter of its time.
_STEPS_A_UNIT = 6


def settings_for(cycles: int, steps: int | None) -> SeaSettings:
    """The defaults; a run of fewer than 120 steps gets smaller audits."""
    most = SeaSettings.audit_units
    units = most if steps is None else max(1, min(most, steps // _STEPS_A_UNIT))
    return SeaSettings(cycles=cycles, audit_units=units)


_BEFORE = -1  # stands for the cycle in which an earlier run's units were tried


class Sea(Policy):
    """Search–audit–allocate as a policy.

    Every unit starts idle. Before any audit it is worth as much as an average one, adjusted by its
    saliency (the loss gradient at its zero-initialised output), and a knapsack over all levels
    fills the budget with probes. Audits measure the open units. Votes promote probes and demote
    units, and a greedy knapsack over the promoted ones picks the active set.

    The rest of the budget is on trial. Every cycle moves a share of it from the least promising
    probes to units that were never tried, then to those untried for longest. Units that the cycles
    cannot try at all are left out from the start (`trial`). The final choice is a guard-free
    knapsack over everything (`final_choice`).

    Units carried over from an earlier run begin as active, with the estimates of its audits. Those
    that it has audited are not audited again.
    """

    audits = True
    settings: SeaSettings

    def __init__(self, space: Space, settings: SeaSettings) -> None:
        super().__init__("sea", space)
        self.settings = settings
        self.most_audited = settings.audit_units
        self._units = space.by_id
        self._standing = {u: ranking.Standing() for u in self._units}
        self._estimate = dict.fromkeys(self._units, UNMEASURED)
        self._saliency: dict[str, float] = {}
        self._prior: dict[str, float] = {}
        self._tried: dict[str, int] = {}  # unit → last cycle in which it was open
        self._audited: dict[str, int] = {}  # unit → last cycle in which it was audited
        for unit, estimate in settings.carried.items():
            self._standing[unit] = ranking.Standing(ranking.ACTIVE)
            self._estimate[unit] = estimate
            self._tried[unit] = _BEFORE
        # least Dice per cost in the last allocation; 0 if the budget left no unit out
        self._price = 0.0
        self._levels = Levels(space, settings.growth)
        # the units that the cycles together can try; the others are left out from the start
        self.trial: tuple[str, ...] = ()

    # -- what the loop asks and tells --------------------------------------------------------------

    def needs_saliency(self, cycle: int) -> Sequence[str]:
        return self._levels.bases if cycle == 0 else ()

    def told_saliency(self, cycle: int, saliency: Mapping[str, float]) -> None:
        self._saliency = dict(saliency)
        self._prior = prior(self._units, self._saliency, self.settings.saliency)
        self.trial = on_trial(
            self.space, self._levels, self._prior, self.settings.cycles, self.settings.audit_units
        )

    def to_audit(self, cycle: int) -> Mapping[str, float]:
        """The units whose audit decides most: three in four are the costliest that are on, one in
        four the longest unaudited.

        A cheap unit that is never audited keeps its place by saliency, since it takes little of the
        budget. The cut-off of a unit is the Dice that the last allocation gained at least for the
        same cost. Units that an earlier run has audited are left out.
        """
        known = {unit for unit, estimate in self.settings.carried.items() if estimate.audits}
        on = [u for u in self._in(ranking.ACTIVE, ranking.PROBE) if u not in known]
        costly = sorted(on, key=lambda u: (-self._cost(u), u))
        owed = sorted(on, key=lambda u: (self._audited.get(u, -1), -self._cost(u), u))
        chosen = costly[: self.settings.audit_units * 3 // 4]
        chosen += [u for u in owed if u not in chosen][: self.settings.audit_units - len(chosen)]
        return {u: self._price * self._cost(u) for u in sorted(chosen)}

    def audited(self, cycle: int, rows: Sequence[Ablation]) -> list[Ranking]:
        """Update estimates, guards and votes; a unit that enough audits voted against cools.

        Returns one ranking row per unit that was measured or moved.
        """
        s = self.settings
        deltas = {row.unit: (row.delta, row.standard_error) for row in rows}
        ranked = []
        self._audited.update(dict.fromkeys(deltas, cycle))
        for unit in self._units:
            was = self._standing[unit].state
            standing, cooled = ranking.tick(self._standing[unit])
            reason = cooled or ""
            if unit in deltas:
                self._estimate[unit] = observe(self._estimate[unit], *deltas[unit], s.utility)
                standing, reason = ranking.vote(standing, deltas[unit][0], s.ranking)
                if ranking.is_demotable(standing, s.ranking):
                    reason += f"; {-standing.votes} votes against: cooling"
                    standing = ranking.move(standing, ranking.COOLING, s.ranking)
            self._standing[unit] = standing
            if unit in deltas or cooled:
                delta = deltas[unit][0] if unit in deltas else None
                ranked.append(self._ranked(unit, was, delta, reason))
        return ranked

    def allocate(self, cycle: int) -> Allocation:
        """A knapsack over active and promotable units; probes then fill the rest of the budget."""
        s = self.settings
        before = {u: st.state for u, st in self._standing.items()}
        eligible = [
            self._item(u)
            for u, st in self._standing.items()
            if st.state == ranking.ACTIVE
            or (ranking.is_promotable(st, s.ranking) and self._item(u).value > 0)
        ]
        capacity = int(self.space.capacity * (1 - s.probe_share))
        found = knapsack.greedy(eligible, capacity)
        on_now = frozenset(found.chosen)
        paid = [item.value / item.cost for item in eligible if item.id in on_now]
        self._price = min(paid) if paid and len(paid) < len(eligible) else 0.0
        decisions = []
        for item in eligible:
            on, state = item.id in on_now, before[item.id]
            self._move(item.id, ranking.ACTIVE if on else ranking.COOLING)
            if on and state == ranking.ACTIVE:
                decisions.append(self._decision(item.id, "keep", "still worth its cost"))
            elif on:
                decisions.append(
                    self._decision(item.id, "add", f"{s.ranking.votes} votes for it, and it fits")
                )
            else:
                drop = "drop" if state == ranking.ACTIVE else "refuse"
                decisions.append(
                    self._decision(
                        item.id, drop, f"others give more Dice per {self.space.kind.one}"
                    )
                )
        probes, probe_decisions = self._probes()
        active = self.space.in_order(found.chosen)
        for unit in (*active, *probes):
            self._tried[unit] = cycle
        return Allocation(
            active=active,
            probes=probes,
            decisions=(*decisions, *probe_decisions),
            value=found.value,
            items=tuple(eligible),
            capacity=capacity,
        )

    def final(self) -> Allocation:
        """A guard-free choice over everything (`final_choice.choose`); cheapest first if a time
        limit left no cycle to learn in.
        """
        if not self._prior:
            self.told_saliency(0, dict.fromkeys(self._levels.bases, 0.0))
        evidence = Evidence(self._estimate, self._prior, frozenset(self.trial))
        return choose(
            self.space,
            self._levels,
            evidence,
            self.settings.utility,
            self.settings.ranking.hysteresis,
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "standing": {u: dataclasses.asdict(st) for u, st in self._standing.items()},
            "estimate": {u: dataclasses.asdict(e) for u, e in self._estimate.items()},
            "saliency": dict(self._saliency),
            "tried": dict(self._tried),
            "audited": dict(self._audited),
            "price": self._price,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._standing = {u: ranking.Standing(**st) for u, st in state["standing"].items()}
        self._estimate = {
            u: Estimate(**{**e, "window": tuple(e["window"])}) for u, e in state["estimate"].items()
        }
        if state["saliency"]:
            self.told_saliency(0, state["saliency"])
        self._tried = dict(state["tried"])
        self._audited = dict(state["audited"])
        self._price = state["price"]

    # -- how it decides ----------------------------------------------------------------------------

    def _probes(self) -> tuple[tuple[str, ...], list[Decision]]:
        """Fill the budget that active units leave with probes.

        First come the probes already on trial, best votes first, up to the share kept for
        newcomers. Then come untried units in the order of the trial, and the other probes where
        newcomers leave room. Last come idle units, longest untried first.
        """
        room = self.space.room(taken=[self._units[u] for u in self._in(ranking.ACTIVE)])
        probes: list[str] = []
        decisions = []

        def take(unit: str, reason: str, keep: int = 0) -> bool:
            if not room.take(self._units[unit], keep):
                return False
            probes.append(unit)
            self._move(unit, ranking.PROBE)
            decisions.append(self._decision(unit, "probe", reason))
            return True

        incumbents = sorted(
            self._in(ranking.PROBE), key=lambda u: (-self._standing[u].votes, -self._density(u), u)
        )
        untried = [
            u
            for u in self.trial
            if u not in self._tried and self._standing[u].state == ranking.IDLE
        ]
        for_newcomers = int(self.space.capacity * self.settings.probe_share) if untried else 0
        waiting = [u for u in incumbents if not take(u, "still under trial", keep=for_newcomers)]
        owed = sorted(self._tried, key=lambda u: (self._tried[u], self._cost(u), u))
        for unit in untried:
            take(unit, "by saliency")
        waiting = [u for u in waiting if not take(u, "still under trial")]
        for unit in owed:
            if self._standing[unit].state == ranking.IDLE:
                take(unit, "by debt: longest untried")
        for unit in waiting:
            self._move(unit, ranking.IDLE)
            decisions.append(
                self._decision(unit, "drop", "on trial long enough: others have not been tried yet")
            )
        return self.space.in_order(probes), decisions

    def _density(self, unit: str) -> float:
        """The unit's value per cost, as far as audits show; 0 while unmeasured."""
        return self._item(unit).value / self._cost(unit)

    def _item(self, unit: str) -> Item:
        """The unit as a knapsack item, with the exploration bonus and the hysteresis of active
        units.

        One outlier can push an active unit's score below 0 for a whole window. It then competes
        with its hysteresis alone, and only votes can demote it.
        """
        worth = value(self._estimate[unit], self.settings.utility) or 0.0
        if self._standing[unit].state == ranking.ACTIVE:
            worth = max(worth, 0.0) + self.settings.ranking.hysteresis
        return self.space.item(unit, worth)

    def _ranked(self, unit: str, was: str, delta: float | None, reason: str) -> Ranking:
        e, st, u = self._estimate[unit], self._standing[unit], self.settings.utility
        return Ranking(
            unit=unit,
            state=st.state,
            was=was,
            delta=delta,
            ema=e.ema,
            median=median(e),
            iqr=iqr(e),
            score=score(e, u),
            standard_error=e.standard_error,
            audits=e.audits,
            votes=st.votes,
            guard=st.guard,
            reason=reason,
        )

    def _decision(self, unit: str, decision: str, reason: str) -> Decision:
        return Decision(unit, decision, value(self._estimate[unit], self.settings.utility), reason)

    def _move(self, unit: str, state: str) -> None:
        self._standing[unit] = ranking.move(self._standing[unit], state, self.settings.ranking)

    def _cost(self, unit: str) -> int:
        return self.space.cost(self._units[unit])

    def _in(self, *states: str) -> list[str]:
        return [u for u, st in self._standing.items() if st.state in states]


register(
    Entry(
        name="sea",
        about="search, audit, allocate: the units that help on held-out scans",
        make=lambda space, _seed, settings: Sea(space, settings),
        settings=settings_for,
    )
)
