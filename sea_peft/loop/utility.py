"""Utility: what repeated noisy audits say of one unit. Pure `(estimate, observation) → estimate` over plain numbers, in Dice."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

import scipy.stats


@dataclasses.dataclass(frozen=True)
class UtilitySettings:
    """`decay`: of the exponential moving average. `window`: how many audits the median and IQR look back. `iqr_weight`: λ in
    score = median − λ·IQR. `exploration`: c in value = score + c·|EMA − score|.

    SEA-PEFT (arXiv 2603.05822) publishes decay 0.93–0.95, window 5, λ 0.25, c 0.5 for runs of 30 and more audits. A run of four to
    ten audits would never leave its first observation with such a decay, hence 0.7; and its first audit, of units that have hardly
    learnt, must be able to drop out, hence a window of 3.
    """

    decay: float = 0.7
    window: int = 3
    iqr_weight: float = 0.25
    exploration: float = 0.5


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What is known of one unit. `ema`: smoothed ΔDice, None while unmeasured (which is not 0). `window`: the last ΔDice, oldest
    first. `standard_error`: standard error over patches of the last ΔDice. `audits`: how often it was measured."""

    ema: float | None = None
    window: tuple[float, ...] = ()
    standard_error: float | None = None
    audits: int = 0


UNMEASURED = Estimate()


def observe(estimate: Estimate, delta: float, standard_error: float | None, settings: UtilitySettings) -> Estimate:
    """One audit's ΔDice of the unit. EMA_t = d·EMA_{t−1} + (1 − d)·Δ_t, begun at the first Δ."""
    ema = delta if estimate.ema is None else settings.decay * estimate.ema + (1 - settings.decay) * delta
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
    """By how much a unit's median ΔDice may be wrong, in Dice: its error over patches and its scatter over audits, √(standard error² + IQR²)."""
    return math.hypot(estimate.standard_error or 0.0, iqr(estimate) or 0.0)


def value(estimate: Estimate, settings: UtilitySettings) -> float | None:
    """What the knapsack maximises: score + c·|EMA − score|, an optimism that fades as audits agree; None while unmeasured."""
    s = score(estimate, settings)
    return None if s is None or estimate.ema is None else s + settings.exploration * abs(estimate.ema - s)


def is_decided(deltas: Sequence[float], cutoff: float, error: float) -> bool:
    """Whether more patches are unlikely to bring the mean ΔDice to the other side of `cutoff`.

    One-sided t test of the patches' mean against the cut-off (Student 1908): decided when the chance of being on the wrong side is at
    most `error`. `deltas`: ΔDice of the unit on every patch so far. With one patch, or with `error` 0, nothing is ever decided; without
    any scatter everything is, unless it lies on the cut-off itself.
    """
    if len(deltas) < 2 or error <= 0:
        return False
    distance = abs(statistics.fmean(deltas) - cutoff)
    standard_error = statistics.stdev(deltas) / len(deltas) ** 0.5
    if standard_error == 0:
        return distance > 0
    return bool(scipy.stats.t.sf(distance / standard_error, len(deltas) - 1) <= error)


def clearly_better(theirs: Sequence[float], ours: Sequence[float]) -> bool:
    """Whether their mean Dice is ahead of ours by more than two standard errors of the paired differences. Both: Dice patch by patch, in
    one order. On a single patch, by anything at all.

    Two and not one: patches of one audit case scatter less than cases do."""
    ahead = [a - b for a, b in zip(theirs, ours, strict=True)]
    standard_error = statistics.stdev(ahead) / len(ahead) ** 0.5 if len(ahead) > 1 else 0.0
    return statistics.fmean(ahead) > 2 * standard_error
