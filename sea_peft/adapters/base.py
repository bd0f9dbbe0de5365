"""What every family is: a small module that turns a site's output y into a new one, storing only deltas."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from sea_peft.backbones import STAGES, Site
from sea_peft.backbones.sites import is_channels_last


class CannotMerge(Exception):
    """This family, or this unit at its site, cannot be folded into the backbone's tensors. The message says why."""


class Adapter(nn.Module, abc.ABC):
    """One unit's module: `forward(x, y)` gets its site's first input x and output y and returns the new output, shaped like y.

    What every family must keep (tests/adapters/test_conformance.py proves it for whatever is registered): freshly built it is the
    identity, `forward(x, y) == y`; it never writes to the backbone; its trainable parameters are deltas, all of them used. It has no train
    and eval mode (no dropout): audits of the same state must give the same numbers.

    Class attributes: `family`, its name; `kinds` and `stages`, the sites it acts on (the head's own is left to the target head unless a
    family asks for it); `levels`, the sizes on offer, `(0,)` where the family has one size; `placements`, `("",)` where it has one;
    `on_input`, whether it acts on what the site is given rather than on what it returns (y is x itself then); `learning_rate`, AdamW's,
    with the source in the family's docstring; `order`, in which units of one site act, those that compute the site's output anew first and
    families of one order by name; `merged_within`, how far from it a merged unit is at most, as a share of what it adds to its site's output.
    """

    family: ClassVar[str]
    kinds: ClassVar[frozenset[str]]
    stages: ClassVar[frozenset[str]] = frozenset(STAGES) - {"head"}
    levels: ClassVar[tuple[int, ...]] = (0,)
    placements: ClassVar[tuple[str, ...]] = ("",)
    on_input: ClassVar[bool] = False
    learning_rate: ClassVar[float] = 1e-3
    order: ClassVar[int] = 100
    merged_within: ClassVar[float] = 1e-5

    @classmethod
    def fits(cls, site: Site, module: nn.Module, level: int, placement: str) -> bool:
        """Whether a unit of this level and placement makes sense at this site (beyond its kind)."""
        return True

    def __init__(self, site: Site, module: nn.Module, level: int, placement: str, generator: torch.Generator) -> None:
        """Build the unit for `module` at `site`; random initial values come from `generator` alone. `kind` is the site's, and
        `channels_last` says whether channels are the last axis of what it gives."""
        super().__init__()
        self._site = (module,)  # in a tuple: a child would be saved with the unit
        self.kind = site.kind
        self.channels_last = is_channels_last(module)

    @abc.abstractmethod
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: the site's first input; y: its output (after the units before this one). Returns the new output, shaped like y."""

    def site_tensors(self) -> dict[str, torch.Tensor]:
        """The site's own tensors by name, as the backbone has them, whatever is folded into them just now. Never to be written to."""
        return {name: tensor for name, tensor in self._site[0]._parameters.items() if tensor is not None}

    def recomputed(self, x: torch.Tensor, changed: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the site's module returns for its first input x with these tensors in the place of its own; no hook of it is called."""
        (module,) = self._site
        now = {name: module.__dict__[name] for name in changed if name in module.__dict__}
        module.__dict__.update(changed)  # attributes are looked up here before parameters, which stay as they are
        try:
            output: torch.Tensor = type(module).forward(module, x)
        finally:
            for name in changed:
                del module.__dict__[name]
            module.__dict__.update(now)
        return output

    def inherit(self, smaller: Adapter) -> None:
        """Begin with what a trained smaller level of this family at this site does, where the family can hold it exactly; else do
        nothing, which leaves the identity."""

    def merged(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The site's own tensors (`weight`, `bias`, as far as it has them or could, as a norm) with this unit folded in: only those that change.
        Those of a block are its modules', by their names in it. They may be larger than they were (`backbones.growth`).

        Raises CannotMerge where that is not exact.
        """
        raise CannotMerge(f"{self.family} is not linear in its site's output")


def kaiming_uniform(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Kaiming-uniform values (He et al. 2015, a = √5, as torch's own convolutions) of `shape` [out, in, ...] from `generator`."""
    fan_in = max(1, torch.Size(shape)[1:].numel())
    bound = (1.0 / fan_in) ** 0.5
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound


def along_channels(values: torch.Tensor, y: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """Per-channel `values` [C] shaped so that they broadcast over y."""
    return values if channels_last else values.view(1, -1, *(1,) * (y.ndim - 2))


def modulate(y: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor | None, channels_last: bool) -> torch.Tensor:
    """(1 + scale)⊙y + shift, per channel [C], in one pass over y."""
    factor = along_channels(1.0 + scale, y, channels_last)
    return y * factor if shift is None else torch.addcmul(along_channels(shift, y, channels_last), y, factor)


def keeps_up(site: Site) -> bool:
    """Whether a convolution with the site's stride, beside it, has the site's output size; none has where the output is larger."""
    return all(step >= 1 and step == int(step) for step in site.stride)


def pointwise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, channels_last: bool, stride: Any = 1
) -> torch.Tensor:
    """The matrix `weight` [out, in] and `bias` [out] at every token of x [..., in], or at every `stride`-th voxel of x [B, in, D, H, W]."""
    if channels_last:
        return F.linear(x, weight, bias)
    return F.conv3d(x, weight[:, :, None, None, None], bias, stride=stride)


def shift_parameter(site: Site) -> nn.Parameter | None:
    """Zeros [C_out] to be added to the site's output; None where a norm would take them away again, and they would be counted in vain."""
    return None if site.normed else nn.Parameter(torch.zeros(site.out_channels))


def convolution_geometry(module: nn.Module) -> dict[str, Any]:
    """What `torch.nn.functional`'s convolution needs to know of this one besides its tensors; nothing for a linear layer."""
    names = ("stride", "padding", "dilation", "groups", "output_padding")
    transposed = isinstance(module, nn.ConvTranspose3d)
    given = names if transposed else names[:-1]
    return {name: getattr(module, name) for name in given} if isinstance(module, nn.Conv3d) or transposed else {}


def pads_with_zeros(module: nn.Module) -> bool:
    """Whether `torch.nn.functional`'s convolutions have this module's borders; true for what is no convolution."""
    return getattr(module, "padding_mode", "zeros") == "zeros"
