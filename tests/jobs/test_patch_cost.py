"""A patch below the weights' own is said, with what it costs."""

from __future__ import annotations

import re

from sea_peft.data.prepare import prepare
from sea_peft.jobs.options import AdaptOptions
from sea_peft.jobs.patch_cost import cost_of_patch
from sea_peft.jobs.setup import prepare_run


def _cost(**options) -> str | None:
    setup = prepare_run(AdaptOptions(backbone="unet", policy="affine", **options), print)
    case = setup.split.support[0]
    return cost_of_patch(
        setup, prepare(case, setup.recipe, setup.dataset.channels, setup.dataset.labels)
    )


def test_a_smaller_patch_is_said_with_the_dice_of_both() -> None:
    sentence = _cost(data="phantom:source", patch=(32, 32, 16))
    assert sentence is not None
    small, own = (
        float(n)
        for n in re.search(r"is ([\d.]+) with it and ([\d.]+) with theirs", sentence).groups()
    )
    assert own > 0.9  # the source that the weights were trained on
    assert small < own - 0.05
    assert "--patch 48,48,32" in sentence


def test_nothing_is_said_of_the_weights_own_patch() -> None:
    assert _cost(data="phantom:source") is None


def test_where_the_network_knows_no_label_nothing_can_be_measured() -> None:
    sentence = _cost(data="phantom:source", patch=(32, 32, 32), labels=("thing=1",))
    assert sentence is not None
    assert "knows none of the labels" in sentence
