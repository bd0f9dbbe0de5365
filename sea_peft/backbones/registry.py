"""The architectures: name → how to build it, what sizes it takes, where it comes from. One entry, one place."""

import dataclasses
import difflib
import functools
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from sea_peft import extensions
from sea_peft.backbones.growth import growing
from sea_peft.backbones.limits import Limits, in_words, per_axis
from sea_peft.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Needed:
    """A package that an architecture is built with and that sea_peft does without otherwise. `module`: what is imported of it."""

    module: str
    package: str

    @property
    def installed(self) -> bool:
        """Whether the package is there; nothing is imported."""
        return importlib.util.find_spec(self.module) is not None

    def require(self, backbone: str) -> None:
        """Raise UsageError with the way to install the package when it is not there."""
        if not self.installed:
            raise UsageError(
                f"Backbone {backbone} needs the package {self.package}; install it with `pip install --no-deps {self.package}`."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network shape: `build(in_channels=…, out_channels=…, **widths)` maps [B, C, D, H, W] to [B, K, D, H, W].

    Every registered one also takes `input_factor` and `input_offset`: the network then sees factor·x + offset, for checkpoints whose scaling
    of grey values no recipe has.

    `divisor`: every side of an input must be a multiple of it. `minimum`: the least size of a side. Both are one number for all axes, or
    three for D, H, W. `small`: keyword arguments of a tiny version for conformance tests. `weights`: name of the bundled weights used
    when none are asked for. `limits`: sizes as a function of the keyword arguments, where these change them. `probe`: size [D, H, W] of
    the input for finding sites, where the one that the limits give is not the cheapest. `read_widths`: reads the keyword arguments off
    the tensors of a checkpoint. `traceless`: keyword arguments that leave no trace there, each with what to do about it. `needs`: a
    package that must be installed for it. `card`: what a card says, where the network comes with its weights loaded.
    """

    name: str
    build: Callable[..., nn.Module]
    divisor: int | Sequence[int]
    minimum: int | Sequence[int]
    paper: str
    licence: str
    small: Mapping[str, object]
    weights: str | None = None
    limits: Callable[[Mapping[str, object]], Limits] | None = None
    probe: tuple[int, int, int] | None = None
    read_widths: Callable[[Mapping[str, torch.Tensor]], dict[str, object]] | None = None
    traceless: Mapping[str, str] = dataclasses.field(default_factory=dict)
    needs: Needed | None = None
    card: Mapping[str, object] | None = None

    @property
    def installed(self) -> bool:
        """Whether it can be built here."""
        return self.needs is None or self.needs.installed

    def parameters(self, kwargs: Mapping[str, object]) -> int:
        """Parameters of the network built with `kwargs`, each tensor once. Raises UsageError where a package is not installed."""
        try:
            with torch.device("meta"):  # shapes alone
                network = self.build(**kwargs)
        except RuntimeError:  # some constructors compute with values
            network = self.build(**kwargs)
        return sum(p.numel() for p in network.parameters())

    def limits_of(self, kwargs: Mapping[str, object]) -> Limits:
        """The sizes that the network built with `kwargs` takes."""
        if self.limits is not None:
            return self.limits(kwargs)
        return Limits(per_axis(self.divisor), per_axis(self.minimum))

    def check_size(self, size: tuple[int, ...], kwargs: Mapping[str, object] | None = None) -> None:
        """Raise UsageError when a patch of `size` (voxels) cannot go through the network built with `kwargs`."""
        limits = self.limits_of(kwargs or {})
        asked = ",".join(map(str, size))
        if limits.exact is not None and tuple(size) != limits.exact:
            only = ",".join(map(str, limits.exact))
            why = f"takes patches of {only} only, the size its position embeddings belong to"
            raise UsageError(f"{self.name} {why}, not {asked}; give a patch of {only}.", "patch")
        if not limits.fits_sides(size):
            why = f"takes patches whose sides are {limits.sides}"
            raise UsageError(f"{self.name} {why}, not {asked}; choose another patch.", "patch")
        if not limits.fits_bottom(size):
            why = f"shrinks patches by {in_words(limits.divisor)} and needs {limits.bottom} voxels at its bottom"
            raise UsageError(f"{self.name} {why}, which {asked} does not leave; choose a larger patch.", "patch")

    def example(self, in_channels: int, kwargs: Mapping[str, object] | None = None) -> torch.Tensor:
        """A small random input [1, C, D, H, W] for probing the network built with `kwargs`, the same at every call."""
        shape = self.probe or self.limits_of(kwargs or {}).small
        return torch.randn(1, in_channels, *shape, generator=torch.Generator().manual_seed(1))


_ARCHITECTURES: dict[str, Architecture] = {}


def register(architecture: Architecture) -> Architecture:
    """Put an architecture on offer. The conformance suite takes it in by itself."""
    if architecture.name in _ARCHITECTURES:
        raise ValueError(f"architecture {architecture.name!r} is registered twice")
    made = dataclasses.replace(architecture, build=growing(_behind_a_map(architecture.build)))
    _ARCHITECTURES[architecture.name] = made
    return made


def _behind_a_map(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """`build` for a network behind an affine map of its input: a hook, so that no key of the state dict changes."""

    @functools.wraps(build)
    def mapped(*, input_factor: float = 1.0, input_offset: float = 0.0, **kwargs: object) -> nn.Module:
        network = build(**kwargs)
        if not (math.isfinite(input_factor) and math.isfinite(input_offset) and input_factor):
            raise ValueError(f"input_factor {input_factor} and input_offset {input_offset} leave nothing of a scan")
        if (input_factor, input_offset) != (1.0, 0.0):
            network.register_forward_pre_hook(functools.partial(_affine, input_factor, input_offset))
        return network

    return mapped


def _affine(
    factor: float, offset: float, _network: nn.Module, inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    return (factor * inputs[0] + offset, *inputs[1:])


def architectures() -> dict[str, Architecture]:
    """Every registered architecture by name, those of installed packages included."""
    extensions.load("backbones")
    return dict(_ARCHITECTURES)


def architecture(name: str) -> Architecture:
    """The registered architecture called `name`: a name from a file may stand here. Raises UsageError where none is called so."""
    known = architectures()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"No backbone is called {name!r}.{hint} There are: {', '.join(sorted(known))}.")
    return known[name]
