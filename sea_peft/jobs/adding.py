"""`adapt --add-label`: everything that the network knows stays, held by its own opinion, and
labels that it does not know are added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from sea_peft.artefacts.privacy import paths_in
from sea_peft.backbones.weights import Card
from sea_peft.data.cases import Dataset
from sea_peft.errors import UsageError
from sea_peft.jobs.model import matching_rows
from sea_peft.jobs.options import AdaptOptions

_MOST_LABELS = 254


@dataclasses.dataclass(frozen=True)
class Widened:
    """The labels of a run that adds some to what its network knows.

    Attributes:
        labels: those of the network, in its order and without codes, then the added ones with
            theirs: nothing else is learnt from what is drawn.
        scored: the same, with the codes of those that the data set has under the network's names,
            to hold predictions against.
        rows: for every label the network's output row, None where it is new.
    """

    labels: dict[str, tuple[int, ...]]
    scored: dict[str, tuple[int, ...]]
    rows: tuple[int | None, ...]


def require_alone(options: AdaptOptions) -> None:
    """Raise UsageError for what cannot be asked for together with `--add-label`, or without it."""
    if not options.add_labels:
        if options.max_forget is not None:
            raise UsageError(
                "--max-forget says how much of what the network knows may be lost, and only"
                " --add-label keeps that; leave it out."
            )
        return
    if options.labels:
        raise UsageError(
            "--add-label keeps all labels that the network knows, so there are none to choose with"
            " --label; leave --label out."
        )
    if options.from_run is not None:
        raise UsageError(
            "--add-label begins from a network, not from a run: `seapeft merge RUN --out"
            " FILE.safetensors` folds a run into one, to be named with --weights; leave --from out."
        )
    if options.max_forget is not None and not 0 <= options.max_forget <= 100:
        raise UsageError(
            f"--max-forget {options.max_forget:g} is no number of Dice points; choose one from 0 to"
            " 100."
        )


def widened(card: Card, opened: Dataset, added: Dataset) -> Widened:
    """The network's labels with the added ones behind them.

    Args:
        card: of the network.
        opened: the data set as it was opened.
        added: the part of it that `--add-label` has chosen.

    Raises:
        UsageError: the network knows one of the added labels already, or there are too many labels,
            or one cannot be carried by an adapter.
    """
    known = card.labels[1:]
    if not known:
        raise UsageError(
            f"{card.name} knows no label that --add-label could keep; choose those to learn with"
            " --label."
        )
    for row in matching_rows(card.labels, list(added.labels)):
        if row is not None:
            raise UsageError(
                f"{card.name} knows {card.labels[row]} already, so it cannot be added: adapt it"
                " with --label, or give the new structure another name, --add-label NAME=CODE."
            )
    if twice := sorted(label for label in set(known) if known.count(label) > 1):
        raise UsageError(
            f"{card.name} calls two labels {twice[0]}; import the network again with other"
            " --labels."
        )
    if len(known) + len(added.labels) > _MOST_LABELS:
        raise UsageError(
            f"{card.name} knows {len(known)} labels, and with the added ones there would be more"
            f" than {_MOST_LABELS}; add fewer."
        )
    for text in paths_in(known):
        raise UsageError(
            f"{card.name} calls a label {text!r}, which reads like a path, and an adapter carries"
            " no paths; import the network again with other --labels."
        )
    labels = {**dict.fromkeys(known, ()), **added.labels}
    return Widened(
        rows=(*range(1, len(card.labels)), *(None for _ in added.labels)),
        labels=labels,
        scored=drawn_in(opened, labels),
    )


def drawn_in(opened: Dataset, labels: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """The labels with their codes; those that have none, with the codes of the data set's label of
    this name, where it has one that shares no code with others.
    """
    own = {code for codes in labels.values() for code in codes}
    theirs = [
        (name, tuple(codes)) for name, codes in opened.labels.items() if not own.intersection(codes)
    ]
    rows = matching_rows(["", *(name for name, _ in theirs)], list(labels))
    return {
        label: tuple(codes) or (() if row is None else theirs[row - 1][1])
        for (label, codes), row in zip(labels.items(), rows, strict=True)
    }
