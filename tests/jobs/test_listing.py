"""What there is, counted on the networks themselves; also on those that come without weights."""

from __future__ import annotations

import pytest

from sea_peft.backbones import architecture, architectures
from sea_peft.backbones.typed import Typed
from sea_peft.errors import UsageError
from sea_peft.jobs.listing import backbone_info, list_adapters, list_backbones


def _check_offer(name: str) -> None:
    if not architecture(name).installed:
        pytest.skip(f"{name} needs {architecture(name).needs.package}")
    offered = list_adapters(Typed(backbone=name), "default")
    assert offered.parameters == architecture(name).parameters({}) or architecture(name).weights
    assert offered.limit == offered.parameters // 100
    assert 0 < offered.fits <= len(offered.units)
    assert {"affine", "lora"} <= {unit.family for unit in offered.units} or name.startswith("unet")
    for row in offered.families:
        assert row.cheapest <= row.dearest <= row.total
        assert row.fits <= row.units


@pytest.mark.parametrize("name", ["unet3d", "mednext_s", "segresnet"])
def test_units_and_costs_are_listed_and_what_fits_into_1_percent(name):
    _check_offer(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", architectures())
def test_units_and_costs_are_listed_on_every_backbone_at_full_size(name):
    _check_offer(name)


def test_every_architecture_is_listed_with_its_parameters():
    rows = {row.architecture: row for row in list_backbones()}
    assert rows.keys() >= architectures().keys()
    assert rows["swinunetr"].weights is None
    assert rows["swinunetr"].parameters == 62_186_708


def test_an_architecture_without_weights_is_described():
    info = backbone_info("obelisk")
    assert not info.trained
    assert info.limits.divisor == (16, 16, 16)
    assert info.sites["head", "conv"] == 1
    assert backbone_info("phantom_unet").trained


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match="needs the package dynamic-network-architectures; install it with"
    ):
        list_adapters(Typed(backbone="nnunet_plain"), "default")
    rows = {row.architecture: row for row in list_backbones()}
    assert rows["nnunet_resenc"].parameters is None
