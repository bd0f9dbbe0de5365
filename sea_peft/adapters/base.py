"""What every family is: a small module that turns a site's output y into a new one, storing only deltas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from sea_peft.backbones import Site


class CannotMerge(Exception):
    """This family, or this unit at its site, cannot be folded into the backbone's tensors. The message says why."""


class Adapter(nn.Module):
    """One unit's module: `forward(x, y)` gets its site's first input x and output y and returns the new output, shaped like y.

    What every family must keep (tests/adapters/test_conformance.py proves it for whatever is registered): freshly built it is the
    identity, `forward(x, y) == y`; it never writes to the backbone; its trainable parameters are deltas, all of them used. It has no train
    and eval mode (no dropout): audits of the same state must give the same numbers.

    Class attributes: `family`, its name; `kinds`, the kinds of site it acts on; `levels`, the sizes on offer, `(0,)` where the family
    has one size; `placements`, `("",)` where it has one; `learning_rate`, AdamW's, with the source in the family's docstring.
    """

    family: ClassVar[str]
    kinds: ClassVar[frozenset[str]]
    levels: ClassVar[tuple[int, ...]] = (0,)
    placements: ClassVar[tuple[str, ...]] = ("",)
    learning_rate: ClassVar[float] = 1e-3

    @classmethod
    def fits(cls, site: Site, module: nn.Module, level: int, placement: str) -> bool:
        """Whether a unit of this level and placement makes sense at this site (beyond its kind)."""
        return True

    def __init__(
        self, site: Site, module: nn.Module, level: int, placement: str, generator: torch.Generator
    ) -> None:
        """Build the unit for `module` at `site`; random initial values come from `generator` alone."""
        super().__init__()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: the site's first input; y: its output (after the units before this one). Returns the new output, shaped like y."""
        raise NotImplementedError

    def inherit(self, smaller: Adapter) -> None:
        """Begin with what a trained smaller level of this family at this site does, where the family can hold it exactly; else do
        nothing, which leaves the identity."""

    def merged(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The site's own tensors (`weight`, `bias`, as far as it has them) with this unit folded in: only those that change.

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


def is_channels_last(module: nn.Module) -> bool:
    """Linear layers and layer norms keep channels on the last axis, everything else on the second."""
    return isinstance(module, nn.Linear | nn.LayerNorm)


def pads_with_zeros(module: nn.Module) -> bool:
    """Whether `torch.nn.functional`'s convolutions have this module's borders; true for what is no convolution."""
    return getattr(module, "padding_mode", "zeros") == "zeros"
