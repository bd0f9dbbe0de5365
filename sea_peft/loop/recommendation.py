"""Which network a run recommends, adapted or unadapted, and on what evidence. Pure, over the run's
measurements.

The search and the final choice never see a test case. This is the one decision that may use them,
and it changes no adapter.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from sea_peft.loop.comparison import UNADAPTED
from sea_peft.loop.events import Recommended, Scored

ADAPTED = "adapted"
LEAST_DICE = 0.05
"""If no arm reaches this Dice, none of them finds anything, and differences between them mean
nothing.
"""
# Dice that the adapter must gain on the held-out labels of the one shot, since it has seen that
# scan
_GAIN = 0.10


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean Dice of one arm minus that of another on the same cases.

    Attributes:
        mean: in Dice.
        error: standard error of the paired differences; None below three cases.
        cases: number of cases.
        better: number of cases in which the first arm is ahead.
    """

    mean: float
    error: float | None
    cases: int
    better: int

    @property
    def in_points(self) -> str:
        """The mean and its standard error in Dice points, as in `+23.1 ± 2.0 points`."""
        error = "" if self.error is None else f" ± {self.error * 100:.1f}"
        return f"{self.mean * 100:+.1f}{error} points"


def difference(ours: Scored, theirs: Scored) -> Difference:
    """Ours minus theirs, case by case, over the labels that both were scored on.

    A label that the other arm has no output for counts as 0. Both arms must have a mean Dice.
    """
    pairs = []
    for case, dice in sorted(ours.per_case.items()):
        other = theirs.per_case.get(case, {})
        gains = [
            value - other.get(label, 0.0)
            for label, value in dice.items()
            if label in other or label not in theirs.per_label
        ]
        if gains:
            pairs.append(statistics.fmean(gains))
    assert ours.dice is not None
    assert theirs.dice is not None
    return _difference(ours.dice - theirs.dice, pairs)


def recommend(
    new_labels: Sequence[str], scored: Mapping[str, Scored], held_out: Mapping[str, Scored]
) -> Recommended:
    """Recommend the unadapted network if the evidence is against the adapter.

    The evidence is against it if its mean Dice is lower by more than the standard error of the
    paired differences. It comes from test cases or scans left out in turn (`scored`), else from
    scans held out while searching (`held_out`). With fewer than three scans there is no standard
    error, and any lower mean counts. At one shot without a test case there is no second scan. The
    held-out labels of that one scan are closer to the training data than any new scan will be, so
    the adapter must be ahead by ten Dice points there.

    Args:
        new_labels: labels that the unadapted network cannot predict. With any of them it is never
            recommended.
        scored: arm → its score on test cases or scans left out in turn.
        held_out: arm → its score on what the search held out.
    """
    for arms in (scored, held_out):
        ours, theirs = arms.get(ADAPTED), arms.get(UNADAPTED)
        if ours is None or ours.dice is None:
            continue
        scans = _scans(ours)
        if theirs is None or theirs.dice is None or new_labels:
            return _for_new(new_labels, f"{scans}: Dice {ours.dice:.2f}")
        if _blind([arm.dice for arm in arms.values() if arm.dice is not None]):
            return Recommended(ADAPTED, f"cannot tell: no arm reaches Dice {LEAST_DICE} on {scans}")
        found = difference(ours, theirs)
        if ours.on == "held_out_labels":
            clear = found.mean > _GAIN
            said = f"{scans}: {found.in_points}, not independent" + (
                "" if clear else " and not clear enough"
            )
            return Recommended(ADAPTED if clear else UNADAPTED, said)
        against = found.mean < -(found.error or 0.0)
        return Recommended(UNADAPTED if against else ADAPTED, f"{scans}: {found.in_points}")
    if new_labels:
        return _for_new(new_labels, "nothing else was scored")
    return Recommended(
        UNADAPTED, "there is no evidence for the adapter: no scan was held out, and none was scored"
    )


def _difference(mean: float, pairs: Sequence[float]) -> Difference:
    error = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) >= 3 else None
    return Difference(mean, error, len(pairs), sum(pair > 0 for pair in pairs))


def _blind(dice: Sequence[float]) -> bool:
    return max(dice) < LEAST_DICE


def _for_new(labels: Sequence[str], said: str) -> Recommended:
    return Recommended(ADAPTED, f"the unadapted network cannot predict {', '.join(labels)}; {said}")


def _scans(scored: Scored) -> str:
    count = len(scored.per_case)
    s = "" if count == 1 else "s"
    return {
        "test": f"{count} test case{s}",
        "cv": f"{count} shot{s}, each left out in turn",
        "held_out": f"{count} scan{s} held out while searching",
        "held_out_labels": "the held-out labels of the one shot",
    }[scored.on]
