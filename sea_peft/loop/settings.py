"""The inputs of a loop: how its steps are divided, and its labelled scans."""

import dataclasses
import itertools
from collections.abc import Sequence

from sea_peft.data.augmentation import GREY_VALUES, Augmentation
from sea_peft.data.hold_out import hold_out_labels
from sea_peft.data.prepare import Scan
from sea_peft.data.sliding import SlidingWindow


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How a run divides its steps, and how it audits.

    Attributes:
        steps: optimizer steps in all.
        cycles: number of search cycles; the first is twice as long as the others.
        window: the sliding window; its patch is the size of a crop.
        batch_size: crops per step.
        warmup_share: share of the steps for the warm-up.
        refit_share: share of the steps for the refit. The search gets the rest.
        audit_patches: number of fixed crops of the audit cases.
        audit_dice: "soft" or "hard".
        audit_error: probability, per unit and audit, of stopping early on the wrong side of a
            decision.
        saliency_batches: batches behind each saliency.
        augmentation: of training crops; audits see scans unchanged.
        time_limit: seconds for search and refit together. The search ends at half of it, and the
            refit is shortened to fit. Policies compared under a limit have the same time, not the
            same steps.
        holds_known: whether only labels new to the backbone are drawn. The others are then held to
            its own opinion (`held_sums`).
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
    holds_known: bool = False

    def plan(self) -> tuple[int, list[int], int]:
        """Steps of the warm-up, of each cycle, and of the refit; they add up to `steps`."""
        warmup = min(self.steps, max(1, round(self.steps * self.warmup_share)))
        refit = min(self.steps - warmup, max(1, round(self.steps * self.refit_share)))
        search = self.steps - warmup - refit
        # the first cycle counts double: an audit cannot tell units apart that have hardly learnt
        ends = [round(search * (i + 2) / (self.cycles + 1)) for i in range(self.cycles)]
        return warmup, [b - a for a, b in itertools.pairwise([0, *ends])], refit


@dataclasses.dataclass(frozen=True)
class Shots:
    """The labelled scans of a run.

    Attributes:
        search: trained on while searching.
        audit: audited on.
        all: trained on by the refit.
        independent: whether audits count other scans than those that the search trains on. With one
            shot they count held-out labels of the same scan.
    """

    search: tuple[Scan, ...]
    audit: tuple[Scan, ...]
    all: tuple[Scan, ...]
    independent: bool

    @classmethod
    def of(cls, search: Sequence[Scan], audit: Sequence[Scan]) -> "Shots":
        """The shots of a split. With none to audit on, a part of the first one's labels is held out
        (`hold_out_labels`).

        Raises:
            DataError: no part of the labels can be held out.
        """
        if audit:
            return cls(tuple(search), tuple(audit), (*search, *audit), independent=True)
        kept, held = hold_out_labels(search[0])
        return cls((kept, *search[1:]), (held,), tuple(search), independent=False)
