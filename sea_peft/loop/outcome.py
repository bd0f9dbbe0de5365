"""What a run of the loop leaves behind: for who ships it, and for a run that is compared with it."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished loop leaves behind in the model: the chosen units, trained, with their gates open. `seconds`: spent on `train`, `audit` and
    `allocate`. `reason`: why it ended."""

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
