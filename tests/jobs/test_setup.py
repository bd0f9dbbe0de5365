"""What a run begins with when nothing is said: the weights that know the data's region of the body."""

from __future__ import annotations

from pathlib import Path

import pytest

from sea_peft.errors import UsageError
from sea_peft.jobs.setup import AdaptOptions, prepare_run


def _weights(data: str, backbone: str | None = None) -> str:
    setup = prepare_run(AdaptOptions(data=data, backbone=backbone, policy="affine"), say=lambda _: None)
    return setup.backbone.pretrained.card.name


@pytest.mark.parametrize("backbone", [None, "unet"])
def test_an_embedded_target_brings_the_weights_that_know_its_region(backbone: str | None) -> None:
    assert _weights("phantom:low-field-brain", backbone) == "phantom_brain_unet"


def test_where_the_default_weights_know_the_region_they_are_taken_at_any_resolution() -> None:
    assert _weights("phantom:low-dose-ct@1.5", "unet") == "phantom_unet"


def test_an_architecture_without_weights_for_the_region_is_refused_with_the_channels() -> None:
    with pytest.raises(UsageError, match=r"phantom_segresnet takes 1 channel.*\(t1, t1c, t2, flair\)"):
        _weights("phantom:low-field-brain", "segresnet")


def test_scans_of_ones_own_are_trained_longer_than_a_phantom_is_looked_at(toy: Path, weights: Path) -> None:
    own = prepare_run(AdaptOptions(data=str(toy), weights=str(weights), budget="20%", shots=2), say=lambda _: None)
    shown = prepare_run(AdaptOptions(backbone="unet"), say=lambda _: None)
    asked = prepare_run(AdaptOptions(backbone="unet", steps=200), say=lambda _: None)
    assert [setup.settings.steps for setup in (own, shown, asked)] == [480, 120, 200]


def test_a_time_limit_is_for_all_that_is_compared() -> None:
    def seconds(policy: str) -> float | None:
        options = AdaptOptions(backbone="unet", policy=policy, time_limit=100.0)
        return prepare_run(options, say=lambda _: None).settings.time_limit

    assert seconds("affine") == 50.0, "the head alone is fitted beside it"
    assert seconds("sea") == 40.0, "and a simple topology as far as its search goes"
    assert prepare_run(AdaptOptions(backbone="unet"), say=lambda _: None).settings.time_limit is None
