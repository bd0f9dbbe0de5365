"""The finite-state ranking of units: idle → probe → active → cooling → idle, by votes and guards.
Pure, over plain data.

One noisy audit neither promotes nor demotes: a unit moves only after enough audits have voted, and
never within its guard. Being switched off for an ablation is no transition, so an audit never costs
a unit its votes. Thresholds are in Dice.
"""

import dataclasses
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

IDLE, PROBE, ACTIVE, COOLING = "idle", "probe", "active", "cooling"


@dataclasses.dataclass(frozen=True)
class RankingSettings:
    """When votes move a unit.

    SEA-PEFT (arXiv 2603.05822) publishes 3 votes, guard 3 and hysteresis 0.02 for runs of 30 and
    more audits. On the phantoms the mean ΔDice of single units is 0.004–0.011, so 0.02 would
    silence every vote: hence 0.001, and two votes for short runs.

    Attributes:
        votes: net number of agreeing audits that promote or demote.
        guard: cycles for which a unit that has moved stays where it is.
        hysteresis: in Dice. A ΔDice within ± this casts no vote, and an active unit is worth this
            much more than another.
    """

    votes: int = 2
    guard: int = 1
    hysteresis: float = 0.001


@dataclasses.dataclass(frozen=True)
class Standing:
    """The state of a unit.

    Attributes:
        state: idle, probe, active or cooling.
        votes: net votes since it entered this state; positive for staying or moving up.
        guard: cycles for which it cannot move.
    """

    state: str = IDLE
    votes: int = 0
    guard: int = 0


def vote(
    standing: Standing, delta: float | None, settings: RankingSettings
) -> tuple[Standing, str]:
    """Count one audit of a unit that is on (probe or active).

    Votes are kept between −votes and +votes.

    Args:
        standing: the unit's state so far.
        delta: this audit's own ΔDice; None if the unit was not audited. With a smoothed score, one
            outlier would vote for as long as it stays in the window.
        settings: when votes move a unit.

    Returns:
        The new standing, and the reason in words.
    """
    if delta is None or standing.state not in (PROBE, ACTIVE):
        return standing, "not audited"
    if abs(delta) <= settings.hysteresis:
        return standing, f"ΔDice {delta:+.4f} within ±{settings.hysteresis:g}: no vote"
    step = 1 if delta > 0 else -1
    votes = max(-settings.votes, min(settings.votes, standing.votes + step))
    reason = f"ΔDice {delta:+.4f}: vote {'up' if step > 0 else 'down'}, now {votes:+d}"
    return dataclasses.replace(standing, votes=votes), reason


def tick(standing: Standing) -> tuple[Standing, str | None]:
    """Let one cycle pass: guards run down, and a unit that has cooled becomes idle and may be
    probed again.
    """
    if standing.guard > 0:
        standing = dataclasses.replace(standing, guard=standing.guard - 1)
    if standing.state == COOLING and standing.guard == 0:
        return Standing(IDLE), "cooled: may be probed again"
    return standing, None


def is_promotable(standing: Standing, settings: RankingSettings) -> bool:
    """Whether the unit is a probe that enough audits have voted for."""
    return standing.state == PROBE and standing.guard == 0 and standing.votes >= settings.votes


def is_demotable(standing: Standing, settings: RankingSettings) -> bool:
    """Whether the unit is on and enough audits have voted against it."""
    return (
        standing.state in (PROBE, ACTIVE)
        and standing.guard == 0
        and standing.votes <= -settings.votes
    )


def move(standing: Standing, state: str, settings: RankingSettings) -> Standing:
    """Enter `state` with fresh votes; the guard starts for active and cooling units."""
    if state == standing.state:
        return standing
    return Standing(state, 0, settings.guard if state in (ACTIVE, COOLING) else 0)


class Standings:
    """The states of all units, and how audits and allocations move them.

    Args:
        units: their ids.
        active: those that begin as active; the others begin as idle.
        settings: when votes move a unit.
    """

    def __init__(
        self, units: Iterable[str], active: Container[str], settings: RankingSettings
    ) -> None:
        self._settings = settings
        self._of = {unit: Standing(ACTIVE if unit in active else IDLE) for unit in units}

    def __getitem__(self, unit: str) -> Standing:
        return self._of[unit]

    def units(self, *states: str) -> list[str]:
        """The units in these states."""
        return [unit for unit, standing in self._of.items() if standing.state in states]

    def eligible(self) -> list[str]:
        """The units that may be active: those that are, and probes that enough audits have voted
        for.
        """
        return [
            unit
            for unit, standing in self._of.items()
            if standing.state == ACTIVE or is_promotable(standing, self._settings)
        ]

    def move(self, unit: str, state: str) -> None:
        """Let an allocation move a unit."""
        self._of[unit] = move(self._of[unit], state, self._settings)

    def audited(self, deltas: Mapping[str, float]) -> Iterator[tuple[str, str, str]]:
        """Let one cycle pass and count its audit; a unit that enough audits voted against cools.

        Args:
            deltas: unit → ΔDice.

        Yields:
            Unit, state before and reason in words, of each unit that was audited or has cooled.
        """
        for unit, before in self._of.items():
            standing, reason = tick(before)
            if unit in deltas:
                standing, reason = vote(standing, deltas[unit], self._settings)
                if is_demotable(standing, self._settings):
                    reason += f"; {-standing.votes} votes against: cooling"
                    standing = move(standing, COOLING, self._settings)
            self._of[unit] = standing
            if reason is not None:
                yield unit, before.state, reason

    def state_dict(self) -> dict[str, dict[str, str | int]]:
        """Unit → its standing, as JSON types."""
        return {unit: dataclasses.asdict(standing) for unit, standing in self._of.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore what `state_dict` returned."""
        self._of = {unit: Standing(**fields) for unit, fields in state.items()}
