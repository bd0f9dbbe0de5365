"""The audit: exact on/off ablation of units on fixed patches, in Dice. The same state audited twice gives the same numbers."""

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
    """What an audit found.

    Attributes:
        dice_on: mean Dice with every gate as it is, of the kind that was audited.
        hard_dice: the same as hard Dice.
        rows: what was measured of each unit.
        patches: how many patches there are.
        forwards: how many patch forwards were done, those of the reference pass included; that pass, which every process does, once.
    """

    dice_on: float
    hard_dice: float
    rows: tuple[Ablation, ...]
    patches: int
    forwards: int


def patch_dice(logits: torch.Tensor, label: torch.Tensor, kind: str) -> torch.Tensor:
    """Dice of every patch, [B], float64: the mean over the labels that are present in the patch.

    `logits`: [B, 1 + L, D, H, W]; `label`: [B, D, H, W], 0 the background, `IGNORED` where a voxel does not count. `kind`: "hard" takes the
    argmax, "soft" the softmax: 2·Σ p·r / (Σ p + Σ r). A patch without any label gives NaN.
    """
    counted = (label != IGNORED)[:, None]
    axes = (2, 3, 4)
    r = _one_hot(label.where(counted[:, 0], 0), logits) * counted
    p = (logits.softmax(dim=1) if kind == SOFT else _one_hot(logits.argmax(dim=1), logits)) * counted
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
    """These open units closed together, and the passes in here told where they differ from the reference pass."""
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
    """Measures on fixed patches of the audit cases, in mini-batches.

    `images` [P, C, d, h, w] and `labels` [P, d, h, w]; patches without any label are left out, since they have no Dice, and so
    are repetitions (a scan no larger than a patch gives one patch, however many are asked for). The model's gates and mode are what
    they were afterwards, and no random number is drawn. `processes`: units are shared out among them, which changes no number.
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
        self._remembered = (
            reusable(model.backbone) if reuse else ()
        )  # without: all is computed anew, for the same numbers
        self.batches = [
            (images[usable[i : i + batch]], labels[usable[i : i + batch]]) for i in range(0, len(usable), batch)
        ]
        self.patches = len(usable)

    @torch.no_grad()
    def audit(self, cutoffs: Mapping[str, float], error: float = 0.0) -> AuditResult:
        """Switch each of these open units off, one at a time, and measure what its absence costs.

        `cutoffs`: unit → ΔDice at which the decision about it turns. After every mini-batch, units that are clear of their cut-off are
        left alone and the rest goes on; `error` is the probability, per unit and over all looks, of being on the wrong side of it
        (Bonferroni over the looks; 0: every unit on every patch). Raises DataError without labelled patches.
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
        # a unit is one process's from its first patch to its last, since when to stop depends on them
        deltas: dict[str, list[float]] = {unit: [] for unit in self.processes.share(list(cutoffs))}
        try:
            for images, labels in self.batches:
                images = images.to(next(self.model.parameters()).device)
                with BlockReuse(self.model.backbone, self._remembered) as reuse:
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
        rows = tuple(self.processes.together([_ablation(unit, values) for unit, values in deltas.items()]))
        return AuditResult(
            dice_on=float(torch.cat(on).mean()),
            hard_dice=float(torch.cat(hard).mean()),
            rows=rows,
            patches=self.patches,
            forwards=self.patches + sum(r.patches for r in rows),
        )

    @torch.no_grad()
    def dice_of(self, active: Collection[str], head: bool = True) -> tuple[float, ...]:
        """Hard Dice on every audit patch with exactly these units (and the head's deltas or not). Raises DataError without labelled
        patches."""
        self._require_patches()
        bank, model = self.model.bank, self.model
        gate, model.head_gate = model.head_gate, head
        try:
            with bank.only(active):
                values = [
                    patch_dice(model(images.to(next(model.parameters()).device)).cpu(), labels, HARD)
                    for images, labels in self.processes.share(self.batches)
                ]
        finally:
            model.head_gate = gate
        return tuple(torch.cat(self.processes.together(values)).tolist())

    def _require_patches(self) -> None:
        if not self.batches:
            said = "The audit patches hold no labelled voxel, so there is no Dice to measure; try another seed, a larger patch or more shots."
            raise DataError(said, "seed", "patch", "shots")
