"""The finite-state ranking of units: idle → probe → active → cooling → idle, by votes and guards.
Pure, over plain data.

One noisy audit neither promotes nor demotes: a unit moves only after enough audits have voted, and
never within its guard. Being switched off for an ablation is no transition, so an audit never costs
a unit its votes. Thresholds are in Dice.
"""

import dataclasses

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
