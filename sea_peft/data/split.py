"""Which cases are trained on, which measure utility, and which are never seen before the final score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sea_peft.data.cases import Case, Dataset
from sea_peft.data.split_file import NamedCases
from sea_peft.data.wording import count
from sea_peft.errors import DataError

Tests = int | Literal["none", "cv"] | None
"""What a run is to be scored on: at most so many test cases; none; its own shots, each left out in turn; or all that is left (None)."""


@dataclass(frozen=True, eq=False)
class Split:
    """Disjoint cases.

    Attributes:
        support: Trained on.
        audit: Used to measure utility and to choose; empty at one shot.
        test: Never seen before the final score.
    """

    support: tuple[Case, ...]
    audit: tuple[Case, ...]
    test: tuple[Case, ...]

    @property
    def shots(self) -> tuple[Case, ...]:
        """Every labelled scan that is trained on in the end."""
        return (*self.support, *self.audit)

    def leave_one_out(self) -> tuple[Split, ...]:
        """For each of the shots, a split of the others that has it as its only test case.

        The others keep their roles. Where the one left out was all there was of a role, the first of the other role takes its place; a
        single one that remains is support.
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


def split(dataset: Dataset, shots: int, seed: int, test: Tests = None) -> Split:
    """Draw the shots at random and take the test cases from the rest.

    Every labelled scan used counts as a shot. From two shots on, one in five (at least one) is held out for
    audits; at one shot none is, and audits must fall back on held-out labels of that scan. Test cases are
    those that the layout itself marks as test, or else all that were not drawn; there may be none. The draw
    depends only on the case ids and the seed.

    Raises:
        DataError: Fewer usable cases than shots.
    """
    require_enough(dataset, shots)
    cases = sorted(dataset.cases, key=lambda case: case.id)
    order = np.random.default_rng(seed).permutation(len(cases))
    drawn = [cases[i] for i in order[:shots]]
    rest = tuple(cases[i] for i in sorted(order[shots:]))
    held_out = _held_out(shots)
    return Split(tuple(drawn[held_out:]), tuple(drawn[:held_out]), _tests(dataset.test_cases or rest, seed, test))


def split_as_named(dataset: Dataset, named: NamedCases, seed: int, test: Tests = None) -> Split:
    """The split that a file names.

    Without audit cases, one in five of two or more support cases is held out for audits. Without a list of
    test cases they are those that the layout marks as test, or else all that the file does not name.

    Raises:
        DataError: A case is not in the data set, or not usable.
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
        held_out = _held_out(len(support))
        order = np.random.default_rng(seed).permutation(len(support))
        audit = [support[i] for i in order[:held_out]]
        support = [support[i] for i in sorted(order[held_out:])]
    taken = {id(case) for case in (*support, *audit)}
    if named.test is not None:
        pool = found(named.test, testing, training)
    else:
        pool = [case for case in dataset.test_cases or dataset.cases if id(case) not in taken]
    return Split(tuple(support), tuple(audit), _tests(tuple(pool), seed, test))


def require_enough(dataset: Dataset, shots: int) -> None:
    """Refuse a number of shots that the labelled cases cannot give. Raises `DataError`."""
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
    """How many of the shots measure utility."""
    return max(1, shots // 5) if shots >= 2 else 0


def _tests(pool: tuple[Case, ...], seed: int, test: Tests) -> tuple[Case, ...]:
    if test is None:
        return pool
    if isinstance(test, str):
        return ()
    drawn = np.random.default_rng([seed, 1]).permutation(len(pool))[:test]
    return tuple(pool[i] for i in sorted(drawn))
