"""The architectures: name → how to build it, what sizes it takes, where it comes from. One entry, one place."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from sea_peft.errors import UsageError, WeightsError


@dataclasses.dataclass(frozen=True)
class Limits:
    """Input sizes that a network takes, in voxels.

    `divisor`: every axis must be a multiple of it. `minimum`: the least size of an axis. `exact`: the one size [D, H, W] it takes at
    all, where position embeddings are tied to it.
    """

    divisor: int
    minimum: int
    exact: tuple[int, int, int] | None = None

    @property
    def step(self) -> int | None:
        """What a window may grow by: the divisor, or None where only one size goes."""
        return self.divisor if self.exact is None else None


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


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network shape: `build(in_channels=…, out_channels=…, **widths)` maps [B, C, D, H, W] to [B, K, D, H, W].

    `divisor`: every axis of an input must be a multiple of it. `minimum`: the least size of an axis. `small`: keyword arguments of a
    tiny version for conformance tests. `weights`: name of the bundled weights used when none are asked for. `limits`: sizes as a
    function of the keyword arguments, where these change them. `probe`: size [D, H, W] of the input for finding sites, where a cube
    of the least size is not the cheapest. `read_widths`: reads the keyword arguments off the tensors of a checkpoint. `traceless`:
    keyword arguments that leave no trace there, each with what to do about it. `needs`: a package that must be installed for it.
    `card`: what a card says, where the network comes with its weights loaded.
    """

    name: str
    build: Callable[..., nn.Module]
    divisor: int
    minimum: int
    paper: str
    licence: str
    small: Mapping[str, Any]
    weights: str | None = None
    limits: Callable[[Mapping[str, Any]], Limits] | None = None
    probe: tuple[int, int, int] | None = None
    read_widths: Callable[[Mapping[str, torch.Tensor]], dict[str, Any]] | None = None
    traceless: Mapping[str, str] = dataclasses.field(default_factory=dict)
    needs: Needed | None = None
    card: Mapping[str, Any] | None = None

    @property
    def installed(self) -> bool:
        """Whether it can be built here."""
        return self.needs is None or self.needs.installed

    def parameters(self, kwargs: Mapping[str, Any]) -> int:
        """Parameters of the network built with `kwargs`, each tensor once. Raises UsageError where a package is not installed."""
        try:
            with torch.device("meta"):  # shapes alone
                network = self.build(**kwargs)
        except RuntimeError:  # some constructors compute with values
            network = self.build(**kwargs)
        return sum(p.numel() for p in network.parameters())

    def limits_of(self, kwargs: Mapping[str, Any]) -> Limits:
        """The sizes that the network built with `kwargs` takes."""
        return self.limits(kwargs) if self.limits is not None else Limits(self.divisor, self.minimum)

    def check_size(self, size: tuple[int, ...], kwargs: Mapping[str, Any] | None = None) -> None:
        """Raise UsageError when a patch of `size` (voxels) cannot go through the network built with `kwargs`."""
        limits = self.limits_of(kwargs or {})
        asked = ",".join(map(str, size))
        if limits.exact is not None and tuple(size) != limits.exact:
            only = ",".join(map(str, limits.exact))
            raise UsageError(
                f"{self.name} takes patches of {only} only, the size its position embeddings belong to, not {asked}; give --patch {only}."
            )
        if any(n % limits.divisor or n < limits.minimum for n in size):
            raise UsageError(
                f"{self.name} takes patches whose sides are multiples of {limits.divisor} and at least {limits.minimum}, "
                f"not {asked}; choose another --patch."
            )

    def example(self, in_channels: int, kwargs: Mapping[str, Any] | None = None) -> torch.Tensor:
        """A small random input [1, C, D, H, W] for probing the network built with `kwargs`, the same at every call."""
        limits = self.limits_of(kwargs or {})
        side = max(limits.minimum, 2 * limits.divisor)
        shape = limits.exact or self.probe or (side, side, side)
        return torch.randn(1, in_channels, *shape, generator=torch.Generator().manual_seed(1))


_ARCHITECTURES: dict[str, Architecture] = {}


def register(architecture: Architecture) -> Architecture:
    """Put an architecture on offer. The conformance suite takes it in by itself."""
    if architecture.name in _ARCHITECTURES:
        raise ValueError(f"architecture {architecture.name!r} is registered twice")
    _ARCHITECTURES[architecture.name] = architecture
    return architecture


def architectures() -> dict[str, Architecture]:
    """Every registered architecture by name."""
    return dict(_ARCHITECTURES)


def architecture(name: str) -> Architecture:
    """The architecture called `name`, or the one behind `package.module:factory`."""
    if ":" in name:
        return _from_factory(name)
    if name not in _ARCHITECTURES:
        near = difflib.get_close_matches(name, _ARCHITECTURES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"No backbone is called {name!r}.{hint} There are: {', '.join(sorted(_ARCHITECTURES))}.")
    return _ARCHITECTURES[name]


def _from_factory(spec: str) -> Architecture:
    """A user's own network: `factory(in_channels=…, out_channels=…)`, or a factory without arguments for a network with fixed channels."""
    module_name, _, attribute = spec.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise WeightsError(
            f"Backbone {spec!r} could not be imported ({error}); give package.module:factory."
        ) from error
    if not callable(factory):
        raise WeightsError(
            f"Backbone {spec!r} is not a function but a {type(factory).__name__}; give package.module:factory."
        )
    takes = inspect.signature(factory).parameters
    flexible = any(p.kind is p.VAR_KEYWORD for p in takes.values())

    def build(**kwargs: Any) -> nn.Module:
        network = factory(**{k: v for k, v in kwargs.items() if flexible or k in takes})
        if not isinstance(network, nn.Module):
            raise WeightsError(f"Backbone {spec!r} returned {type(network).__name__}, not a torch.nn.Module.")
        return network

    return Architecture(
        name=spec,
        build=build,
        divisor=int(getattr(factory, "divisor", 32)),
        minimum=int(getattr(factory, "minimum", 32)),
        paper=getattr(factory, "paper", "given by the user"),
        licence=getattr(factory, "licence", "given by the user"),
        small={},
        weights=spec if hasattr(factory, "card") else None,
        card=getattr(factory, "card", None),
    )
