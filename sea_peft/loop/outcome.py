"""What a run of the loop leaves behind: for who ships it, and for a run that is compared with it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Seconds:
    """Where the time went."""

    train: float = 0.0
    audit: float = 0.0
    allocate: float = 0.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a finished loop leaves behind in the model: the chosen units, trained, with their gates open. `reason`: why it ended."""

    active: tuple[str, ...]
    used: int
    patches: int
    naive_patches: int
    seconds: Seconds
    reason: str


@dataclasses.dataclass(frozen=True)
class Baseline:
    """Another policy at the end of its search, to be compared with. `dice`: hard Dice on every audit patch."""

    name: str
    dice: tuple[float, ...]
