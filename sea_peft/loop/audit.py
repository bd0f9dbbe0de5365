"""The audit: exact on/off ablation of units on fixed patches, in Dice. Auditing the same state
twice gives the same numbers.
"""

import contextlib
import dataclasses
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch

from sea_peft.adapters import Adapted
from sea_peft.data.codes import IGNORED
from sea_peft.errors import DataError
from sea_peft.loop.processes import ALONE, Processes
from sea_peft.loop.reuse import BlockReuse, reusable
from sea_peft.loop.rows import Ablation
from sea_peft.loop.utility import is_decided

SOFT, HARD = "soft", "hard"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditResult:
    """The result of one audit.

    Attributes:
        dice_on: mean Dice with every gate as it is, soft or hard as the auditor was told.
        hard_dice: mean hard Dice with every gate as it is.
        rows: ΔDice of each audited unit.
        patches: number of audit patches.
        forwards: number of patch forwards. Includes the reference pass, which counts once although
            every process runs it.
    """

    dice_on: float
    hard_dice: float
    rows: tuple[Ablation, ...]
    patches: int
    forwards: int


def patch_dice(logits: torch.Tensor, label: torch.Tensor, kind: str) -> torch.Tensor:
    """Dice of each patch: the mean over the labels that are present in the patch.

    Args:
        logits: `[B, 1 + L, D, H, W]`.
        label: `[B, D, H, W]`; 0 is background, and `IGNORED` marks voxels that do not count.
        kind: "hard" takes the argmax, "soft" the softmax: 2·Σ p·r / (Σ p + Σ r).

    Returns:
        `[B]`, float64; NaN for a patch without any label.
    """
    counted = (label != IGNORED)[:, None]
    axes = (2, 3, 4)
    r = _one_hot(label.where(counted[:, 0], 0), logits) * counted
    p = (
        logits.softmax(dim=1) if kind == SOFT else _one_hot(logits.argmax(dim=1), logits)
    ) * counted
    # float64 sums: two nearly equal Dice values are subtracted later
    both = (p * r).sum(axes, dtype=torch.float64)[:, 1:]
    reference = r.sum(axes, dtype=torch.float64)[:, 1:]
    dice = 2 * both / (p.sum(axes, dtype=torch.float64)[:, 1:] + reference).clamp_min(1e-8)
    return torch.where(reference > 0, dice, torch.nan).nanmean(dim=1)


