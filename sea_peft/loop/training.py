"""Trains the open units and the head, never a backbone tensor. The order of data depends on
seed and step alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import torch
from monai.losses.utils import compute_tp_fp_fn
from monai.networks import one_hot

from sea_peft.adapters import Adapted
from sea_peft.data.codes import IGNORED
from sea_peft.errors import DivergedError
from sea_peft.loop.processes import ALONE, Processes

# The head starts from the pretrained classifier; FSEFT's linear probe learns with 1e-2.
HEAD_LEARNING_RATE = 1e-2
# Steps of the head alone on one batch: the backbone is frozen, so it runs once for all of them.
HEAD_STEPS_A_BATCH = 2
# Saliency batches are drawn far beyond any training step, so they never repeat a training batch.
_SALIENCY_STREAM = 1_000_000
# Units whose saliency is measured in one pass: each keeps activations for the backward pass.
_RANKED_AT_ONCE = 128
# Steps on CUDA between two readings of their losses.
_STEPS_QUEUED = 10
_SMOOTH = 1e-5  # of the soft Dice loss, as in MONAI's DiceLoss


class Batches(Protocol):
    """A source of training crops: a pure function of the step
    (`sea_peft.data.crops.CropSampler`).
    """

    def batch(
        self, step: int, batch_size: int, which: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images `[B, C, d, h, w]` float32 and labels `[B, d, h, w]` uint8: the whole batch, or
        only its crops numbered in `which`, from 0.
        """
        ...


def warm_up(step: int, over: int) -> float:
    """Linear warm-up from 1/over to 1, then constant. For the search, whose length the allocation
    must not depend on.
    """
    return min(1.0, (step + 1) / max(over, 1))


def warm_up_cosine(step: int, total: int, over: int, start: int = 0) -> float:
    """Linear warm-up over `over` steps, then half a cosine to 0 at `total`. For the refit.

    `start`: number of steps done before this call's first.
    """
    step += start
    if step < over:
        return (step + 1) / max(over, 1)
    return 0.5 * (1 + math.cos(math.pi * (step - over) / max(total - over, 1)))


