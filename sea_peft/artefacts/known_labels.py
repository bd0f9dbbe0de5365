"""What adding labels cost those that the network knew: their Dice before and after."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sea_peft.loop.events import Scored

TITLE = "Labels that the network knew before: Dice"


@dataclasses.dataclass(frozen=True)
class KnownLabel:
    """Dice of one label of the unadapted network (`before`) and of the adapted one (`after`).

    `drawn`: whether both are against masks that somebody drew. If not, `after` is against the
    unadapted network's own masks and `before` is 1; the loss is usually less than their difference.
    """

    name: str
    before: float
    after: float
    drawn: bool

    @property
    def lost(self) -> float:
        """Dice points."""
        return 100 * (self.before - self.after)


def known_labels(arms: Mapping[str, Scored], held_out: Mapping[str, Scored]) -> list[KnownLabel]:
    """Of the labels that a run has kept, and that are drawn or found in a scored scan; empty where
    it added none.

    Args:
        arms: arm → its score on test cases or by leave-one-out; empty where nothing was scored.
        held_out: the same on scans held out while searching.
    """
    kept = next(
        (of["adapted"].kept for of in (arms, held_out) if "adapted" in of and of["adapted"].kept),
        {},
    )
    of = arms or held_out
    before, after = (of[arm].per_label if arm in of else {} for arm in ("unadapted", "adapted"))
    return [
        (
            KnownLabel(label, before[label], after[label], drawn=True)
            if label in before and label in after
            else KnownLabel(label, 1.0, agreement, drawn=False)
        )
        for label, agreement in ({**before, **kept} if kept else {}).items()
    ]


def forgotten(known: Iterable[KnownLabel], most: float) -> str | None:
    """What to say where a label has lost more than `most` Dice points; None where none has."""
    worst = max(known, key=lambda label: label.lost, default=None)
    if worst is None or worst.lost <= most:
        return None
    if worst.drawn:
        said = (
            f"{worst.name} has lost {worst.lost:.1f} Dice points ({worst.before:.3f} before,"
            f" {worst.after:.3f} now)"
        )
    else:
        said = (
            f"{worst.name} is drawn in no scored scan, and its masks agree with the unadapted"
            f" network's by {worst.after:.3f}, which is {worst.lost:.1f} points short of 1"
        )
    return (
        f"{said}, more than --max-forget {most:g}; the adapter is written all the same, and with"
        " `predict --use both` these labels stay as they were."
    )
