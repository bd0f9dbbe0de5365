"""THE registry: family × site × level × placement → unit. Every backbone and every policy uses
it.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from sea_peft import extensions
from sea_peft.adapters.base import Adapter
from sea_peft.backbones import Site
from sea_peft.errors import UsageError, WeightsError

_FAMILIES: dict[str, type[Adapter]] = {}


def register(family: type[Adapter]) -> type[Adapter]:
    """Class decorator that puts a family on offer. The conformance tests then cover it
    automatically.
    """
    if family.family in _FAMILIES:
        raise ValueError(f"adapter family {family.family!r} is registered twice")
    _FAMILIES[family.family] = family
    return family


def families() -> dict[str, type[Adapter]]:
    """Every registered family by name, in the order in which units of one site act. Includes those
    of installed packages.
    """
    extensions.load("families")
    return dict(sorted(_FAMILIES.items(), key=lambda item: (item[1].order, item[0])))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """One thing that can be switched on: family × site × level × placement.

    Attributes:
        family: its adapter family.
        level: its size; 0 if the family has one.
        placement: at its site; empty if the family has one.
        site: its place in the backbone.
        cost: number of its trainable parameters (real numel).
    """

    family: str
    level: int
    placement: str
    site: Site
    cost: int

    @property
    def id(self) -> str:
        """Stable name: `lora-4@down_layers.1.1.conv1.conv`,
        `conv_adapter.parallel-4@down_layers.1.1`, `affine@conv_final.0`.
        """
        placement = f".{self.placement}" if self.placement else ""
        level = f"-{self.level}" if self.level else ""
        return f"{self.family}{placement}{level}@{self.site.path}"

    @property
    def group(self) -> str:
        """(site, family), as one name. At most one unit of a group is on at a time."""
        return f"{self.family}@{self.site.path}"

    def build(self, backbone: nn.Module, seed: int) -> Adapter:
        """A new module for this unit, which is the identity. Its random values depend on seed
        and id alone.
        """
        digest = hashlib.sha256(f"{seed}:{self.id}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        module = backbone.get_submodule(self.site.path)
        return _FAMILIES[self.family](self.site, module, self.level, self.placement, generator)


@dataclasses.dataclass(frozen=True)
class Offer:
    """The part of one family that a budget profile offers. None stands for all that the family has.

    Attributes:
        levels: the sizes on offer.
        placements: the placements on offer.
        kinds: the kinds of site on offer.
    """

    levels: tuple[int, ...] | None = None
    placements: tuple[str, ...] | None = None
    kinds: tuple[str, ...] | None = None

    def holds(self, unit: Unit) -> bool:
        """Whether this unit of the family is on offer."""
        asked = (
            (unit.level, self.levels),
            (unit.placement, self.placements),
            (unit.site.kind, self.kinds),
        )
        return all(allowed is None or own in allowed for own, allowed in asked)


def units_for(
    backbone: nn.Module, sites: Sequence[Site], offers: Mapping[str, Offer]
) -> tuple[Unit, ...]:
    """The audit space: every unit that the offers allow at the sites, by execution order, family,
    placement and level.

    Raises:
        UsageError: a family, level, placement or kind of site is unknown.
    """
    registered = families()
    for name, offer in offers.items():
        if name not in registered:
            raise UsageError(
                f"No adapter family is called {name!r}; there are {', '.join(registered)};"
                f" {extensions.way_in('families')}."
            )
        known = registered[name]
        offered: tuple[tuple[Iterable[int | str] | None, Iterable[int | str], str], ...] = (
            (offer.levels, known.levels, "level"),
            (offer.placements, known.placements, "placement"),
            (offer.kinds, known.kinds, "kind of site"),
        )
        for asked, has, what in offered:
            unknown = [str(a) for a in asked or () if a not in has]
            if unknown:
                listed = ", ".join(sorted(str(h) for h in has))
                raise UsageError(f"{name} has no {what} {unknown[0]}; it has {listed}.")
    made = []
    for site in sites:
        module = backbone.get_submodule(site.path)
        for name, family in registered.items():
            if name not in offers or not _acts_at(family, site):
                continue
            offer = offers[name]
            if offer.kinds is not None and site.kind not in offer.kinds:
                continue
            for placement in offer.placements or family.placements:
                for level in offer.levels or family.levels:
                    if family.fits(site, module, level, placement):
                        made.append(
                            _with_cost(
                                Unit(
                                    family=name, level=level, placement=placement, site=site, cost=0
                                ),
                                backbone,
                            )
                        )
    return tuple(made)


def _acts_at(family: type[Adapter], site: Site) -> bool:
    return site.kind in family.kinds and site.stage in family.stages


def _with_cost(unit: Unit, backbone: nn.Module) -> Unit:
    """The unit with its cost counted on the real module."""
    return dataclasses.replace(
        unit, cost=sum(p.numel() for p in unit.build(backbone, seed=0).parameters())
    )


def total_cost(units: Iterable[Unit]) -> int:
    """Sum of the units' costs, in parameters."""
    return sum(unit.cost for unit in units)


def unit_at(
    backbone: nn.Module, sites: Sequence[Site], family: str, level: int, placement: str, path: str
) -> Unit:
    """The unit of this family, level and placement at the site `path`. Raises WeightsError if
    there is none.
    """
    site = next((s for s in sites if s.path == path), None)
    known = families().get(family)
    if (
        site is None
        or known is None
        or not _acts_at(known, site)
        or level not in known.levels
        or placement not in known.placements
        or not known.fits(site, backbone.get_submodule(path), level, placement)
    ):
        raise WeightsError(
            f"This backbone has no place for {family} of this level and placement at {path}; the"
            " adapter was made for another one."
        )
    return _with_cost(
        Unit(family=family, level=level, placement=placement, site=site, cost=0), backbone
    )
