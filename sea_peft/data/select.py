"""Choosing labels and channels by name, from the command line's words."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from itertools import combinations

from sea_peft.data.cases import Case, Dataset
from sea_peft.data.codes import MOST_CODE
from sea_peft.data.layouts.reading import did_you_mean
from sea_peft.errors import DataError

# Names that mean one MR sequence: BraTS until 2021, BraTS 2023 and BraTS-Africa, nnU-Net data sets
CHANNEL_SYNONYMS = (
    frozenset({"flair", "t2f", "t2-flair", "t2flair"}),
    frozenset({"t1", "t1n", "t1w"}),
    frozenset({"t1c", "t1ce", "t1gd", "t1+c"}),
    frozenset({"t2", "t2w"}),
)

_CASES_NAMED = 5  # in a sentence


def select(dataset: Dataset, labels: Sequence[str] = (), channels: Sequence[str] = ()) -> Dataset:
    """The data set with only the chosen labels and channels.

    If each label has a mask or a segment of its own, cases in which nothing is drawn of these
    labels become unlabelled.

    Args:
        dataset: as opened.
        labels: each `NAME` (declared), `NAME=1,2,4` (codes grouped under a new name) or
            `NAME=liver,spleen` (declared names grouped). Empty: all declared labels.
        channels: channel names in the wanted order, in either case. Empty: all declared.

    Raises:
        DataError: a name or code is unknown (the message lists the known names), or labels overlap:
            one voxel carries one label.
    """
    chosen = dict(_label(dataset, text) for text in labels) if labels else dict(dataset.labels)
    if len(chosen) < len(labels):
        raise DataError(
            f"labels {', '.join(labels)} use one name twice; give each label its own name"
        )
    if not chosen:
        raise DataError(f"{dataset.name}: every label map is empty; label the cases first")
    if len(chosen) > 254:
        raise DataError(f"{len(chosen)} labels are too many (at most 254); choose some", "labels")
    for (a, a_codes), (b, b_codes) in combinations(chosen.items(), 2):
        shared = sorted(set(a_codes) & set(b_codes))
        if shared:
            overlap = f"labels {a} and {b} overlap (both hold code {', '.join(map(str, shared))})"
            raise DataError(
                f"{overlap}, and a voxel can carry one label only: choose {a} or {b}", "labels"
            )
    picked = pick_channels(dataset, channels) or dataset.channels
    codes = frozenset(code for group in chosen.values() for code in group)
    cases = [(case, case.with_codes(codes)) for case in dataset.cases]
    tests = [(case, case.with_codes(codes)) for case in dataset.test_cases]
    without = tuple(case for case, kept in (*cases, *tests) if kept is None)
    return dataclasses.replace(
        dataset,
        labels=chosen,
        channels=picked,
        cases=tuple(kept for _, kept in cases if kept is not None),
        test_cases=tuple(kept for _, kept in tests if kept is not None),
        unlabelled=(*dataset.unlabelled, *without),
        warnings=(*dataset.warnings, *_left_out(without, chosen)),
    )


def pick_channels(dataset: Dataset, names: Sequence[str]) -> tuple[str, ...]:
    """The data set's names for these channels, in their order. Raises `DataError` for one that is
    missing or named twice.
    """
    picked = tuple(_channel(dataset, name) for name in names)
    if len(set(picked)) < len(picked):
        raise DataError(
            f"channel {next(c for c in picked if picked.count(c) > 1)} is asked for twice; name it"
            " once"
        )
    return picked


def _left_out(cases: Sequence[Case], labels: Iterable[str]) -> list[str]:
    if not cases:
        return []
    named = ", ".join(case.id for case in cases[:_CASES_NAMED])
    more = f" and {len(cases) - _CASES_NAMED} more" if len(cases) > _CASES_NAMED else ""
    return [
        f"left out, because they have no mask of the chosen labels ({', '.join(labels)}):"
        f" {named}{more}"
    ]


def _label(dataset: Dataset, text: str) -> tuple[str, tuple[int, ...]]:
    if text.strip().lower() in {known.lower() for known in dataset.labels}:
        return _declared(dataset, text.strip())  # a name may hold = and commas
    name, has_codes, group = (
        part.strip() for part in (text.rpartition("=") if "=" in text else (text, "", ""))
    )
    if not name or (has_codes and not group):
        raise DataError(f"label {text!r} must be NAME or NAME=1,2,4", "labels")
    if not has_codes:
        return _declared(dataset, name)
    codes: list[int] = []
    for part in group.split(","):
        part = part.strip()
        codes += [int(part)] if re.fullmatch(r"\d{1,6}", part) else _declared(dataset, part)[1]
    if 0 in codes:
        raise DataError(
            f"label {text!r} names code 0, which is the background; leave it out", "labels"
        )
    if max(codes) > MOST_CODE:
        raise DataError(f"label {text!r}: code {max(codes)} is too large; codes end at {MOST_CODE}")
    undeclared = [code for code in codes if dataset.codes is not None and code not in dataset.codes]
    if undeclared:
        raise DataError(
            f"label {text!r}: code {undeclared[0]} is not declared; there are {_names(dataset)}"
        )
    return name, tuple(dict.fromkeys(codes))


def _declared(dataset: Dataset, name: str) -> tuple[str, tuple[int, ...]]:
    by_lower = {known.lower(): known for known in dataset.labels}
    if name.lower() not in by_lower:
        hint = did_you_mean(name, dataset.labels)
        raise DataError(
            f"{dataset.name} has no label {name!r}{hint or ';'} it has {_names(dataset)}"
        )
    known = by_lower[name.lower()]
    return known, dataset.labels[known]


def _names(dataset: Dataset) -> str:
    shown = [f"{name}={','.join(map(str, codes))}" for name, codes in dataset.labels.items()]
    return ", ".join(shown[:40]) + (f" and {len(shown) - 40} more" if len(shown) > 40 else "")


def _channel(dataset: Dataset, name: str) -> str:
    wanted = name.strip().lower()
    same = next((group for group in CHANNEL_SYNONYMS if wanted in group), frozenset())
    for names in ({wanted}, same):
        for known in dataset.channels:
            if known.lower() in names:
                return known
    hint = did_you_mean(name, dataset.channels)
    raise DataError(
        f"{dataset.name} has no channel {name!r}{hint or ';'} it has {', '.join(dataset.channels)}"
    )
