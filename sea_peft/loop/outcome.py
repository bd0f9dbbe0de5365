"""The results of a loop: `Outcome` for whoever ships it, `Baseline` for a run that is compared
with it.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a finished loop. The model then holds the chosen units, trained and with their
    gates open.

    Attributes:
        active: ids of the chosen units.
        used: cost of these and the head.
        patches: patch forwards of all audits.
        naive_patches: patch forwards that auditing every unit on every patch would have taken.
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
    """Another policy at the end of its search, to be compared with.

    Attributes:
        name: of the policy.
        dice: its hard Dice on each audit patch.
    """

    name: str
    dice: tuple[float, ...]
