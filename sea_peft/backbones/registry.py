"""The architectures: name → how to build it, the sizes that it takes, and its source. One
entry, one place.
"""

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
    """A package that an architecture needs and the rest of sea_peft does not. `module`: the module
    imported from it.
    """

    module: str
    package: str

    @property
    def installed(self) -> bool:
        """Whether the package is installed; imports nothing."""
        return importlib.util.find_spec(self.module) is not None

    def require(self, backbone: str) -> None:
        """Raise UsageError saying how to install the package, if it is not installed."""
        if not self.installed:
            raise UsageError(
                f"Backbone {backbone} needs the package {self.package}; install it with `pip"
                f" install --no-deps {self.package}`."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network shape: `build(in_channels=…, out_channels=…, **widths)` maps `[B, C, D, H, W]` to
    `[B, K, D, H, W]`.

    Each registered one also takes `input_factor` and `input_offset`: the network then sees factor·x
    + offset. This is for checkpoints whose scaling of grey values no recipe can do.

    Attributes:
        name: as the user types it.
        build: see above.
        divisor: every side of an input must be a multiple of it; one number, or three for D, H, W.
        minimum: the least size of a side; one number, or three for D, H, W.
        paper: that describes it.
        licence: of its code.
        small: keyword arguments of a tiny version for conformance tests.
        weights: name of the bundled weights used by default.
        limits: keyword arguments → sizes, if they depend on these.
        probe: size `[D, H, W]` of the input for finding sites, if a cheaper one than the limits
            give is needed.
        read_widths: reads the keyword arguments off the tensors of a checkpoint.
        traceless: keyword arguments that leave no trace there, each with what to do about it.
        needs: a package that must be installed for it.
        card: the content of a card, if the network comes with its weights loaded.
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
        """Number of parameters of the network built with `kwargs`, each tensor once. Raises
        UsageError if a package is not installed.
        """
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
        """Raise UsageError if a patch of `size` (voxels) cannot go through the network built
        with `kwargs`.
        """
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
            why = (
                f"shrinks patches by {in_words(limits.divisor)} and needs {limits.bottom} voxels at"
                " its bottom"
            )
            raise UsageError(
                f"{self.name} {why}, which {asked} does not leave; choose a larger patch.", "patch"
            )

    def example(self, in_channels: int, kwargs: Mapping[str, object] | None = None) -> torch.Tensor:
        """A small random input `[1, C, D, H, W]` for probing the network built with `kwargs`; the
        same in every call.
        """
        shape = self.probe or self.limits_of(kwargs or {}).small
        return torch.randn(1, in_channels, *shape, generator=torch.Generator().manual_seed(1))


_ARCHITECTURES: dict[str, Architecture] = {}


def register(architecture: Architecture) -> Architecture:
    """Put an architecture on offer. The conformance tests then cover it automatically."""
    if architecture.name in _ARCHITECTURES:
        raise ValueError(f"architecture {architecture.name!r} is registered twice")
    made = dataclasses.replace(architecture, build=growing(_behind_a_map(architecture.build)))
    _ARCHITECTURES[architecture.name] = made
    return made


def _behind_a_map(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """`build` for a network behind an affine map of its input. The map is a hook, so no key of the
    state dict changes.
    """

    @functools.wraps(build)
    def mapped(
        *, input_factor: float = 1.0, input_offset: float = 0.0, **kwargs: object
    ) -> nn.Module:
        network = build(**kwargs)
        if not (math.isfinite(input_factor) and math.isfinite(input_offset) and input_factor):
            raise ValueError(
                f"input_factor {input_factor} and input_offset {input_offset} leave nothing of a"
                " scan"
            )
        if (input_factor, input_offset) != (1.0, 0.0):
            network.register_forward_pre_hook(
                functools.partial(_affine, input_factor, input_offset)
            )
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
    """The registered architecture called `name`, which may come from a file. Raises UsageError
    if there is none.
    """
    known = architectures()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(
            f"No backbone is called {name!r}.{hint} There are: {', '.join(sorted(known))}."
        )
    return known[name]
