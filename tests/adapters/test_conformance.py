"""DESIGN 1–5 for every registered family on every registered backbone, none of them named here."""

from __future__ import annotations

import dataclasses
import functools

import pytest
from conformance import CHECKS, at_every_site, bench, cases, check_acts, check_merge, check_roundtrip, offered

from sea_peft.adapters import Unit, families
from sea_peft.backbones import architectures


@functools.cache
def _offered(backbone: str, family: str) -> tuple[Unit, ...]:
    return offered(bench(backbone), family)


def _units(backbone: str, family: str, placement: str, level: str) -> tuple[Unit, ...]:
    units = at_every_site(_offered(backbone, family), placement, level)
    if not units:
        pytest.skip(f"{backbone} has no site that {family} {placement} fits and acts at")
    return units


def _name(case: tuple[str, str, str, str]) -> str:
    return "-".join(part for part in case if part)


@pytest.mark.parametrize("case", cases(), ids=_name)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_family_on_every_backbone(check, case):
    check(bench(case[0]), _units(*case))


@pytest.mark.parametrize("case", cases(), ids=_name)
def test_save_and_load_reproduce_the_outputs(case, tmp_path):
    check_roundtrip(bench(case[0]), _units(*case), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(), ids=_name)
@pytest.mark.parametrize("check", [check_acts, check_merge], ids=lambda check: check.__name__)
def test_every_single_site_of_large_probes(check, case):
    check(dataclasses.replace(bench(case[0]), thorough=True), _units(*case))


@pytest.mark.parametrize("family", families())
def test_every_family_acts_on_some_backbone(family):
    assert any(_offered(backbone, family) for backbone in architectures())


@pytest.mark.parametrize("family", families())
def test_ids_are_unique_and_groups_hold_the_levels_of_one_site(family):
    for backbone in architectures():
        units = _offered(backbone, family)
        assert len({unit.id for unit in units}) == len(units)
        assert len({unit.group for unit in units}) == len({unit.site.path for unit in units})


@pytest.mark.parametrize("family", families())
def test_a_family_says_where_it_comes_from_and_what_it_computes(family):
    words = families()[family].__doc__ or ""
    assert "Source:" in words
    assert "Cost" in words or "cost" in words
    assert families()[family].learning_rate > 0
