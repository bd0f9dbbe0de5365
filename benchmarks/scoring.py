"""Test Dice of a model as it stands, for experiments that train by themselves and not through
`adapt`.
"""

from __future__ import annotations

import torch

from sea_peft.backbones import batch_for_masks
from sea_peft.data.prepare import prepare, restore
from sea_peft.jobs.inference import dice_per_label, mean_dice, probabilities
from sea_peft.jobs.setup import Setup


def mean_test_dice(setup: Setup, cases: int) -> float:
    """Mean over labels of the mean over the first `cases` test cases, on their own grids."""
    per_case = {}
    for case in setup.split.test[:cases]:
        scan = prepare(case, setup.recipe, setup.dataset.channels)
        output = probabilities(
            setup.model,
            scan,
            setup.window,
            torch.device("cpu"),
            batch_for_masks(setup.model.backbone),
        )[0]
        stored = case.label()
        assert stored is not None, "the split holds labelled cases only"
        per_case[case.id] = dice_per_label(
            restore(output, scan.geometry), stored.array, setup.dataset.labels
        )
    return mean_dice(per_case, tuple(setup.dataset.labels))[0]
