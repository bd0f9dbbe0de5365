"""The base of every family: a small module that turns a site's output y into a new one, and
stores only deltas.
"""

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
    """This family, or this unit at its site, cannot be folded into the backbone's tensors. The
    message says why.
    """


class Adapter(nn.Module, abc.ABC):
    """One unit's module: `forward(x, y)` gets its site's first input x and output y, and returns
    the new output, shaped like y.

    Every family must keep these rules, which tests/adapters/test_conformance.py checks for each
    registered one. A new unit is the identity: `forward(x, y) == y`. It never writes to the
    backbone. Its trainable parameters are deltas, all of them used. It behaves alike in train and
    eval mode (no dropout), since audits of the same state must give the same numbers.

    Attributes:
        family: its name.
        kinds: the kinds of site that it acts on.
        stages: the stages that it acts in. The head's own site is left to the target head unless a
            family asks for it.
        levels: the sizes on offer; `(0,)` for a family of one size.
        placements: the placements on offer; `("",)` for a family with one.
        on_input: whether it acts on the site's input rather than its output. Then y is x itself.
        learning_rate: AdamW's; the family's docstring names its source.
        order: position among the units of one site. Families that compute the output again come
            first; ties go by name.
        merged_within: largest deviation of a merged unit, as a share of what it adds to its site's
            output.
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

    def __init__(
        self, site: Site, module: nn.Module, level: int, placement: str, generator: torch.Generator
    ) -> None:
        """Build the unit for `module` at `site`. Random initial values come from `generator` alone.

        Sets `kind`, the site's, and `channels_last`, whether channels are the last axis of its
        output.
        """
        super().__init__()
        self._site = (module,)  # in a tuple: a child would be saved with the unit
        self.kind = site.kind
        self.channels_last = is_channels_last(module)

    @abc.abstractmethod
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The new output, shaped like y.

        Args:
            x: the site's first input.
            y: its output, after the units that act before this one.
        """

    def site_tensors(self) -> dict[str, torch.Tensor]:
        """The site's own tensors by name, as in the backbone, whatever is folded into them at the
        moment. Never write to them.
        """
        return {
            name: tensor for name, tensor in self._site[0]._parameters.items() if tensor is not None
        }

    def recomputed(self, x: torch.Tensor, changed: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The output of the site's module for its first input x, with these tensors instead of its
        own. Calls none of its hooks.
        """
        (module,) = self._site
        now = {name: module.__dict__[name] for name in changed if name in module.__dict__}
        module.__dict__.update(
            changed
        )  # attributes are looked up here before parameters, which stay as they are
        try:
            output: torch.Tensor = type(module).forward(module, x)
        finally:
            for name in changed:
                del module.__dict__[name]
            module.__dict__.update(now)
        return output

    def inherit(self, smaller: Adapter) -> None:
        """Start as the function of a trained smaller level at this site, if the family can
        represent it exactly.

        Otherwise do nothing, which leaves the identity.
        """

    def merged(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The site's tensors that change when this unit is folded in.

        They are `weight` and `bias`, as far as the site has them or, as a norm, could have them. A
        block's tensors go by the names of its modules. They may be larger than they were
        (`backbones.growth`).

        Raises:
            CannotMerge: folding is not exact.
        """
        raise CannotMerge(f"{self.family} is not linear in its site's output")


def kaiming_uniform(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Kaiming-uniform values of `shape` `[out, in, ...]` from `generator` (He et al. 2015, a = √5,
    as torch's own convolutions).
    """
    fan_in = max(1, torch.Size(shape)[1:].numel())
    bound = (1.0 / fan_in) ** 0.5
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound


def along_channels(values: torch.Tensor, y: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """Per-channel `values` `[C]`, shaped to broadcast over y."""
    return values if channels_last else values.view(1, -1, *(1,) * (y.ndim - 2))


def modulate(
    y: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor | None, channels_last: bool
) -> torch.Tensor:
    """(1 + scale)⊙y + shift, per channel `[C]`, in one pass over y."""
    factor = along_channels(1.0 + scale, y, channels_last)
    return (
        y * factor
        if shift is None
        else torch.addcmul(along_channels(shift, y, channels_last), y, factor)
    )


def keeps_up(site: Site) -> bool:
    """Whether a convolution beside the site, with its stride, gives outputs of the site's size.
    False if the site enlarges its input.
    """
    return all(step >= 1 and step == int(step) for step in site.stride)


def pointwise(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    channels_last: bool,
    stride: Any = 1,
) -> torch.Tensor:
    """Apply the matrix `weight` `[out, in]` and `bias` `[out]` to every token of x `[..., in]`, or
    to every `stride`-th voxel of x `[B, in, D, H, W]`.
    """
    if channels_last:
        return F.linear(x, weight, bias)
    return F.conv3d(x, weight[:, :, None, None, None], bias, stride=stride)


def shift_parameter(site: Site) -> nn.Parameter | None:
    """Zeros `[C_out]` to be added to the site's output; None if a norm would remove them again and
    they would cost budget for nothing.
    """
    return None if site.normed else nn.Parameter(torch.zeros(site.out_channels))


def convolution_geometry(module: nn.Module) -> dict[str, Any]:
    """The module's arguments for `torch.nn.functional`'s convolution besides its tensors; empty for
    a linear layer.
    """
    names = ("stride", "padding", "dilation", "groups", "output_padding")
    transposed = isinstance(module, nn.ConvTranspose3d)
    given = names if transposed else names[:-1]
    return (
        {name: getattr(module, name) for name in given}
        if isinstance(module, nn.Conv3d) or transposed
        else {}
    )


def pads_with_zeros(module: nn.Module) -> bool:
    """Whether the module pads as `torch.nn.functional`'s convolutions do; true for anything but
    a convolution.
    """
    return getattr(module, "padding_mode", "zeros") == "zeros"