def _one_hot(index: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The classes of `index`, [B, D, H, W], in the shape and dtype of the logits."""
    return torch.zeros_like(logits).scatter_(1, index[:, None].long(), 1)


def _distinct_and_labelled(images: torch.Tensor, labels: torch.Tensor) -> list[int]:
    """Indices of the patches that hold a label and do not repeat an earlier one."""
    kept: list[int] = []
    for i in range(len(images)):
        if bool(((labels[i] > 0) & (labels[i] != IGNORED)).any()) and not any(
            torch.equal(images[i], images[j]) for j in kept
        ):
            kept.append(i)
    return kept


def _ablation(unit: str, deltas: Sequence[float]) -> Ablation:
    """The mean ΔDice of one unit over its patches, with its standard error."""
    standard_error = statistics.stdev(deltas) / len(deltas) ** 0.5 if len(deltas) > 1 else None
    return Ablation(
        unit=unit,
        delta=statistics.fmean(deltas),
        standard_error=standard_error,
        patches=len(deltas),
        deltas=tuple(deltas),
    )


@contextlib.contextmanager
def _off(model: Adapted, reuse: BlockReuse, *units: str) -> Iterator[None]:
    """Close these open units together, and tell `reuse` where the passes differ from the
    reference pass.
    """
    at: dict[str, list[str]] = {}
    for unit in units:
        at.setdefault(model.bank.units[unit].site.path, []).append(unit)
    before = {path: model.bank.acts_before(*own) for path, own in at.items()}
    with contextlib.ExitStack() as stack:
        stack.enter_context(model.bank.without(*units))
        for path, own in before.items():
            stack.enter_context(reuse.toggled(path, own))
        yield


class Auditor:
    """Measures Dice on fixed patches of the audit cases.

    Patches without a label are dropped, since they have no Dice. So are repeated patches: a scan no
    larger than a patch gives the same patch every time. An audit leaves the model's gates and mode
    unchanged and draws no random number.

    Args:
        model: the adapted network.
        images: `[P, C, d, h, w]`.
        labels: `[P, d, h, w]`.
        batch: patches per forward.
        dice: "soft" or "hard".
        reuse: whether to reuse blocks that a closed unit cannot affect. The numbers are the same
            without.
        processes: share the units among themselves; the numbers are the same as for one process.
    """

    def __init__(
        self,
        model: Adapted,
        images: torch.Tensor,
        labels: torch.Tensor,
        batch: int,
        dice: str = SOFT,
        reuse: bool = True,
        processes: Processes = ALONE,
    ) -> None:
        usable = _distinct_and_labelled(images, labels)
        self.model = model
        self.dice = dice
        self.processes = processes
        self._remembered = reusable(model.backbone) if reuse else ()
        self.batches = [
            (images[usable[i : i + batch]], labels[usable[i : i + batch]])
            for i in range(0, len(usable), batch)
        ]
        self.patches = len(usable)

    @torch.no_grad()
    def audit(self, cutoffs: Mapping[str, float], error: float = 0.0) -> AuditResult:
        """Switch off each of these open units, one at a time, and measure the loss in Dice.

        After each batch of patches, units that are clearly above or below their cut-off are no
        longer measured.

        Args:
            cutoffs: unit → ΔDice at which the decision about it changes.
            error: probability, per unit and over all looks, of stopping on the wrong side of the
                cut-off (Bonferroni over the looks). With 0, every unit is measured on every patch.

        Raises:
            DataError: no patch holds a label.
        """
        self._require_patches()
        bank = self.model.bank
        missing = cutoffs.keys() - bank.active
        if missing:
            raise ValueError(f"only open units can be ablated; closed: {sorted(missing)[0]}")
        was_training = self.model.training
        self.model.eval()
        looks = max(1, len(self.batches) - 1)
        on: list[torch.Tensor] = []
        hard: list[torch.Tensor] = []
        # one process measures a unit on all of its patches, since they decide together when to stop
        deltas: dict[str, list[float]] = {unit: [] for unit in self.processes.share(list(cutoffs))}
        try:
            for images, labels in self.batches:
                images = images.to(next(self.model.parameters()).device)
                with BlockReuse(self.model.backbone, self._remembered) as reuse:
                    # Dice is counted on the CPU, since not every device has float64
                    reference_pass = self.model(images).cpu()
                    on.append(patch_dice(reference_pass, labels, self.dice))
                    hard.append(patch_dice(reference_pass, labels, HARD))
                    for unit, measured in deltas.items():
                        if is_decided(measured, cutoffs[unit], error / looks):
                            continue
                        with _off(self.model, reuse, unit):
                            off = patch_dice(self.model(images).cpu(), labels, self.dice)
                        measured += (on[-1] - off).tolist()
        finally:
            self.model.train(was_training)
        rows = tuple(
            self.processes.together([_ablation(unit, values) for unit, values in deltas.items()])
        )
        return AuditResult(
            dice_on=float(torch.cat(on).mean()),
            hard_dice=float(torch.cat(hard).mean()),
            rows=rows,
            patches=self.patches,
            forwards=self.patches + sum(r.patches for r in rows),
        )

    @torch.no_grad()
    def dice_of(self, active: Collection[str], head: bool = True) -> tuple[float, ...]:
        """Hard Dice on each audit patch with exactly these units open.

        Args:
            active: ids of the units to open.
            head: whether the head's deltas are on.

        Raises:
            DataError: no patch holds a label.
        """
        self._require_patches()
        bank, model = self.model.bank, self.model
        gate, model.head_gate = model.head_gate, head
        try:
            with bank.only(active):
                values = [
                    patch_dice(
                        model(images.to(next(model.parameters()).device)).cpu(), labels, HARD
                    )
                    for images, labels in self.processes.share(self.batches)
                ]
        finally:
            model.head_gate = gate
        return tuple(torch.cat(self.processes.together(values)).tolist())

    def _require_patches(self) -> None:
        if not self.batches:
            said = (
                "The audit patches hold no labelled voxel, so there is no Dice to measure; try"
                " another seed, a larger patch or more shots."
            )
            raise DataError(said, "seed", "patch", "shots")
