"""Which cases are trained on, which measure utility, and which are never seen before the final score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sea_peft.data.cases import Case, Dataset
from sea_peft.errors import DataError


@dataclass(frozen=True, eq=False)
class Split:
    """Disjoint cases. `support` and `audit` together are the shots.

    Attributes:
        support: Trained on.
        audit: Used to measure utility and to choose; empty at one shot.
        test: Never seen before the final score.
    """

    support: tuple[Case, ...]
    audit: tuple[Case, ...]
    test: tuple[Case, ...]


def split(dataset: Dataset, shots: int, seed: int) -> Split:
    """Draw the shots at random and leave the rest for the test.

    Every labelled scan used counts as a shot. From two shots on, one in five (at least one) is held out for
    audits; at one shot none is, and the audit must fall back on held-out regions. Test cases are those that
    the layout itself marks as test, or else all that were not drawn. The draw depends only on the case ids
    and the seed.

    Raises:
        DataError: Fewer usable cases than shots, or none left to test on.
    """
    require_enough(dataset, shots)
    cases = sorted(dataset.cases, key=lambda case: case.id)
    order = np.random.default_rng(seed).permutation(len(cases))
    drawn = [cases[i] for i in order[:shots]]
    held_out = max(1, shots // 5) if shots >= 2 else 0
    rest = tuple(cases[i] for i in sorted(order[shots:]))
    return Split(
        support=tuple(drawn[held_out:]),
        audit=tuple(drawn[:held_out]),
        test=dataset.test_cases or rest,
    )


def require_enough(dataset: Dataset, shots: int) -> None:
    """Refuse a number of shots that the labelled cases cannot give. Raises `DataError`."""
    count = len(dataset.cases)
    most = count if dataset.test_cases else max(0, count - 1)
    if shots < 1:
        raise DataError(f"{shots} shots were asked for; at least 1 labelled case is needed")
    if shots > count:
        raise DataError(
            f"{shots} shots were asked for, but {dataset.name} has {count} usable labelled cases; "
            f"ask for at most {most} or label more"
        )
    if shots > most:
        raise DataError(
            f"{shots} shots would use all {count} usable labelled cases of {dataset.name} and leave none to "
            f"test on; ask for at most {most} or label more"
        )
