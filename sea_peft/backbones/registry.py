"""The architectures: name → how to build it, what sizes it takes, where it comes from. One entry, one place."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from sea_peft.errors import UsageError, WeightsError


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network shape: `build(in_channels=…, out_channels=…, **widths)` maps [B, C, D, H, W] to [B, K, D, H, W].

    `divisor`: every axis of an input must be a multiple of it. `minimum`: the least size of an axis. `weights`: name of the bundled
    weights used when none are asked for. `small`: keyword arguments of a tiny version for conformance tests.
    """

    name: str
    build: Callable[..., nn.Module]
    divisor: int
    minimum: int
    paper: str
    licence: str
    small: Mapping[str, Any]
    weights: str | None = None

    def check_size(self, size: tuple[int, ...]) -> None:
        """Raise UsageError when a patch of `size` (voxels) cannot go through this network."""
        if any(n % self.divisor or n < self.minimum for n in size):
            raise UsageError(
                f"{self.name} takes patches whose sides are multiples of {self.divisor} and at least {self.minimum}, "
                f"not {','.join(map(str, size))}; choose another --patch."
            )

    def example(self, in_channels: int) -> torch.Tensor:
        """A small random input [1, C, D, H, W] for probing, the same at every call."""
        side = max(self.minimum, 2 * self.divisor)
        return torch.randn(1, in_channels, side, side, side, generator=torch.Generator().manual_seed(1))


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
        raise WeightsError(f"Backbone {spec!r} could not be imported ({error}); give package.module:factory.") from error
    if not callable(factory):
        raise WeightsError(f"Backbone {spec!r} is not a function but a {type(factory).__name__}; give package.module:factory.")
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
    )
