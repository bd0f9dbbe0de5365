"""What a run of the loop leaves behind: for who ships it, and for a run that is compared with it."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a finished loop. The model then has the chosen units trained, with their gates open.

    Attributes:
        active: ids of the chosen units.
        used: what they and the head take of the budget.
        patches: patch forwards of all audits.
        naive_patches: patch forwards that audits of every unit on every patch would have taken.
        seconds: time spent on `train`, `audit` and `allocate`.
        reason: why the loop ended.
    """

    active: tuple[str, ...]
    used: int
    patches: int
    naive_patches: int
    seconds: Mapping[str, float]
    reason: str


@dataclasses.dataclass(frozen=True)
class Baseline:
    """Another policy at the end of its search, to be compared with. `dice`: hard Dice on every audit patch."""

    name: str
    dice: tuple[float, ...]
