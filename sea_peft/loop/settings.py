"""What a run of the loop is told: how its steps are shared out, and the labelled scans it has."""

import dataclasses
import itertools

from sea_peft.data.augmentation import GREY_VALUES, Augmentation
from sea_peft.data.prepare import Scan
from sea_peft.data.sliding import SlidingWindow


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """`steps`: optimizer steps in all. `warmup_share`, `refit_share`: of the steps; the rest is searched in `cycles` parts, the first twice as long.
    `batch_size`: crops a step. `window`: its patch is the size of a crop. `audit_patches`: fixed crops of the audit cases. `audit_dice`: soft
    or hard. `audit_error`: probability, per unit and audit, of stopping short on the wrong side of a decision. `saliency_batches`: batches behind a
    saliency. `time_limit`: seconds for search and refit together; search ends at half of it, and the refit is shortened to what fits. Policies
    that are compared then have the same time, and not the same steps. `augmentation`: of crops for training; audits see scans as they are.
    """

    steps: int
    cycles: int
    window: SlidingWindow
    batch_size: int = 2
    warmup_share: float = 0.08
    refit_share: float = 0.5
    audit_patches: int = 6
    audit_dice: str = "soft"
    audit_error: float = 0.01
    saliency_batches: int = 4
    augmentation: Augmentation = GREY_VALUES
    time_limit: float | None = None

    def plan(self) -> tuple[int, list[int], int]:
        """Steps of the warm-up, of each cycle, and of the refit; they add up to `steps`."""
        warmup = min(self.steps, max(1, round(self.steps * self.warmup_share)))
        refit = min(self.steps - warmup, max(1, round(self.steps * self.refit_share)))
        search = self.steps - warmup - refit
        # the first cycle counts double: units that have hardly learnt give an audit nothing to tell them apart by
        ends = [round(search * (i + 2) / (self.cycles + 1)) for i in range(self.cycles)]
        return warmup, [b - a for a, b in itertools.pairwise([0, *ends])], refit


@dataclasses.dataclass(frozen=True)
class Shots:
    """The labelled scans of a run. `search`: trained on while searching. `audit`: what audits measure on; empty at one shot. All of
    them are refitted on."""

    search: tuple[Scan, ...]
    audit: tuple[Scan, ...]

    @property
    def all(self) -> tuple[Scan, ...]:
        """Every shot."""
        return (*self.search, *self.audit)
