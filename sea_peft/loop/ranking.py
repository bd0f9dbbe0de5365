"""The finite-state ranking of units: idle → probe → active → cooling → idle, by votes and guards. Pure, over plain data.

One noisy audit neither promotes nor demotes: a unit moves when enough audits have voted, and not within its guard. Being switched
off for an ablation is no transition, so an audit can lose nobody's votes. Thresholds are in Dice.
"""

import dataclasses

IDLE, PROBE, ACTIVE, COOLING = "idle", "probe", "active", "cooling"


@dataclasses.dataclass(frozen=True)
class RankingSettings:
    """`votes`: audits in agreement (net) that promote or demote. `guard`: cycles for which a unit that moved stays where it is.
    `hysteresis`: in Dice; a ΔDice within ± this votes neither way, and a unit that is on is worth this much more than one that is not.

    SEA-PEFT (arXiv 2603.05822) publishes 3 votes, guard 3, hysteresis 0.02 for runs of 30 and more audits. ΔDice of single units is
    0.004–0.011 on average on the phantoms, so that 0.02 would silence every vote; hence 0.001, and two votes for short runs.
    """

    votes: int = 2
    guard: int = 1
    hysteresis: float = 0.001


@dataclasses.dataclass(frozen=True)
class Standing:
    """Where a unit stands. `votes`: net votes since it entered this state, positive for staying or moving up. `guard`: cycles left."""

    state: str = IDLE
    votes: int = 0
    guard: int = 0


def vote(standing: Standing, delta: float | None, settings: RankingSettings) -> tuple[Standing, str]:
    """Count one audit of a unit that is on (probe or active) → (standing, reason). `delta`: this audit's own ΔDice, None when the unit
    was not audited; a smoothed score would let one outlier vote for as long as it stays in the window. Votes are kept between
    +votes and −votes."""
    if delta is None or standing.state not in (PROBE, ACTIVE):
        return standing, "not audited"
    if abs(delta) <= settings.hysteresis:
        return standing, f"ΔDice {delta:+.4f} within ±{settings.hysteresis:g}: no vote"
    step = 1 if delta > 0 else -1
    votes = max(-settings.votes, min(settings.votes, standing.votes + step))
    reason = f"ΔDice {delta:+.4f}: vote {'up' if step > 0 else 'down'}, now {votes:+d}"
    return dataclasses.replace(standing, votes=votes), reason


def tick(standing: Standing) -> tuple[Standing, str | None]:
    """One cycle passes: guards run down, and a unit that has cooled becomes idle, free to be probed again."""
    if standing.guard > 0:
        standing = dataclasses.replace(standing, guard=standing.guard - 1)
    if standing.state == COOLING and standing.guard == 0:
        return Standing(IDLE), "cooled: may be probed again"
    return standing, None


def is_promotable(standing: Standing, settings: RankingSettings) -> bool:
    """A probe that enough audits have spoken for."""
    return standing.state == PROBE and standing.guard == 0 and standing.votes >= settings.votes


def is_demotable(standing: Standing, settings: RankingSettings) -> bool:
    """A unit that is on and that enough audits have spoken against."""
    return standing.state in (PROBE, ACTIVE) and standing.guard == 0 and standing.votes <= -settings.votes


def move(standing: Standing, state: str, settings: RankingSettings) -> Standing:
    """Enter `state` with fresh votes; the guard starts for active and cooling units."""
    if state == standing.state:
        return standing
    return Standing(state, 0, settings.guard if state in (ACTIVE, COOLING) else 0)