def loss_sums(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sums over voxels that the loss is computed from. They add up over the crops of a batch,
    wherever each is computed.

    Args:
        logits: `[B, 1 + L, d, h, w]`.
        labels: `[B, d, h, w]` uint8. `IGNORED` voxels count in no sum.

    Returns:
        `[3·L + 2]`: soft true positives, false positives and false negatives of each label but the
            background; then the cross-entropy and its number of voxels.
    """
    inside = (labels != IGNORED)[:, None]
    reference = one_hot(labels[:, None].where(inside, 0), logits.shape[1]) * inside
    predicted = logits.softmax(dim=1) * inside
    overlap = compute_tp_fp_fn(
        predicted[:, 1:], reference[:, 1:], [0, 2, 3, 4], ord=1, soft_label=False
    )
    entropy = torch.nn.functional.cross_entropy(
        logits, labels.long(), ignore_index=IGNORED, reduction="sum"
    )
    return torch.cat([*overlap, torch.stack([entropy, inside.sum().to(entropy)])])


def held_sums(
    logits: torch.Tensor,
    labels: torch.Tensor,
    opinion: torch.Tensor,
    known: torch.Tensor,
    added: torch.Tensor,
) -> torch.Tensor:
    """`loss_sums` where only the labels `added` to a network are drawn, and the labels that it knew
    are held to what it says unadapted.

    The target is an added label where it is drawn, and the frozen network's own probabilities
    everywhere else, so what it knows costs nothing to keep (Li and Hoiem, Learning without
    Forgetting, arXiv 1606.09282; Cermelli et al., arXiv 2002.00718, for a background that stands
    for known classes too). The mean cross-entropy hardly sees small structures, so known labels
    have overlaps too, for a soft Dice that is best where both probabilities are equal. A crop in
    which a known label is nowhere the likeliest adds nothing to its overlaps.

    Args:
        logits: `[B, 1 + L, d, h, w]`.
        labels: `[B, d, h, w]` uint8.
        opinion: probabilities `[B, 1 + L, d, h, w]`, 0 for the added labels (`Adapted.opinion`).
        known: `[K]`, indices of the known labels, without the background.
        added: `[N]`, indices of the added labels. Both on the device of the logits.

    Returns:
        `[3·L + 2]` as of `loss_sums`, the known labels first.
    """
    inside = (labels != IGNORED)[:, None]
    drawn = one_hot(labels[:, None].where(inside, 0), logits.shape[1]).index_select(1, added)
    target = opinion * (1 - drawn.sum(dim=1, keepdim=True))
    target.index_copy_(1, added, drawn)
    likeliest = one_hot(target.argmax(dim=1, keepdim=True), target.shape[1])
    counted = likeliest.amax(dim=(2, 3, 4), keepdim=True)
    counted = counted.index_fill(1, added, 1) * inside
    order = torch.cat([known, added])
    overlap = compute_tp_fp_fn(
        (logits.softmax(dim=1) * counted).index_select(1, order),
        (target * counted).index_select(1, order),
        [0, 2, 3, 4],
        ord=1,
        soft_label=True,
    )
    entropy = -(target * logits.log_softmax(dim=1) * inside).sum()
    return torch.cat([*overlap, torch.stack([entropy, inside.sum().to(entropy)])])


def loss_from(sums: torch.Tensor, held: int = 0) -> torch.Tensor:
    """Soft Dice loss over the batch, averaged over labels, plus mean cross-entropy.

    Args:
        sums: of the whole batch (`loss_sums`).
        held: how many labels, the first ones, are held (`held_sums`). Their mean is a term of its
            own, so that they do not thin out what is asked of the others.
    """
    tp, fp, fn = sums[:-2].view(3, -1)
    dice = 1 - (2 * tp + _SMOOTH) / (2 * (tp + fp * 0.5 + fn * 0.5) + _SMOOTH)
    kept = dice[:held].mean() if held else 0.0
    return dice[held:].mean() + kept + sums[-2] / sums[-1]


@dataclasses.dataclass
class Trainer:
    """Trains active units and the head on Dice + cross-entropy, by AdamW without weight decay.

    The optimizer state of a tensor lives as long as the trainer, so a unit that is opened again
    continues from where it was. Each family has its own learning rate, which the schedule scales.
    Parameters, gradients and loss are float32.

    Attributes:
        model: the adapted network.
        batch_size: crops per step.
        train_head: whether the head is trained too.
        mixed_precision: whether the forward runs in bfloat16 where that is safe (torch.autocast).
            None: on CUDA devices that compute in it, from compute capability 8.0 on.
        head_alone: whether no unit is ever opened. Every batch then serves `HEAD_STEPS_A_BATCH`
            steps.
        holds_known: whether only labels new to the backbone are drawn, and the others held to its
            own opinion (`held_sums`).
        processes: share the crops of each step. Loss and gradients are those of the whole batch, up
            to rounding.
    """

    model: Adapted
    batch_size: int
    train_head: bool = True
    mixed_precision: bool | None = None
    head_alone: bool = False
    holds_known: bool = False
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        if self.mixed_precision is None:
            # older cards only emulate it, slowly, and cuDNN has no convolutions in it for them
            self.mixed_precision = self.device.type == "cuda" and torch.cuda.is_bf16_supported(
                including_emulation=False
            )
        head = self.model.head
        self._held = len(head.rows) - head.new if self.holds_known else 0
        self._state: dict[str, dict[str, Any]] = {}

    def train(
        self,
        units: Collection[str],
        batches: Batches,
        first: int,
        count: int,
        schedule: Callable[[int], float],
        on_step: Callable[[int, float], None],
    ) -> float:
        """Do `count` optimizer steps from global step `first` on, with only `units` open. Returns
        the mean loss.

        Args:
            units: ids of the units to open and train.
            batches: the source of crops.
            first: global number of the first step.
            count: number of steps.
            schedule: step within this call → factor on the learning rates.
            on_step: called with the global step and its loss.

        Raises:
            DivergedError: the loss is not finite.
        """
        bank = self.model.bank
        bank.activate(units)
        named = {
            f"{u}/{n}": (p, bank[u].learning_rate)
            for u in sorted(units)
            for n, p in bank[u].named_parameters()
        }
        if self.train_head:
            named |= {
                f"head/{n}": (p, HEAD_LEARNING_RATE) for n, p in self.model.head.named_parameters()
            }
        if not named or count <= 0:
            return math.nan
        optimizer = torch.optim.AdamW(
            [{"params": [p], "lr": rate, "base": rate} for p, rate in named.values()],
            weight_decay=0.0,
        )
        for key, (parameter, _) in named.items():
            if key in self._state:
                optimizer.state[parameter] = self._state[key]
        losses: list[float] = []
        unread: list[torch.Tensor] = []
        sums_at = self._own_sums(batches)
        self.model.train()
        for i in range(count):
            factor = schedule(i)
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * factor
            loss = loss_from(self.processes.pooled(sums_at(first + i)), self._held)
            optimizer.zero_grad(set_to_none=True)
            if loss.requires_grad:  # a process without a crop has nothing to add
                loss.backward()
            self.processes.add_gradients([p for p, _ in named.values()])
            optimizer.step()
            unread.append(loss.detach())
            # reading a loss waits for the device, so on CUDA several steps are queued before it
            if self.device.type == "cpu" or len(unread) == _STEPS_QUEUED or i == count - 1:
                for value in torch.stack(unread).tolist():
                    step = first + len(losses)
                    if not math.isfinite(value):
                        raise DivergedError(
                            f"Training diverged: the loss is {value} at step {step}; check the"
                            " scans' grey values, or try another seed.",
                            "seed",
                        )
                    losses.append(value)
                    on_step(step, value)
                unread.clear()
        self.model.eval()
        optimizer.zero_grad(set_to_none=True)
        self._state |= {key: optimizer.state[p] for key, (p, _) in named.items()}
        return sum(losses) / count

    def saliency(
        self, units: Collection[str], batches: Batches, round: int, count: int
    ) -> dict[str, float]:
        """First-order estimate of what each unit could bring.

        This is learning rate × Σ|mean gradient|: the loss decrease of one sign-like step, such as
        Adam's first. The units are opened as they are now; a newly built unit is the identity, so
        the forward is the current model's. Changes nothing.

        Args:
            units: ids of the units.
            batches: the source of crops.
            round: picks batches of its own.
            count: number of batches.
        """
        passes = -(-len(units) // _RANKED_AT_ONCE)
        listed = list(units)
        # every n-th unit, so that no single pass holds all of the sites with the largest volumes
        found = {
            u: p
            for i in range(passes)
            for u, p in self._saliency(listed[i::passes], batches, round, count).items()
        }
        return {u: found[u] for u in listed}

    def _saliency(
        self, units: Collection[str], batches: Batches, round: int, count: int
    ) -> dict[str, float]:
        bank = self.model.bank
        with bank.only(bank.active | set(units)):
            parameters = {u: list(bank[u].parameters()) for u in units}
            flat = [p for ps in parameters.values() for p in ps]
            sums = [torch.zeros_like(p) for p in flat]
            for i in self.processes.share(range(count)):
                crops = batches.batch(_SALIENCY_STREAM + round * count + i, self.batch_size)
                gradients = torch.autograd.grad(
                    loss_from(self._sums(*crops), self._held), flat, allow_unused=True
                )
                sums = [a if g is None else a + g for a, g in zip(sums, gradients, strict=True)]
            self.processes.add_up(sums)
        of_unit = iter(sums)
        return {
            u: bank[u].learning_rate * sum(float(next(of_unit).abs().sum()) for _ in ps) / count
            for u, ps in parameters.items()
        }

    def _own_sums(self, batches: Batches) -> Callable[[int], torch.Tensor]:
        """Step → `loss_sums` of this process's crops."""
        mine = self.processes.share(range(self.batch_size))
        if not mine:
            return lambda step: torch.zeros(3 * len(self.model.head.rows) + 2, device=self.device)
        if self.head_alone:
            return self._head_sums(batches, mine)
        return lambda step: self._sums(*batches.batch(step, self.batch_size, mine))

    def _head_sums(self, batches: Batches, crops: Sequence[int]) -> Callable[[int], torch.Tensor]:
        """The same, from the frozen backbone's features. Consecutive steps on one batch compute
        these once.
        """
        assert not self.model.bank.active, "units would change the features"

        @functools.lru_cache(maxsize=1)
        @torch.no_grad()
        def seen(batch: int) -> tuple[torch.Tensor, ...]:
            images, labels = batches.batch(batch, self.batch_size, crops)
            with self._precision():
                logits = self.model.backbone(self._moved(images))
                features = self.model.take_features(logits)
                held = (
                    [self.model.known_of(self.model.head(features, logits, gate=False))]
                    if self.holds_known
                    else []
                )
            return features, logits, self._moved(labels), *held

        def sums_at(step: int) -> torch.Tensor:
            features, logits, labels, *held = seen(step // HEAD_STEPS_A_BATCH)
            with self._precision():
                output = self.model.head(features, logits, self.model.head_gate)
            return self._loss_sums(output, labels, *held)

        return sums_at

    def _sums(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        images = self._moved(images)
        with self._precision():
            held = [self.model.opinion(images)] if self.holds_known else []
            logits = self.model(images)
        return self._loss_sums(logits, self._moved(labels), *held)

    def _loss_sums(
        self, logits: torch.Tensor, labels: torch.Tensor, opinion: torch.Tensor | None = None
    ) -> torch.Tensor:
        if opinion is None:
            return loss_sums(logits.float(), labels)
        head = self.model.head
        return held_sums(logits.float(), labels, opinion, head.known_index, head.added_index)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bool(self.mixed_precision))

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the training device; to CUDA it goes through pinned memory, so that nothing
        waits for the copy.
        """
        cuda = self.device.type == "cuda"
        return (tensor.pin_memory() if cuda else tensor).to(self.device, non_blocking=cuda)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Optimizer state per tensor, copied to the CPU."""
        return {
            key: {name: value.detach().cpu().clone() for name, value in state.items()}
            for key, state in self._state.items()
        }

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        """Restore what `state_dict` returned. Moments go to the parameters' device; AdamW counts
        its steps on the CPU.

        Raises:
            KeyError: a tensor is of no unit that is on offer.
            AttributeError: a tensor is no parameter of its unit.
            ValueError: a moment does not have its parameter's shape.
        """
        for key, values in state.items():
            owner, _, name = key.rpartition("/")
            parameter = (
                self.model.head if owner == "head" else self.model.bank[owner]
            ).get_parameter(name)
            if any(value.shape not in (parameter.shape, torch.Size()) for value in values.values()):
                raise ValueError(f"a moment of {key} does not have its shape")
        self._state = {
            key: {
                name: value.to("cpu" if name == "step" else self.device, copy=True)
                for name, value in values.items()
            }
            for key, values in state.items()
        }
