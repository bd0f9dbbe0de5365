"""Small backbones to try units on, and a handful of units of each family for each of them."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
from torch import nn

from sea_peft.adapters import Adapter, Offer, Unit, families, units_for
from sea_peft.adapters.liveness import acting
from sea_peft.backbones import Site, architectures, find_sites
from sea_peft.backbones.sites import is_channels_last

# Voxels or tokens an axis by which units are compared at their site.
_CORNER = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """A backbone to try units on: `network` is never handed out, only copies of it. `x`: [1, C, D,
    H, W]. `at`: site → a corner of its input and output for x in the plain network, float64.
    """

    network: nn.Module
    sites: tuple[Site, ...]
    x: torch.Tensor
    at: dict[str, tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def of(cls, network: nn.Module, x: torch.Tensor) -> Bench:
        """Probe the network."""
        network = network.eval().requires_grad_(False)
        sites = find_sites(network, x)
        at: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

        def remember(site: Site) -> Callable[..., None]:
            return lambda module, inputs, output: at.update(
                {site.path: _corner(site, module, inputs[0], output)}
            )

        watched = copy.deepcopy(network)
        for site in sites:
            watched.get_submodule(site.path).register_forward_hook(remember(site))
        output_of(watched, x)
        return cls(network, sites, x, at)

    def fresh(self, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.Tensor]:
        """A copy of the network and of the input."""
        return copy.deepcopy(self.network).to(dtype), self.x.to(dtype)

    def here(self, unit: Unit, adapter: Adapter) -> tuple[torch.Tensor, torch.Tensor]:
        """What a unit's module is called with when it alone acts, float64."""
        x, y = self.at[unit.site.path]
        return (x, x) if adapter.on_input else (x, y)


@functools.cache
def bench(backbone: str) -> Bench:
    """The small version of a registered architecture, with weights that depend on its name
    alone.
    """
    architecture = architectures()[backbone]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = architecture.build(in_channels=1, out_channels=3, **architecture.small)
        # norms start as ones and zeros, with which scale and shift could be confused unseen
        for module in network.modules():
            for name, tensor in module.named_parameters(recurse=False):
                if tensor.ndim == 1:
                    (
                        nn.init.uniform_(tensor, 0.5, 1.5)
                        if name == "weight"
                        else nn.init.normal_(tensor, std=0.1)
                    )
    return Bench.of(network, architecture.example(1, architecture.small))


def offered(bench: Bench, family: str) -> tuple[Unit, ...]:
    """Every unit of the family that acts on this backbone: what the audit space would hold of
    it.
    """
    return acting(bench.network, units_for(bench.network, bench.sites, {family: Offer()}), bench.x)


def handful(bench: Bench, names: Sequence[str]) -> tuple[Unit, ...]:
    """Of these families every kind of site and placement, at the smallest level and at the largest,
    that the backbone has a place for: the smallest at the first such site, the largest at the last.
    """
    sites: dict[tuple, list[Site]] = {}
    for site in bench.sites:
        tokens = is_channels_last(bench.network.get_submodule(site.path))
        sites.setdefault(
            (site.kind, tokens, site.stage == "head", site.stride == (1.0, 1.0, 1.0)), []
        ).append(site)
    sample = sorted(
        {s for own in sites.values() for s in (*own[:3], own[len(own) // 2], *own[-2:])},
        key=lambda s: s.order,
    )
    cells: dict[tuple, list[Unit]] = {}
    for unit in units_for(bench.network, sample, {name: Offer() for name in names}):
        cells.setdefault((unit.family, unit.site.kind, unit.placement), []).append(unit)
    chosen = {}
    for own in cells.values():
        smallest, largest = (min(own, key=_size), max(own, key=_size))
        chosen |= {smallest.id: smallest, largest.id: largest}
    return acting(bench.network, tuple(chosen.values()), bench.x)


def _size(unit: Unit) -> tuple[int, int]:
    return unit.level, unit.site.order


@functools.cache
def of_every_family(backbone: str) -> tuple[Unit, ...]:
    """The handfuls of all families, together."""
    return handful(bench(backbone), tuple(families()))


def units_of(backbone: str, family: str) -> tuple[Unit, ...]:
    """The handful of this family."""
    return tuple(unit for unit in of_every_family(backbone) if unit.family == family)


@torch.no_grad()
def output_of(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return network(x)


def _corner(
    site: Site, module: nn.Module, x: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first few voxels or tokens of a site's input and output, as far as they belong
    together: enough to compare units by.
    """
    if not is_channels_last(module):
        small = [min(_CORNER, size) for size in y.shape[2:]]
        given = [max(1, int(size * step)) for size, step in zip(small, site.stride, strict=True)]
        x, y = (
            x[:, :, : given[0], : given[1], : given[2]],
            y[:, :, : small[0], : small[1], : small[2]],
        )
    else:
        few = tuple(slice(_CORNER) for _ in x.shape[:-1])
        x, y = x[few], y[few]
    return x.double(), y.double()
