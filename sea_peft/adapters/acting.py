"""How the open units of one site act: through the site's own weights where that is exact and
cheaper, otherwise as branches.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sea_peft.adapters.base import Adapter, CannotMerge
from sea_peft.backbones.growth import missing
from sea_peft.backbones.unet3d import BatchStatisticsNorm

Form = Literal["cheapest", "folded", "branches"]

# Modules whose output depends on input and tensors alone; a subclass may override forward and do
# otherwise.
_PLAIN = frozenset(
    kind.forward
    for kind in (
        nn.Linear,
        nn.Conv3d,
        nn.ConvTranspose3d,
        nn.GroupNorm,
        nn.LayerNorm,
        nn.InstanceNorm3d,
        nn.BatchNorm3d,
        BatchStatisticsNorm,
    )
)
# oneDNN's convolutions round output channels up to a multiple of this.
_LANES = 16
# Forward, gradient of the input, gradient of the weight.
_DIRECTIONS = 3
# Multiply-adds that take as long as passing over one channel, forward and backward.
_PASS = 150


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The module's own tensors by name, as in the backbone."""
    return dict(module.named_parameters(recurse=False))


def acting_tensors(module: nn.Module, like: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors that the module's forward computes with.

    A norm without scale and shift gets ones and zeros, so that units can be folded into them while
    it runs.

    `like`: a tensor with the wanted dtype and device.
    """
    return own_tensors(module) | {name: value.to(like) for name, value in missing(module).items()}


def _stride(module: nn.Module) -> float:
    """Input voxels per output voxel."""
    if isinstance(module, nn.Conv3d):
        return float(math.prod(module.stride))
    return 1.0 / math.prod(module.stride) if isinstance(module, nn.ConvTranspose3d) else 1.0


def is_plain(module: nn.Module) -> bool:
    """Whether the module's output depends on input and tensors alone, so that units can be folded
    into its tensors.
    """
    return type(module).forward in _PLAIN


def changed_by(adapter: Adapter, module: nn.Module) -> frozenset[str] | None:
    """Names of the tensors that change when this unit is folded into the module; None if it cannot
    be folded exactly.
    """
    if not is_plain(module):
        return None
    try:
        with torch.no_grad():
            own = acting_tensors(module, next(adapter.parameters()))
            merged = adapter.merged(own)
    except (
        CannotMerge,
        KeyError,
    ):  # a weight computed from others, as by weight norm, is not a tensor of the module
        return None
    fits = all(name in own and tensor.shape == own[name].shape for name, tensor in merged.items())
    return frozenset(merged) if fits else None


def folded(
    tensors: Mapping[str, torch.Tensor], adapters: Sequence[Adapter]
) -> dict[str, torch.Tensor]:
    """The site's tensors that change when these units are folded in, one after the other.
    Differentiable in the units' parameters.

    Raises:
        CannotMerge: a unit cannot be folded exactly.
    """
    changed: dict[str, torch.Tensor] = {}
    for adapter in adapters:
        changed |= adapter.merged({**tensors, **changed})
    return changed


@dataclasses.dataclass(frozen=True)
class Branch:
    """An open unit, as `worth_folding` sees it.

    Attributes:
        shapes: shapes of its parameters.
        changes_weight: whether folding it in changes the site's weight.
    """

    shapes: tuple[tuple[int, ...], ...]
    changes_weight: bool

    @classmethod
    def of(cls, adapter: Adapter, changes: frozenset[str]) -> Branch:
        """The branch of an adapter. `changes`: the result of `changed_by` for it."""
        return cls(tuple(tuple(p.shape) for p in adapter.parameters()), "weight" in changes)


def worth_folding(
    weight: Sequence[int], branches: Sequence[Branch], stride: float = 1.0, transposed: bool = False
) -> int:
    """How many of a site's open units, from the first on, should act through its weights in a
    training step.

    The rule compares multiply-adds per output voxel. As a branch, a unit does its parameters' work
    three times (forward, gradient of its input, gradient of its own), and passes over the volumes
    that it reads and adds to. If any folded unit changes the weight, all of them together cost the
    gradient of the site's whole weight, once. Output channels count in sixteens, as oneDNN rounds
    them up: a branch of rank 4 costs as much as a convolution of 16 channels, but hardly anything
    beside one of 256.

    The price of a pass was fitted to CPU times (one thread, AVX-512, oneDNN) of lora, tsa, ssf, ia3
    and full at every shape of convolution and linear layer in SegResNet, the UNet and SwinUNETR
    with the default crop. Nothing is timed at run time, so the same units at the same site act in
    the same form, and give the same bits, on every machine.

    Args:
        weight: shape of the site's weight: `[out, in, k, k, k]`, `[in, out, k, k, k]` if
            `transposed`, `[out, in]` or `[C]`.
        branches: the units that can be folded, in the order in which they act.
        stride: input voxels per output voxel.
        transposed: whether the site is a transposed convolution.

    Examples:
        >>> lora = Branch(shapes=((4, 16, 3, 3, 3), (16, 4)), changes_weight=True)
        >>> worth_folding((16, 16, 3, 3, 3), [lora])
        1
    """
    axis = 1 if transposed else 0
    gradient = _work(weight, axis)
    as_branch = [_as_branch(b, weight, stride, axis) for b in branches]

    def cost(count: int) -> float:
        shared = gradient if any(b.changes_weight for b in branches[:count]) else 0
        return shared + sum(as_branch[count:])

    return min(
        range(len(branches), -1, -1), key=cost
    )  # of equal costs the most units: fewer operations


def _as_branch(branch: Branch, weight: Sequence[int], stride: float, axis: int) -> float:
    """Multiply-adds of a training step per output voxel."""
    if len(weight) > 1 and any(len(shape) > 1 for shape in branch.shapes):  # it reads the input
        passes = weight[axis] + stride * weight[1 - axis]
    else:
        passes = weight[axis % len(weight)]
    return _DIRECTIONS * sum(_work(shape, axis) for shape in branch.shapes) + _PASS * passes


def _work(shape: Sequence[int], axis: int) -> int:
    """Multiply-adds of one pass with a tensor of this shape, whose output channels lie on
    `axis`.
    """
    if len(shape) < 2:
        return math.prod(shape)
    return math.prod(shape) // shape[axis] * (-(-shape[axis] // _LANES) * _LANES)


class Acting:
    """Lets the open units of one site act on its module's input and output, while it is attached.

    Units that act on the input come first. Of the others, the first few act through the module's
    own tensors: as many as can be folded exactly and are cheaper that way. The rest act on the
    output afterwards. Only this module's forward sees the folded tensors. While it runs they lie in
    its `__dict__`, where attributes are looked up before parameters; the parameters stay unchanged.

    Without gradients every unit that can be folded is, at the cost of one sum of weights. With
    gradients `worth_folding` decides: branches alone take 12 to 48% more CPU time per step
    (benchmarks/results/step_cost.md).
    """

    def __init__(
        self,
        module: nn.Module,
        adapters: Sequence[Adapter],
        changes: Sequence[frozenset[str] | None],
        form: Form,
    ) -> None:
        """`changes`: the result of `changed_by` for each adapter."""
        self._module = module
        early = [a for a in adapters if a.on_input]
        self._late = [a for a in adapters if not a.on_input]
        self._changes = [
            None if form == "branches" else c
            for a, c in zip(adapters, changes, strict=True)
            if not a.on_input
        ]
        foldable = list(itertools.takewhile(lambda c: c is not None, self._changes))
        self._foldable = len(foldable)
        self._worth = self._foldable
        if form == "cheapest" and foldable:
            branches = [
                Branch.of(a, c) for a, c in zip(self._late, foldable, strict=False) if c is not None
            ]
            weight = self._tensors()["weight"].shape
            self._worth = worth_folding(
                weight, branches, _stride(module), isinstance(module, nn.ConvTranspose3d)
            )
        self._now = 0
        self._held: dict[str, torch.Tensor] | None = None
        self._handles: list[RemovableHandle] = []
        if early:  # before all other hooks, so that they see the input that the module is given
            self._handles.append(
                module.register_forward_pre_hook(_acting_before(early), prepend=True)
            )
        if self._foldable:
            self._handles.append(module.register_forward_pre_hook(self._fold))
            self._handles.append(
                module.register_forward_hook(self._unfold, prepend=True, always_call=True)
            )
        if len(self._late) > min(self._foldable, self._worth):
            self._handles.append(module.register_forward_hook(self._branches))

    def detach(self) -> None:
        """Stop the units from acting, and leave nothing of them on the module."""
        for handle in self._handles:
            handle.remove()
        self._unfold()  # a forward ended by something other than an Exception has not unfolded them

    def hold(self) -> None:
        """Fold once for all later forwards without gradients. The tensors must not change any
        more.
        """
        if self._foldable:
            with torch.no_grad():
                self._held = folded(self._tensors(), self._late[: self._foldable])

    def runs_otherwise_without(self, adapters: Collection[Adapter]) -> bool:
        """Whether closing these units together changes the module's input or weights, and not only
        its output afterwards.

        Holds without gradients. It also counts units that kept others from being folded.
        """
        if any(adapter.on_input for adapter in adapters):
            return True
        left = [(a, c) for a, c in zip(self._late, self._changes, strict=True) if a not in adapters]
        return [
            a for a, _ in itertools.takewhile(lambda pair: pair[1] is not None, left)
        ] != self._late[: self._foldable]

    def _fold(self, _module: nn.Module, _inputs: tuple[object, ...]) -> None:
        self._now = self._worth if torch.is_grad_enabled() else self._foldable
        held = None if torch.is_grad_enabled() else self._held
        self._module.__dict__.update(
            folded(self._tensors(), self._late[: self._now]) if held is None else held
        )

    def _unfold(self, *_called_with: object) -> None:
        for name in self._module._parameters:
            self._module.__dict__.pop(name, None)

    def _tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that the module's forward would compute with."""
        return acting_tensors(self._module, next(self._late[0].parameters()))

    def _branches(
        self, _module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        for adapter in self._late[self._now :]:
            output = adapter(inputs[0], output)
        return output


def _acting_before(adapters: Sequence[Adapter]) -> Any:
    """A forward pre-hook that applies these adapters to the first input, one after the other."""

    def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = inputs
        for adapter in adapters:
            x = adapter(x, x)
        return (x, *others)

    return hook
