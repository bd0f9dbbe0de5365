"""The smallest things the loop can run on: scans with two balls in them, and adapted models of
small registered backbones.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from sea_peft.adapters import Adapted, Offer, Unit, families, total_cost, units_for
from sea_peft.adapters.liveness import acting
from sea_peft.backbones import Site, architectures, find_sites
from sea_peft.data.geometry import whole_geometry
from sea_peft.data.prepare import Scan
from sea_peft.loop.space import Space

OFFERS = {
    "affine": Offer(),
    "lora": Offer(levels=(1, 2)),
    "conv_adapter": Offer(levels=(4,), kinds=("block",)),
}


def scan(seed: int, size: int = 20, marked: float | None = None) -> Scan:
    """Noise with a bright ball (label 1) and a dark one (label 2), [1, s, s, s]. `marked`:
    added to all grey values.
    """
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(size, dtype=torch.float32)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    label = torch.zeros(size, size, size, dtype=torch.uint8)
    for index, share in ((1, 0.3), (2, 0.7)):
        c = size * share + float(torch.rand((), generator=generator)) * 2 - 1
        label[(z - c) ** 2 + (y - c) ** 2 + (x - c) ** 2 < (size / 5) ** 2] = index
    image = 0.2 * torch.randn(size, size, size, generator=generator)
    image += 0.8 * (label == 1) - 0.8 * (label == 2) + 0.1
    geometry = whole_geometry((size,) * 3, np.eye(4), "RAS", (1.0, 1.0, 1.0))
    return Scan(
        id=f"scan{seed}", image=image[None] + (marked or 0.0), label=label, geometry=geometry
    )


@functools.cache
def _probed(backbone: str) -> tuple[nn.Module, tuple[Site, ...], torch.Tensor]:
    architecture = architectures()[backbone]
    example = architecture.example(1, architecture.small)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = (
            architecture.build(in_channels=1, out_channels=3, **architecture.small)
            .eval()
            .requires_grad_(False)
        )
    return network, find_sites(network, example), example


@functools.cache
def _offered(backbone: str, names: tuple[str, ...]) -> tuple[Unit, ...]:
    network, sites, example = _probed(backbone)
    offers = {name: OFFERS.get(name, Offer()) for name in names}
    return acting(network, units_for(network, sites, offers), example)


def model(
    backbone: str = "segresnet",
    names: Sequence[str] = ("affine", "lora", "conv_adapter"),
    rows=(1, 2),
    seed: int = 0,
) -> Adapted:
    """A fresh adapted model: the same weights at every call."""
    import copy

    network, sites, example = _probed(backbone)
    return Adapted(
        copy.deepcopy(network), sites, _offered(backbone, tuple(names)), rows, 3, example, seed
    )


def every_family() -> tuple[str, ...]:
    """The names of all registered families."""
    return tuple(families())


def space_of(adapted: Adapted, share: float = 0.2) -> Space:
    """The model's units under a budget of its head and this share of what all of them cost."""
    units = tuple(adapted.bank.units.values())
    return Space(units, adapted.head.cost + int(share * total_cost(units)), adapted.head.cost)


def train(adapted: Adapted, unit_ids: Sequence[str], size: float = 0.1) -> None:
    """As if trained: every parameter of these units takes a random step."""
    generator = torch.Generator().manual_seed(7)
    for p in adapted.bank.parameters(unit_ids):
        p.data += size * torch.randn(p.shape, generator=generator)


def one_per_group(adapted: Adapted) -> list[str]:
    """A set that can be open at once: of every (site, family) its first unit."""
    first: dict[str, str] = {}
    for unit in adapted.bank.units.values():
        first.setdefault(unit.group, unit.id)
    return list(first.values())


def state(adapted: Adapted) -> Mapping[str, torch.Tensor]:
    """Everything trainable, and the backbone."""
    bank = adapted.bank
    backbone = {
        f"backbone/{name}": tensor.clone() for name, tensor in adapted.backbone.state_dict().items()
    }
    head = {f"head/{name}": tensor.clone() for name, tensor in adapted.head.state_dict().items()}
    return bank.state_dict(bank.built) | head | backbone
