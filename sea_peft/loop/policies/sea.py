"""The `sea` policy: self-auditing allocation (SEA-PEFT, arXiv 2603.05822). Decides from saliencies and audits; pure, replayable."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sea_peft.loop import knapsack, ranking
from sea_peft.loop.final_choice import Evidence, choose
from sea_peft.loop.knapsack import Item
from sea_peft.loop.policies.registry import Entry, register
from sea_peft.loop.policy import Allocation, Policy
from sea_peft.loop.ranking import RankingSettings
from sea_peft.loop.rows import Ablation, Decision, Ranking
from sea_peft.loop.space import Space
from sea_peft.loop.trial import Levels, on_trial, prior
from sea_peft.loop.utility import UNMEASURED, Estimate, UtilitySettings, iqr, median, observe, score, value


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeaSettings:
    """`cycles`: audits there will be. `probe_share`: share of the budget that changes hands every cycle, from the units under trial that
    audits say least of to untried ones. `audit_units`: most units ablated in one audit. `growth`: how the worth of a larger level grows
    with its cost, 1 in proportion, 0 not at all. `saliency`: how much of a unit's worth before any audit is its saliency, 0 nothing.
    `ranking`, `utility`: of those modules. `carried`: unit → what the audits of an earlier run said of it, for units that are on from the start.
    """

    cycles: int = 3
    probe_share: float = 0.15
    audit_units: int = 20
    growth: float = 0.5
    saliency: float = 0.5
    utility: UtilitySettings = dataclasses.field(default_factory=UtilitySettings)
    ranking: RankingSettings = dataclasses.field(default_factory=RankingSettings)
    carried: Mapping[str, Estimate] = dataclasses.field(default_factory=dict)


_BEFORE = -1  # the cycle in which an earlier run's units were tried


class Sea(Policy):
    """Search–audit–allocate as a policy.

    Everything starts idle. Until audits say otherwise a unit is worth what an average one is, tilted by its saliency (the loss gradient
    at its zero-initialised output), and a knapsack over all levels fills the budget with probes. Audits measure what is on; votes
    promote probes and demote units; a greedy knapsack over the promoted picks the active set. The rest of the budget is on trial: every
    cycle a share of it goes from the probes that audits say least of to units that were never tried, then to the longest untried. What
    the cycles cannot try at all is left out from the start (`trial`). The final choice is a guard-free knapsack over everything, by what
    a typical unit is worth and what audits say beyond that (`final_choice`).

    Units that are carried over from an earlier run begin as active ones with what its audits said; those that it has audited
    are not audited again.
    """

    audits = True
    settings: SeaSettings

    def __init__(self, space: Space, settings: SeaSettings) -> None:
        super().__init__("sea", space)
        self.settings = settings
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
        self._price = 0.0  # least Dice per cost that the last allocation paid, 0 where the budget left nobody out
        self._levels = Levels(space, settings.growth)
        # the units that the cycles together can try; the others are left out from the start
        self.trial: tuple[str, ...] = ()

    # -- what the loop asks and tells ------------------------------------------------------------------------------

    def needs_saliency(self, cycle: int) -> Sequence[str]:
        return self._levels.bases if cycle == 0 else ()

    def told_saliency(self, cycle: int, saliency: Mapping[str, float]) -> None:
        self._saliency = dict(saliency)
        self._prior = prior(self._units, self._saliency, self.settings.saliency)
        self.trial = on_trial(self.space, self._levels, self._prior, self.settings.cycles, self.settings.audit_units)

    def to_audit(self, cycle: int) -> Mapping[str, float]:
        """Where an audit decides most: three in four are the costliest units that are on, one in four the longest unaudited. A cheap unit
        that is never audited keeps its place by saliency: it is not what the budget is short for. A unit's decision turns where it earns
        what the last allocation paid at least for the same cost. What an earlier run has audited is left out."""
        known = {unit for unit, estimate in self.settings.carried.items() if estimate.audits}
        on = [u for u in self._in(ranking.ACTIVE, ranking.PROBE) if u not in known]
        costly = sorted(on, key=lambda u: (-self._cost(u), u))
        owed = sorted(on, key=lambda u: (self._audited.get(u, -1), -self._cost(u), u))
        chosen = costly[: self.settings.audit_units * 3 // 4]
        chosen += [u for u in owed if u not in chosen][: self.settings.audit_units - len(chosen)]
        return {u: self._price * self._cost(u) for u in sorted(chosen)}

    def audited(self, cycle: int, rows: Sequence[Ablation]) -> list[Ranking]:
        """Observe, let guards run down, vote; a unit that enough audits speak against cools. Returns one ranking row per unit that
        was measured or moved."""
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
        """Knapsack over active and promotable units, then probes into what is left."""
        s = self.settings
        before = {u: st.state for u, st in self._standing.items()}
        eligible = [
            self._item(u)
            for u, st in self._standing.items()
            if st.state == ranking.ACTIVE or (ranking.is_promotable(st, s.ranking) and self._item(u).value > 0)
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
                decisions.append(self._decision(item.id, "add", f"{s.ranking.votes} votes for it, and it fits"))
            else:
                drop = "drop" if state == ranking.ACTIVE else "refuse"
                decisions.append(self._decision(item.id, drop, f"others give more Dice per {self.space.kind.one}"))
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
        """Guard-free, over everything (`final_choice.choose`); cheapest first where a time limit left no cycle to learn anything in."""
        if not self._prior:
            self.told_saliency(0, dict.fromkeys(self._levels.bases, 0.0))
        evidence = Evidence(self._estimate, self._prior, frozenset(self.trial))
        return choose(self.space, self._levels, evidence, self.settings.utility, self.settings.ranking.hysteresis)

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
        self._estimate = {u: Estimate(**{**e, "window": tuple(e["window"])}) for u, e in state["estimate"].items()}
        if state["saliency"]:
            self.told_saliency(0, state["saliency"])
        self._tried = dict(state["tried"])
        self._audited = dict(state["audited"])
        self._price = state["price"]

    # -- how it decides --------------------------------------------------------------------------------------------

    def _probes(self) -> tuple[tuple[str, ...], list[Decision]]:
        """Probes into what active units leave: those still under trial as far as the share for newcomers allows, best votes first; then
        untried units in the order of the trial and the longest untried in turn; then, where newcomers do not fill their share, the
        others under trial."""
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

        incumbents = sorted(self._in(ranking.PROBE), key=lambda u: (-self._standing[u].votes, -self._density(u), u))
        untried = [u for u in self.trial if u not in self._tried and self._standing[u].state == ranking.IDLE]
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
            decisions.append(self._decision(unit, "drop", "on trial long enough: others have not been tried yet"))
        return self.space.in_order(probes), decisions

    def _density(self, unit: str) -> float:
        """What the unit is worth for its cost, as far as audits say; 0 while unmeasured."""
        return self._item(unit).value / self._cost(unit)

    def _item(self, unit: str) -> Item:
        """The unit as a knapsack item, with the exploration bonus and the incumbents' hysteresis. One outlier can push an incumbent's
        score below 0 for a whole window: it then competes with its hysteresis alone, and only votes can demote it."""
        worth = value(self._estimate[unit], self.settings.utility) or 0.0
        if self._standing[unit].state == ranking.ACTIVE:
            worth = max(worth, 0.0) + self.settings.ranking.hysteresis
        return self.space.item(unit, worth)

    def _ranked(self, unit: str, was: str, delta: float | None, reason: str) -> Ranking:
        e, st, u = self._estimate[unit], self._standing[unit], self.settings.utility
        return Ranking(
            unit=unit, state=st.state, was=was, delta=delta, ema=e.ema, median=median(e), iqr=iqr(e), score=score(e, u),
            standard_error=e.standard_error, audits=e.audits, votes=st.votes, guard=st.guard, reason=reason,
        )  # fmt: skip

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
        about="search, audit, allocate: what audits on held-out scans speak for",
        make=lambda space, _seed, settings: Sea(space, settings),
        settings=lambda cycles: SeaSettings(cycles=cycles),
    )
)
