"""The `sea` policy: self-auditing allocation (SEA-PEFT, arXiv 2603.05822). Decides from saliencies
and audits; pure, replayable.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sea_peft.loop import knapsack
from sea_peft.loop.final_choice import Evidence, choose
from sea_peft.loop.knapsack import Item
from sea_peft.loop.policies.registry import Entry, register
from sea_peft.loop.policy import Allocation, GoesOn, Policy
from sea_peft.loop.ranking import ACTIVE, COOLING, IDLE, PROBE, RankingSettings, Standings
from sea_peft.loop.rows import Ablation, Decision, Ranking
from sea_peft.loop.space import Space
from sea_peft.loop.trial import Levels, on_trial, prior, probes
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
        self._standings = Standings(self._units, settings.carried, settings.ranking)
        self._estimate = dict.fromkeys(self._units, UNMEASURED) | dict(settings.carried)
        self._saliency: dict[str, float] = {}
        self._prior: dict[str, float] = {}
        # unit → last cycle in which it was open; and in which it was audited
        self._tried = dict.fromkeys(settings.carried, _BEFORE)
        self._audited: dict[str, int] = {}
        # least Dice per cost in the last allocation; 0 if the budget left no unit out
        self._price = 0.0
        self._levels = Levels(space, settings.growth)
        # the units that the cycles together can try; the others are left out from the start
        self.trial: tuple[str, ...] = ()

    # -- what the loop asks and tells, in this order -----------------------------------------------

    def needs_saliency(self, cycle: int) -> Sequence[str]:
        return self._levels.bases if cycle == 0 else ()

    def told_saliency(self, cycle: int, saliency: Mapping[str, float]) -> None:
        s = self.settings
        self._saliency = dict(saliency)
        self._prior = prior(self._units, saliency, s.saliency)
        self.trial = on_trial(self.space, self._levels, self._prior, s.cycles, s.audit_units)

    def allocate(self, cycle: int) -> Allocation:
        """A knapsack over active and promotable units; probes then fill the rest of the budget."""
        eligible = self._eligible()
        capacity = int(self.space.capacity * (1 - self.settings.probe_share))
        found = knapsack.greedy(eligible, capacity)
        self._price = _price(eligible, found)
        decisions = self._activate(eligible, found) + self._probe()
        active, probes = (
            self.space.in_order(self._standings.units(state)) for state in (ACTIVE, PROBE)
        )
        self._tried.update(dict.fromkeys((*active, *probes), cycle))
        return Allocation(
            active=active,
            probes=probes,
            decisions=tuple(decisions),
            value=found.value,
            items=tuple(eligible),
            capacity=capacity,
        )

    def to_audit(self, cycle: int) -> Mapping[str, float]:
        """The units whose audit decides most: three in four are the costliest that are on, one in
        four the longest unaudited.

        A cheap unit that is never audited keeps its place by saliency, since it takes little of the
        budget. The cut-off of a unit is the Dice that the last allocation gained at least for the
        same cost. Units that an earlier run has audited are left out.
        """
        most, carried = self.settings.audit_units, self.settings.carried
        on = [
            u
            for u in self._standings.units(ACTIVE, PROBE)
            if u not in carried or not carried[u].audits
        ]
        costly = sorted(on, key=lambda u: (-self._cost(u), u))
        owed = sorted(on, key=lambda u: (self._audited.get(u, -1), -self._cost(u), u))
        chosen = costly[: most * 3 // 4]
        chosen += [u for u in owed if u not in chosen][: most - len(chosen)]
        return {u: self._price * self._cost(u) for u in sorted(chosen)}

    def audited(self, cycle: int, rows: Sequence[Ablation]) -> list[Ranking]:
        """Update estimates, guards and votes.

        Returns one ranking row per unit that was measured or moved.
        """
        for row in rows:
            self._audited[row.unit] = cycle
            self._estimate[row.unit] = observe(
                self._estimate[row.unit], row.delta, row.standard_error, self.settings.utility
            )
        deltas = {row.unit: row.delta for row in rows}
        return [
            self._ranked(unit, was, deltas.get(unit), reason)
            for unit, was, reason in self._standings.audited(deltas)
        ]

    def final(self) -> Allocation:
        """A guard-free choice over everything (`final_choice.choose`); cheapest first if a time
        limit left no cycle to learn in.
        """
        if not self._prior:
            self.told_saliency(0, dict.fromkeys(self._levels.bases, 0.0))
        evidence = Evidence(self._estimate, self._prior, frozenset(self.trial))
        s = self.settings
        return choose(self.space, self._levels, evidence, s.utility, s.ranking.hysteresis)

    def state_dict(self) -> dict[str, Any]:
        return {
            "standing": self._standings.state_dict(),
            "estimate": {u: dataclasses.asdict(e) for u, e in self._estimate.items()},
            "saliency": dict(self._saliency),
            "tried": dict(self._tried),
            "audited": dict(self._audited),
            "price": self._price,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._standings.load_state_dict(state["standing"])
        self._estimate = {
            u: Estimate(**{**e, "window": tuple(e["window"])}) for u, e in state["estimate"].items()
        }
        if state["saliency"]:
            self.told_saliency(0, state["saliency"])
        self._tried = dict(state["tried"])
        self._audited = dict(state["audited"])
        self._price = state["price"]

    # -- the two halves of an allocation -----------------------------------------------------------

    def _eligible(self) -> list[Item]:
        """The knapsack's items: active units, and probes that were voted for and are worth
        something.
        """
        active = set(self._standings.units(ACTIVE))
        items = [self._item(u) for u in self._standings.eligible()]
        return [item for item in items if item.id in active or item.value > 0]

    def _activate(self, eligible: Sequence[Item], found: knapsack.Choice) -> list[Decision]:
        """Move the units that the knapsack took to active, and the others to cooling."""
        was = set(self._standings.units(ACTIVE))
        decisions = []
        for item in eligible:
            unit, on = item.id, item.id in found.chosen
            self._standings.move(unit, ACTIVE if on else COOLING)
            if on and unit in was:
                decided, reason = "keep", "still worth its cost"
            elif on:
                decided, reason = "add", f"{self.settings.ranking.votes} votes for it, and it fits"
            else:
                decided = "drop" if unit in was else "refuse"
                reason = f"others give more Dice per {self.space.kind.one}"
            decisions.append(self._decision(unit, decided, reason))
        return decisions

    def _probe(self) -> list[Decision]:
        """Fill the budget that active units leave with probes (`trial.probes`)."""
        idle = set(self._standings.units(IDLE))
        incumbents = sorted(
            self._standings.units(PROBE),
            key=lambda u: (-self._standings[u].votes, -self._item(u).value / self._cost(u), u),
        )
        untried = [u for u in self.trial if u in idle and u not in self._tried]
        tried = sorted(idle & self._tried.keys(), key=lambda u: (self._tried[u], self._cost(u), u))
        kept = int(self.space.capacity * self.settings.probe_share) if untried else 0
        room = self.space.room(taken=[self._units[u] for u in self._standings.units(ACTIVE)])
        taken = probes(room, self._units, incumbents, untried, tried, kept)
        decisions = [self._decision(u, "probe", reason) for u, reason in taken.items()]
        for unit in taken:
            self._standings.move(unit, PROBE)
        for unit in incumbents:
            if unit not in taken:
                self._standings.move(unit, IDLE)
                reason = "on trial long enough: others have not been tried yet"
                decisions.append(self._decision(unit, "drop", reason))
        return decisions

    # -- small questions ---------------------------------------------------------------------------

    def _item(self, unit: str) -> Item:
        """The unit as a knapsack item, with the exploration bonus and the hysteresis of active
        units.

        One outlier can push an active unit's score below 0 for a whole window. It then competes
        with its hysteresis alone, and only votes can demote it.
        """
        worth = value(self._estimate[unit], self.settings.utility) or 0.0
        if self._standings[unit].state == ACTIVE:
            worth = max(worth, 0.0) + self.settings.ranking.hysteresis
        return self.space.item(unit, worth)

    def _cost(self, unit: str) -> int:
        return self.space.cost(self._units[unit])

    def _decision(self, unit: str, decision: str, reason: str) -> Decision:
        return Decision(unit, decision, value(self._estimate[unit], self.settings.utility), reason)

    def _ranked(self, unit: str, was: str, delta: float | None, reason: str) -> Ranking:
        e, st, u = self._estimate[unit], self._standings[unit], self.settings.utility
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


def _price(eligible: Sequence[Item], found: knapsack.Choice) -> float:
    """The least value per cost that the knapsack took; 0 if it took everything."""
    if len(found.chosen) == len(eligible):
        return 0.0
    return min((i.value / i.cost for i in eligible if i.id in found.chosen), default=0.0)


register(
    Entry(
        name="sea",
        about="search, audit, allocate: the units that help on held-out scans",
        make=lambda space, _seed, settings: Sea(space, settings),
        settings=settings_for,
    )
)
