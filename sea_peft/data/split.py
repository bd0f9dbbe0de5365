"""The cases that are trained on, that measure utility, and that are never seen before the final
score.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from sea_peft.data.cases import Case, Dataset
from sea_peft.data.split_file import NamedCases
from sea_peft.data.wording import count
from sea_peft.errors import DataError

Tests = int | Literal["none", "cv"] | None
"""What a run is scored on: at most this many test cases; none; its own shots, each left out in
turn; or all other cases (None).
"""

Holds = Mapping[str, Collection[str]]
"""Case id → the labels that the case holds."""
_UNKNOWN: Holds = {}


@dataclass(frozen=True, eq=False)
class Split:
    """Disjoint cases.

    Attributes:
        support: trained on.
        audit: used to measure utility and to choose; empty at one shot.
        test: never seen before the final score.
        holds: the labels of each case, where they were looked at.
    """

    support: tuple[Case, ...]
    audit: tuple[Case, ...]
    test: tuple[Case, ...]
    holds: Holds = field(default_factory=dict)

    @property
    def shots(self) -> tuple[Case, ...]:
        """Every labelled scan that the refit trains on."""
        return (*self.support, *self.audit)

    @property
    def hidden(self) -> set[str]:
        """The labels that only audit cases hold. The search trains the network to find them
        nowhere.
        """
        return _only_in(self.audit, self.support, self.holds)

    def leave_one_out(self) -> tuple[Split, ...]:
        """For each shot, a split of the others that has it as its only test case.

        The others keep their roles. If the shot left out was the only case of its role, a case of
        the other role takes its place; a single remaining case is support.
        """
        return tuple(self._without(case) for case in self.shots)

    def _without(self, case: Case) -> Split:
        support = tuple(c for c in self.support if c is not case)
        audit = tuple(c for c in self.audit if c is not case)
        if not audit and len(support) > 1:
            audit = _held_out(support, (), self.holds)
            support = tuple(c for c in support if c not in audit)
        if not support:
            support, audit = audit[:1], audit[1:]
        return Split(support, audit, (case,), self.holds)


def split(
    dataset: Dataset,
    shots: int,
    seed: int,
    test: Tests = None,
    seen: Collection[str] = (),
    holds: Holds = _UNKNOWN,
) -> Split:
    """Draw the shots at random and take the test cases from the rest.

    Every labelled scan used counts as a shot. From two shots on, one in five (at least one) is held
    out for audits. At one shot none is, and audits use held-out labels of that scan. Test cases are
    those that the layout itself marks as test, or else all cases not drawn; there may be none. The
    draw depends only on the case ids and the seed; which shots are held out, on their labels too.

    Args:
        dataset: of usable cases.
        shots: number of shots.
        seed: of the draw.
        test: what to score on.
        seen: ids of cases that an earlier run has trained on. They become support; the other shots,
            and held-out and test cases, come from the rest.
        holds: the labels of each case. No label is held out altogether where that can be helped,
            since the search would train the network to find it nowhere.

    Raises:
        DataError: there are fewer usable cases than shots, or none of the shots is new.
    """
    require_enough(dataset, shots)
    cases = sorted(dataset.cases, key=lambda case: case.id)
    old = [case for case in cases if case.id in seen]
    if len(old) >= shots:
        raise DataError(
            f"{count(shots, 'shot')} asked for, and {len(old)} of {dataset.name} served as shots"
            " before; ask for more than these"
        )
    cases = [case for case in cases if case.id not in seen]
    order = np.random.default_rng(seed).permutation(len(cases))
    drawn = [cases[i] for i in order[: shots - len(old)]]
    rest = tuple(cases[i] for i in sorted(order[shots - len(old) :]))
    audit = _held_out(drawn, old, holds)
    support = [case for case in drawn if case not in audit]
    pool = tuple(case for case in dataset.test_cases if case.id not in seen) or rest
    return Split((*old, *support), audit, _tests(pool, seed, test), holds)


def split_as_named(
    dataset: Dataset,
    named: NamedCases,
    seed: int,
    test: Tests = None,
    seen: Collection[str] = (),
    holds: Holds = _UNKNOWN,
) -> Split:
    """The split that a file names.

    Without audit cases, one in five of two or more support cases is held out for audits. Without a
    list of test cases, these are the cases that the layout marks as test, or else all that the file
    does not name. `seen` and `holds`: as for `split`.

    Raises:
        DataError: a case is not in the data set or not usable, or was seen and is to be held out or
            tested on.
    """
    training = {case.id: case for case in dataset.cases}
    testing = {case.id: case for case in dataset.test_cases}

    def found(names: Sequence[str], first: dict[str, Case], second: dict[str, Case]) -> list[Case]:
        for name in names:
            if name not in first and name not in second:
                raise DataError(
                    f"{named.file} names case {name}, which is no usable labelled case of"
                    f" {dataset.name}; `seapeft data check` lists these"
                )
        return [first[name] if name in first else second[name] for name in names]

    support = found(named.support, training, testing)
    audit = found(named.audit, training, testing)
    if not audit:
        new = [case for case in support if case.id not in seen]
        if seen and not new:
            raise DataError(
                f"{named.file} names no case that is new: all served as shots before; name one that"
                " did not"
            )
        drawn = [new[i] for i in np.random.default_rng(seed).permutation(len(new))]
        audit = [*_held_out(drawn, [case for case in support if case not in new], holds)]
        support = [case for case in support if case not in audit]
    taken = {id(case) for case in (*support, *audit)}
    if named.test is not None:
        pool = found(named.test, testing, training)
    else:
        pool = [
            case
            for case in dataset.test_cases or dataset.cases
            if id(case) not in taken and case.id not in seen
        ]
    for role, cases in (("audit", audit), ("test", pool)):
        if again := next((case.id for case in cases if case.id in seen), None):
            raise DataError(
                f"{named.file} names case {again} under {role}, and it served as a shot before;"
                " take it out there"
            )
    return Split(tuple(support), tuple(audit), _tests(tuple(pool), seed, test), holds)


def require_enough(dataset: Dataset, shots: int) -> None:
    """Raise `DataError` if there are too few labelled cases for this number of shots."""
    usable = len(dataset.cases)
    if shots < 1:
        raise DataError(f"{shots} shots were asked for; at least 1 labelled case is needed")
    if shots > usable:
        asked = f"{count(shots, 'shot')} {'was' if shots == 1 else 'were'} asked for"
        raise DataError(
            f"{asked}, but {dataset.name} has {count(usable, 'usable labelled case')}; "
            + (f"ask for at most {usable} or label more" if usable else "label some first")
        )


def _held_out(drawn: Sequence[Case], others: Sequence[Case], holds: Holds) -> tuple[Case, ...]:
    """The shots that measure utility: consecutive ones of those `drawn`, so that as few labels as
    possible are in these alone; the first of equals.
    """
    shots = len(drawn) + len(others)
    number = min(max(1, shots // 5), len(drawn)) if shots >= 2 else 0
    turns = [(*drawn[i:], *drawn[:i]) for i in range(len(drawn))]
    best = min(
        turns, key=lambda turn: len(_only_in(turn[:number], (*others, *turn[number:]), holds))
    )
    return best[:number]


def _only_in(cases: Sequence[Case], others: Sequence[Case], holds: Holds) -> set[str]:
    """The labels that these cases hold and the others do not."""
    held, left = (
        {label for case in of for label in holds.get(case.id, ())} for of in (cases, others)
    )
    return held - left


def _tests(pool: tuple[Case, ...], seed: int, test: Tests) -> tuple[Case, ...]:
    if test is None:
        return pool
    if isinstance(test, str):
        return ()
    drawn = np.random.default_rng([seed, 1]).permutation(len(pool))[:test]
    return tuple(pool[i] for i in sorted(drawn))
