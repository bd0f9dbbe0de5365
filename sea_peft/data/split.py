"""The cases that are trained on, that measure utility, and that are never seen before the final score."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sea_peft.data.cases import Case, Dataset
from sea_peft.data.split_file import NamedCases
from sea_peft.data.wording import count
from sea_peft.errors import DataError

Tests = int | Literal["none", "cv"] | None
"""What a run is scored on: at most this many test cases; none; its own shots, each left out in turn; or all other cases (None)."""


@dataclass(frozen=True, eq=False)
class Split:
    """Disjoint cases.

    Attributes:
        support: trained on.
        audit: used to measure utility and to choose; empty at one shot.
        test: never seen before the final score.
    """

    support: tuple[Case, ...]
    audit: tuple[Case, ...]
    test: tuple[Case, ...]

    @property
    def shots(self) -> tuple[Case, ...]:
        """Every labelled scan that the refit trains on."""
        return (*self.support, *self.audit)

    def leave_one_out(self) -> tuple[Split, ...]:
        """For each shot, a split of the others that has it as its only test case.

        The others keep their roles. If the shot left out was the only case of its role, the first
        case of the other role takes its place; a single remaining case is support.
        """
        return tuple(self._without(case) for case in self.shots)

    def _without(self, case: Case) -> Split:
        support = tuple(c for c in self.support if c is not case)
        audit = tuple(c for c in self.audit if c is not case)
        if not audit and len(support) > 1:
            support, audit = support[1:], support[:1]
        if not support:
            support, audit = audit[:1], audit[1:]
        return Split(support, audit, (case,))


def split(dataset: Dataset, shots: int, seed: int, test: Tests = None, seen: Collection[str] = ()) -> Split:
    """Draw the shots at random and take the test cases from the rest.

    Every labelled scan used counts as a shot. From two shots on, one in five (at least one) is held
    out for audits. At one shot none is, and audits use held-out labels of that scan. Test cases are
    those that the layout itself marks as test, or else all cases not drawn; there may be none. The
    draw depends only on the case ids and the seed.

    Args:
        dataset: of usable cases.
        shots: number of shots.
        seed: of the draw.
        test: what to score on.
        seen: ids of cases that an earlier run has trained on. They become support; the other shots,
            and held-out and test cases, come from the rest.

    Raises:
        DataError: there are fewer usable cases than shots, or none of the shots is new.
    """
    require_enough(dataset, shots)
    cases = sorted(dataset.cases, key=lambda case: case.id)
    old = [case for case in cases if case.id in seen]
    if len(old) >= shots:
        raise DataError(
            f"{count(shots, 'shot')} asked for, and {len(old)} of {dataset.name} served as shots before; ask for more than these"
        )
    cases = [case for case in cases if case.id not in seen]
    order = np.random.default_rng(seed).permutation(len(cases))
    drawn = [cases[i] for i in order[: shots - len(old)]]
    rest = tuple(cases[i] for i in sorted(order[shots - len(old) :]))
    held_out = min(_held_out(shots), len(drawn))
    pool = tuple(case for case in dataset.test_cases if case.id not in seen) or rest
    return Split((*old, *drawn[held_out:]), tuple(drawn[:held_out]), _tests(pool, seed, test))


def split_as_named(
    dataset: Dataset, named: NamedCases, seed: int, test: Tests = None, seen: Collection[str] = ()
) -> Split:
    """The split that a file names.

    Without audit cases, one in five of two or more support cases is held out for audits. Without a
    list of test cases, these are the cases that the layout marks as test, or else all that the file
    does not name. `seen`: as for `split`.

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
                    f"{named.file} names case {name}, which is no usable labelled case of {dataset.name}; `seapeft data check` lists these"
                )
        return [first[name] if name in first else second[name] for name in names]

    support = found(named.support, training, testing)
    audit = found(named.audit, training, testing)
    if not audit:
        new = [i for i, case in enumerate(support) if case.id not in seen]
        if seen and not new:
            raise DataError(
                f"{named.file} names no case that is new: all served as shots before; name one that did not"
            )
        drawn = np.random.default_rng(seed).permutation(len(new))[: _held_out(len(support))]
        held_out = [new[i] for i in drawn]
        audit = [support[i] for i in held_out]
        support = [case for i, case in enumerate(support) if i not in held_out]
    taken = {id(case) for case in (*support, *audit)}
    if named.test is not None:
        pool = found(named.test, testing, training)
    else:
        pool = [case for case in dataset.test_cases or dataset.cases if id(case) not in taken and case.id not in seen]
    for role, cases in (("audit", audit), ("test", pool)):
        if again := next((case.id for case in cases if case.id in seen), None):
            raise DataError(
                f"{named.file} names case {again} under {role}, and it served as a shot before; take it out there"
            )
    return Split(tuple(support), tuple(audit), _tests(tuple(pool), seed, test))


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


def _held_out(shots: int) -> int:
    """Number of shots that measure utility."""
    return max(1, shots // 5) if shots >= 2 else 0


def _tests(pool: tuple[Case, ...], seed: int, test: Tests) -> tuple[Case, ...]:
    if test is None:
        return pool
    if isinstance(test, str):
        return ()
    drawn = np.random.default_rng([seed, 1]).permutation(len(pool))[:test]
    return tuple(pool[i] for i in sorted(drawn))
