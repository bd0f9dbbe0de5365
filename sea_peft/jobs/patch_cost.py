"""The Dice that a smaller patch than the weights' own costs, measured on one shot before
training.
"""

import math
import statistics
from collections.abc import Sequence

import numpy as np

from sea_peft.backbones.batching import batch_for_masks
from sea_peft.backbones.limits import Size
from sea_peft.data.metrics import dice
from sea_peft.data.prepare import Scan
from sea_peft.jobs.inference import probabilities
from sea_peft.jobs.setup import Setup


def is_smaller(patch: Size, own: Size) -> bool:
    """Whether `patch` is smaller than the network's own along some axis."""
    return any(side < full for side, full in zip(patch, own, strict=True))


def cost_of_patch(setup: Setup, scan: Scan) -> str | None:
    """A sentence on what the run's patch costs the unadapted network; None if it is no smaller than
    the weights' own.

    `scan`: a prepared shot with its label. Its unadapted Dice is measured with both patches, over
    the labels that the backbone knows.
    """
    card = setup.backbone.pretrained.card
    patch, own = setup.window.patch, card.patch
    if not is_smaller(patch, own):
        return None
    small, full = ("×".join(map(str, sides)) for sides in (patch, own))
    said = (
        f"A patch of {small} voxels shows the network less than the {full} that {card.name} was"
        " trained with"
    )
    drawn = zip(setup.rows, setup.dataset.labels.values(), strict=True)
    known = [
        index for index, (row, codes) in enumerate(drawn, start=1) if row is not None and codes
    ]
    if not known or scan.label is None:
        return (
            f"{said}; what that costs cannot be measured, since the network knows none of the"
            " labels that are drawn."
        )
    ours, theirs = (_unadapted(setup, scan, sides, known) for sides in (patch, own))
    return (
        f"{said}: unadapted, the mean Dice on one shot is {ours:.3f} with it and {theirs:.3f} with"
        f" theirs; for the latter, use --patch {','.join(map(str, own))}."
    )


def _unadapted(setup: Setup, scan: Scan, patch: Size, known: Sequence[int]) -> float:
    """Mean Dice over the labels of these indices that are in the scan, on the recipe's grid."""
    model = setup.model.eval()
    with model.unadapted():
        window, batch = (
            setup.backbone.pretrained.card.window(patch),
            batch_for_masks(model.backbone),
        )
        (found,) = probabilities(model, scan, window, setup.device, batch)
    assert scan.label is not None
    label = scan.label.numpy()
    mask = np.concatenate([found.read(z, z + 1).argmax(dim=0).numpy() for z in range(len(label))])
    scores = [dice(mask == index, label == index) for index in known]
    there = [score for score in scores if not math.isnan(score)]
    return statistics.fmean(there) if there else 0.0
