"""Utility: the effect of one unit, from repeated noisy audits. Pure `(estimate, observation) →
estimate` over plain numbers, in Dice.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class UtilitySettings:
    """How audits are combined into a score and a value.

    SEA-PEFT (arXiv 2603.05822) publishes decay 0.93–0.95, window 5, λ 0.25 and c 0.5 for runs of 30
    and more audits. With such a decay, a run of four to ten audits would never leave its first
    observation: hence 0.7. And the first audit, of units that have hardly learnt, must be able to
    drop out: hence a window of 3.

    Attributes:
        decay: of the exponential moving average.
        window: number of audits that median and IQR look back on.
        iqr_weight: λ in score = median − λ·IQR.
        exploration: c in value = score + c·|EMA − score|.
    """

    decay: float = 0.7
    window: int = 3
    iqr_weight: float = 0.25
    exploration: float = 0.5


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The audits of one unit so far.

    Attributes:
        ema: smoothed ΔDice; None while unmeasured (which is not 0).
        window: the last ΔDice, oldest first.
        standard_error: of the last ΔDice, over patches.
        audits: number of audits that measured the unit.
    """

    ema: float | None = None
    window: tuple[float, ...] = ()
    standard_error: float | None = None
    audits: int = 0


UNMEASURED = Estimate()


def observe(
    estimate: Estimate, delta: float, standard_error: float | None, settings: UtilitySettings
) -> Estimate:
    """Add one audit's ΔDice: EMA_t = d·EMA_{t−1} + (1 − d)·Δ_t, beginning with the first Δ.

    Examples:
        >>> once = observe(UNMEASURED, 0.02, 0.005, UtilitySettings())
        >>> twice = observe(once, 0.01, 0.004, UtilitySettings())
        >>> round(twice.ema, 3), twice.window, twice.audits
        (0.017, (0.02, 0.01), 2)
    """
    ema = (
        delta
        if estimate.ema is None
        else settings.decay * estimate.ema + (1 - settings.decay) * delta
    )
    window = (*estimate.window, delta)[-settings.window :]
    return Estimate(ema, window, standard_error, estimate.audits + 1)


def median(estimate: Estimate) -> float | None:
    """Median ΔDice over the window."""
    return statistics.median(estimate.window) if estimate.window else None


def iqr(estimate: Estimate) -> float | None:
    """Interquartile range over the window (linear interpolation); 0 for a single audit."""
    if not estimate.window:
        return None
    if len(estimate.window) == 1:
        return 0.0
    low, _, high = statistics.quantiles(estimate.window, n=4, method="inclusive")
    return high - low


def score(estimate: Estimate, settings: UtilitySettings) -> float | None:
    """Median − λ·IQR, in Dice; None while unmeasured."""
    middle, width = median(estimate), iqr(estimate)
    return None if middle is None or width is None else middle - settings.iqr_weight * width


def error(estimate: Estimate) -> float:
    """The uncertainty of a unit's median ΔDice: √(standard error over patches² + IQR over
    audits²), in Dice.
    """
    return math.hypot(estimate.standard_error or 0.0, iqr(estimate) or 0.0)


def value(estimate: Estimate, settings: UtilitySettings) -> float | None:
    """The knapsack's objective: score + c·|EMA − score|, an optimism that fades as audits agree.
    None while unmeasured.
    """
    s = score(estimate, settings)
    return (
        None
        if s is None or estimate.ema is None
        else s + settings.exploration * abs(estimate.ema - s)
    )


def is_decided(deltas: Sequence[float], cutoff: float, error: float) -> bool:
    """Whether more patches are unlikely to move the mean ΔDice to the other side of `cutoff`.

    A one-sided t test of the patches' mean against the cut-off (Student 1908): decided if the
    chance of being on the wrong side is at most `error`. With one patch, or with `error` 0, nothing
    is ever decided. Without any scatter everything is, unless it lies exactly on the cut-off.

    `deltas`: ΔDice of the unit on each patch so far.
    """
    if len(deltas) < 2 or error <= 0:
        return False
    from scipy.special import stdtr  # Student's t distribution; here, since only audits ask for it

    distance = abs(statistics.fmean(deltas) - cutoff)
    standard_error = statistics.stdev(deltas) / len(deltas) ** 0.5
    if standard_error == 0:
        return distance > 0
    return bool(stdtr(len(deltas) - 1, -distance / standard_error) <= error)


def clearly_better(theirs: Sequence[float], ours: Sequence[float]) -> bool:
    """Whether their mean Dice is ahead of ours by more than two standard errors of the paired
    differences.

    Two and not one, since patches of one audit case scatter less than cases do. On a single patch,
    any lead counts. Both arguments: Dice of each patch, in the same order.
    """
    ahead = [a - b for a, b in zip(theirs, ours, strict=True)]
    standard_error = statistics.stdev(ahead) / len(ahead) ** 0.5 if len(ahead) > 1 else 0.0
    return statistics.fmean(ahead) > 2 * standard_error
