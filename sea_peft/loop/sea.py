"""The `sea` policy: self-auditing allocation (SEA-PEFT, arXiv 2603.05822). Decides from promises and audits; pure, replayable."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sea_peft.adapters import Unit
from sea_peft.loop import knapsack
from sea_peft.loop.knapsack import Item
from sea_peft.loop.policies import Allocation, Decision, Space
from sea_peft.loop.ranking import (
    ACTIVE,
    COOLING,
    IDLE,
    PROBE,
    RankingSettings,
    Standing,
    is_demotable,
    is_promotable,
    move,
    tick,
    vote,
)
from sea_peft.loop.utility import UNMEASURED, Estimate, UtilitySettings, iqr, median, observe, score, value


@dataclasses.dataclass(frozen=True)
class SeaSettings:
    """`cycles`: audits there will be. `probe_share`: share of the budget that changes hands every cycle, from the units under trial that
    audits say least of to untried ones. `audit_units`: most units ablated in one audit. `growth`: how the credit of a larger level grows
    with its cost, 1 in proportion, 0 not at all. `ranking`, `utility`: of those modules.
    """

    cycles: int = 3
    probe_share: float = 0.15
    audit_units: int = 20
    growth: float = 0.5
    utility: UtilitySettings = dataclasses.field(default_factory=UtilitySettings)
    ranking: RankingSettings = dataclasses.field(default_factory=RankingSettings)


class Sea:
    """Search–audit–allocate as a policy.

    Everything starts idle. Promise (the loss gradient at a unit's zero-initialised output) fills the budget with probes, at the
    middle level of every family. Audits measure what is on; votes promote probes and demote units; a greedy knapsack over the
    promoted picks the active set. The rest of the budget is on trial: every cycle a share of it goes from the probes that audits say
    least of to units that were never tried, by promise, then to the longest untried. What the cycles cannot try at all is left out from
    the start, by promise (`trial`). The final choice is a guard-free knapsack over everything that was measured, filled up by promise.
    """

    name = "sea"
    audits = True
    outside_budget = False

    def __init__(self, space: Space, settings: SeaSettings) -> None:
        self.space = space
        self.settings = settings
        self._units = space.by_id
        self._standing = {u: Standing() for u in self._units}
        self._estimate = dict.fromkeys(self._units, UNMEASURED)
        self._promise: dict[str, float] = {}
        self._tried: dict[str, int] = {}  # unit → last cycle in which it was open
        self._audited: dict[str, int] = {}  # unit → last cycle in which it was audited
        self._price = 0.0  # least Dice per parameter that the last allocation paid, 0 where the budget left nobody out
        self._starting = _starting_levels(space)
        # the units that the cycles together can try; the others are left out from the start
        self.trial: tuple[str, ...] = ()

    # -- what the loop asks and tells ------------------------------------------------------------------------------

    def to_promise(self, cycle: int) -> Sequence[str]:
        return self._starting if cycle == 0 else ()

    def promised(self, cycle: int, promise: Mapping[str, float]) -> None:
        self._promise = dict(promise)
        self.trial = self._listed()

    def to_audit(self, cycle: int) -> Mapping[str, float]:
        """Where an audit decides most: three in four are the costliest units that are on, one in four the longest unaudited. A cheap unit
        that is never audited keeps its place by promise: it is not what the budget is short for. A unit's decision turns where it earns
        what the last allocation paid at least for as many parameters."""
        on = self._in(ACTIVE, PROBE)
        costly = sorted(on, key=lambda u: (-self._units[u].cost, u))
        owed = sorted(on, key=lambda u: (self._audited.get(u, -1), -self._units[u].cost, u))
        chosen = costly[: self.settings.audit_units * 3 // 4]
        chosen += [u for u in owed if u not in chosen][: self.settings.audit_units - len(chosen)]
        return {u: self._price * self._units[u].cost for u in sorted(chosen)}

    def audited(self, cycle: int, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Observe, let guards run down, vote; a unit that enough audits speak against cools. Returns one ranking row per unit that
        was measured or moved."""
        s = self.settings
        deltas = {row["unit"]: (row["delta"], row["spread"]) for row in rows}
        ranked = []
        self._audited.update(dict.fromkeys(deltas, cycle))
        for unit in self._units:
            was = self._standing[unit].state
            standing, cooled = tick(self._standing[unit])
            reason = cooled or ""
            if unit in deltas:
                self._estimate[unit] = observe(self._estimate[unit], *deltas[unit], s.utility)
                standing, reason = vote(standing, deltas[unit][0], s.ranking)
                if is_demotable(standing, s.ranking):
                    reason += f"; {-standing.votes} votes against: cooling"
                    standing = move(standing, COOLING, s.ranking)
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
            if st.state == ACTIVE or (is_promotable(st, s.ranking) and self._item(u).value > 0)
        ]
        capacity = int(self.space.capacity * (1 - s.probe_share))
        found, best = knapsack.greedy(eligible, capacity), knapsack.exact(eligible, capacity)
        on_now = frozenset(found.chosen)
        paid = [item.value / item.cost for item in eligible if item.id in on_now]
        self._price = min(paid) if paid and len(paid) < len(eligible) else 0.0
        decisions = []
        for item in eligible:
            on, state = item.id in on_now, before[item.id]
            self._move(item.id, ACTIVE if on else COOLING)
            if on and state == ACTIVE:
                decisions.append(self._decision(item.id, "keep", "still worth its cost"))
            elif on:
                decisions.append(self._decision(item.id, "add", f"{s.ranking.votes} votes for it, and it fits"))
            else:
                drop = "drop" if state == ACTIVE else "refuse"
                decisions.append(self._decision(item.id, drop, "others give more Dice per parameter"))
        probes, probe_decisions = self._probes(cycle, found.cost)
        active = self._in_order(found.chosen)
        for unit in (*active, *probes):
            self._tried[unit] = cycle
        return Allocation(
            active, probes, (*decisions, *probe_decisions), found.value, best.value, knapsack.gap(found, best)
        )

    def final(self) -> Allocation:
        """Guard-free: the best of everything measured, whatever its state, larger levels of it included; then into what is left, by
        promise, what no audit spoke against. A larger level was not measured itself: it is credited with its smaller sibling's score
        times (cost ratio)^growth, and starts from the sibling's trained values (`Adapter.inherit`)."""
        measured = {u: self._item(u, exploring=False) for u, e in self._estimate.items() if e.audits}
        grown = self._grown(measured)
        items = [*measured.values(), *(item for item, _ in grown.values())]
        found = knapsack.greedy(items, self.space.capacity)
        best = knapsack.exact(items, self.space.capacity)
        by_score = frozenset(found.chosen)
        chosen = set(by_score)
        left = self.space.capacity - found.cost
        harmful = {u for u, item in measured.items() if item.value < -self.settings.ranking.hysteresis}
        taken = {self._units[u].group for u in (*chosen, *harmful)}
        for unit in self._by_promise():
            u = self._units[unit]
            if u.group not in taken and u.cost <= left and self._promise[unit] > 0:
                chosen.add(unit)
                taken.add(u.group)
                left -= u.cost
        outgrown = {smaller: unit for unit, (_, smaller) in grown.items() if unit in chosen}
        reasons, on_trial = {}, frozenset(self.trial)
        for unit in self._units:
            item = measured.get(unit)
            if unit in by_score and item:
                reasons[unit] = f"score {item.value:+.4f} Dice over {self._estimate[unit].audits} audits"
            elif unit in by_score:
                item, smaller = grown[unit]
                reasons[unit] = f"grown from {smaller}: {measured[smaller].value:+.4f} Dice there, credited with {item.value:+.4f}"
            elif unit in chosen:
                said = f"score {item.value:+.4f} Dice is within noise" if item else "unmeasured"
                reasons[unit] = f"{said}: fills what is left, by promise"
            elif unit in outgrown and item:
                reasons[unit] = f"score {item.value:+.4f} Dice: grown into {outgrown[unit]}"
            elif unit in harmful and item:
                reasons[unit] = f"score {item.value:+.4f} Dice: it does harm"
            elif item:
                reasons[unit] = f"score {item.value:+.4f} Dice: others give more Dice per parameter"
            else:
                reasons[unit] = self._why_not(unit, on_trial, left)
        decisions = tuple(
            self._decision(u, ("keep" if u in measured else "add") if u in chosen else "refuse", why)
            for u, why in reasons.items()
        )
        return Allocation(self._in_order(chosen), (), decisions, found.value, best.value, knapsack.gap(found, best))

    def _grown(self, measured: Mapping[str, Item]) -> dict[str, tuple[Item, str]]:
        """Unmeasured larger levels of units that proved useful: id → (item with the credited value, the smaller unit)."""
        proven: dict[tuple[str, str], list[Item]] = {}
        for smaller, item in measured.items():
            if item.value > 0:
                proven.setdefault((item.group, self._units[smaller].placement), []).append(item)
        grown: dict[str, tuple[Item, str]] = {}
        for unit, u in self._units.items():
            siblings = [i for i in proven.get((u.group, u.placement), ()) if i.cost < u.cost]
            if siblings and unit not in measured:
                credits = {i.id: i.value * (u.cost / i.cost) ** self.settings.growth for i in siblings}
                smaller = max(credits, key=lambda s: credits[s])
                grown[unit] = (Item(unit, u.group, u.cost, credits[smaller]), smaller)
        return grown

    def state_dict(self) -> dict[str, Any]:
        return {
            "standing": {u: dataclasses.asdict(st) for u, st in self._standing.items()},
            "estimate": {u: dataclasses.asdict(e) for u, e in self._estimate.items()},
            "promise": dict(self._promise),
            "tried": dict(self._tried),
            "audited": dict(self._audited),
            "price": self._price,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._standing = {u: Standing(**st) for u, st in state["standing"].items()}
        self._estimate = {
            u: Estimate(**{**e, "window": tuple(e["window"])}) for u, e in state["estimate"].items()
        }
        self._promise = dict(state["promise"])
        self.trial = self._listed()
        self._tried = dict(state["tried"])
        self._audited = dict(state["audited"])
        self._price = state["price"]

    # -- how it decides --------------------------------------------------------------------------------------------

    def _probes(self, cycle: int, used: int) -> tuple[tuple[str, ...], list[Decision]]:
        """Probes into what active units leave: those still under trial as far as the share for newcomers allows, best votes first; then
        untried units by promise and the longest untried in turn; then, where newcomers do not fill their share, the others under trial."""
        left = self.space.capacity - used
        taken = {self._units[u].group for u in self._in(ACTIVE)}
        probes: list[str] = []
        decisions = []

        def take(unit: str, reason: str, keep: int = 0) -> bool:
            nonlocal left
            if self._units[unit].group in taken or self._units[unit].cost > left - keep:
                return False
            probes.append(unit)
            taken.add(self._units[unit].group)
            left -= self._units[unit].cost
            self._move(unit, PROBE)
            decisions.append(self._decision(unit, "probe", reason))
            return True

        incumbents = sorted(self._in(PROBE), key=lambda u: (-self._standing[u].votes, -self._density(u), u))
        untried = [u for u in self.trial if u not in self._tried and self._standing[u].state == IDLE]
        for_newcomers = int(self.space.capacity * self.settings.probe_share) if untried else 0
        waiting = [u for u in incumbents if not take(u, "still under trial", keep=for_newcomers)]
        owed = sorted(self._tried, key=lambda u: (self._tried[u], self._units[u].cost, u))
        for unit in untried:
            take(unit, "by promise")
        waiting = [u for u in waiting if not take(u, "still under trial")]
        for unit in owed:
            if self._standing[unit].state == IDLE:
                take(unit, "by debt: longest untried")
        for unit in waiting:
            self._move(unit, IDLE)
            decisions.append(self._decision(unit, "drop", "on trial long enough: others have not been tried yet"))
        return self._in_order(probes), decisions

    def _listed(self) -> tuple[str, ...]:
        """By promise, one unit per (site, family), what one cycle's room times the cycles can try: room in the budget, and in an audit."""
        room, chances = self.space.capacity * self.settings.cycles, self.settings.audit_units * self.settings.cycles
        listed: dict[str, str] = {}
        for unit in self._by_promise():
            u = self._units[unit]
            if u.group not in listed and u.cost <= min(room, self.space.capacity) and len(listed) < chances:
                listed[u.group] = unit
                room -= u.cost
        return tuple(listed.values())

    def _density(self, unit: str) -> float:
        """What the unit is worth per parameter, as far as audits say; 0 while unmeasured."""
        return self._item(unit).value / self._units[unit].cost

    def _by_promise(self) -> list[str]:
        """Units whose promise was measured, highest promise per parameter first."""
        return sorted(
            self._promise, key=lambda u: (-self._promise[u] / self._units[u].cost, self._units[u].cost, u)
        )

    def _item(self, unit: str, exploring: bool = True) -> Item:
        """The unit as a knapsack item; while searching with the exploration bonus and the incumbents' hysteresis. One outlier can push
        an incumbent's score below 0 for a whole window: it then competes with its hysteresis alone, and only votes can demote it."""
        estimate = self._estimate[unit]
        worth = (value if exploring else score)(estimate, self.settings.utility) or 0.0
        if exploring and self._standing[unit].state == ACTIVE:
            worth = max(worth, 0.0) + self.settings.ranking.hysteresis
        return Item(unit, self._units[unit].group, self._units[unit].cost, worth)

    def _ranked(self, unit: str, was: str, delta: float | None, reason: str) -> dict[str, Any]:
        e, st, u = self._estimate[unit], self._standing[unit], self.settings.utility
        return {
            "unit": unit,
            "state": st.state,
            "was": was,
            "delta": delta,
            "ema": e.ema,
            "median": median(e),
            "iqr": iqr(e),
            "score": score(e, u),
            "spread": e.spread,
            "audits": e.audits,
            "votes": st.votes,
            "guard": st.guard,
            "reason": reason,
        }

    def _why_not(self, unit: str, on_trial: frozenset[str], left: int) -> str:
        u = self._units[unit]
        if u.cost > self.space.capacity:
            return f"costs {u.cost:,}, more than the whole budget for units ({self.space.capacity:,})"
        if unit not in self._promise:
            return "unmeasured: another level of this family stood for it here"
        if unit not in on_trial:
            return f"never tried: {self.settings.cycles} cycles have room for {len(self.trial)} units, and others promise more for their cost"
        return f"unmeasured: lower promise per parameter than what was taken, and {left:,} parameters left"

    def _decision(self, unit: str, decision: str, reason: str) -> Decision:
        return Decision(unit, decision, value(self._estimate[unit], self.settings.utility), reason)

    def _move(self, unit: str, state: str) -> None:
        self._standing[unit] = move(self._standing[unit], state, self.settings.ranking)

    def _in(self, *states: str) -> list[str]:
        return [u for u, st in self._standing.items() if st.state in states]

    def _in_order(self, units: Iterable[str]) -> tuple[str, ...]:
        """In the network's execution order."""
        return tuple(sorted(units, key=lambda u: (self._units[u].site.order, u)))


def _starting_levels(space: Space) -> list[str]:
    """For every (site, family, placement) the unit that stands for its group until something is known: the middle level, or the largest
    smaller one that leaves three quarters of the budget to others; where none does, the smallest."""
    grouped: dict[tuple[str, str], list[Unit]] = {}
    for unit in space.units:
        grouped.setdefault((unit.group, unit.placement), []).append(unit)
    starting = []
    for group in grouped.values():
        rising = sorted(group, key=lambda u: (u.cost, u.id))
        modest = [u for u in rising[: len(rising) // 2 + 1] if u.cost <= space.capacity / 4]
        starting.append((modest or rising[:1])[-1].id)
    return starting
