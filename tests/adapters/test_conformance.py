"""DESIGN 1–5 for every registered family on every registered backbone, none of them named here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import pytest
from benches import Bench, bench, of_every_family, offered, units_of
from conformance import CHECKS, check_acts, check_merge

from sea_peft.adapters import Offer, Unit, families, units_for
from sea_peft.backbones import architectures

# one that needs a package which is not there cannot be built
BACKBONES = [name for name, architecture in architectures().items() if architecture.installed]


@functools.cache
def together(
    check: Callable[[Bench, Sequence[Unit]], None], backbone: str
) -> AssertionError | None:
    """What a check says of the handfuls of all families at once. A property that all units have
    when they are open together is one that each has, so one pass over a network serves every
    family.
    """
    try:
        check(bench(backbone), of_every_family(backbone))
    except AssertionError as error:
        return error
    return None


@pytest.mark.parametrize("family", families())
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_family_on_every_backbone(check, backbone, family):
    units = units_of(backbone, family)
    if not units:
        pytest.skip(f"{backbone} has no site that {family} fits and acts at")
    if together(check, backbone) is not None:  # alone, to know which family it is
        check(bench(backbone), units)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_all_families_together_on_every_backbone(check, backbone):
    error = together(check, backbone)
    if error is not None:
        raise error


@pytest.mark.slow
@pytest.mark.parametrize("family", families())
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("check", [check_acts, check_merge], ids=lambda check: check.__name__)
def test_every_single_unit(check, backbone, family):
    units = offered(bench(backbone), family)
    if units:
        check(bench(backbone), units)


@pytest.mark.parametrize("family", families())
def test_every_kind_and_placement_of_a_family_is_met_on_some_backbone(family):
    known = families()[family]
    met = {(u.site.kind, u.placement) for backbone in BACKBONES for u in units_of(backbone, family)}
    assert met == {(kind, placement) for kind in known.kinds for placement in known.placements}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_ids_are_unique_and_groups_hold_the_levels_of_one_site(backbone):
    held = bench(backbone)
    units = units_for(held.network, held.sites, {family: Offer() for family in families()})
    assert len({unit.id for unit in units}) == len(units)
    assert len({unit.group for unit in units}) == len(
        {(unit.family, unit.site.path) for unit in units}
    )


@pytest.mark.parametrize("family", families())
def test_a_family_says_where_it_comes_from_and_what_it_computes(family):
    words = families()[family].__doc__ or ""
    assert "Source:" in words
    assert "Cost" in words or "cost" in words
    assert families()[family].learning_rate > 0
