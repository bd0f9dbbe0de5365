import math

import numpy as np
import pytest
import torch
from synthetic_scans import ball

from sea_peft.data.metrics import dice, mean, score, score_labels

SPACING = (0.8, 1.3, 3.0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tolerance", [1.0, 2.0])
def test_numbers_agree_with_monai(seed, tolerance):
    from monai.metrics import (
        compute_confusion_matrix_metric,
        compute_dice,
        compute_hausdorff_distance,
        compute_surface_dice,
        get_confusion_matrix,
    )

    rng = np.random.default_rng(seed)
    reference = ball((24, 20, 12), 0.3)
    predicted = np.roll(reference, (2, -1, 1), (0, 1, 2)) ^ (rng.random(reference.shape) < 0.01)
    if seed == 3:  # touching the border of the scan
        reference[:, 0] = predicted[:, 0] = True
    ours = score(predicted, reference, SPACING, tolerance)
    pair = [torch.from_numpy(a[None, None]).float() for a in (predicted, reference)]
    assert ours.dice == pytest.approx(compute_dice(*pair).item(), abs=1e-6)
    assert ours.hd95 == pytest.approx(
        compute_hausdorff_distance(
            *pair, include_background=True, percentile=95, spacing=SPACING
        ).item(),
        abs=1e-4,
    )
    surface = compute_surface_dice(
        *pair, [tolerance], include_background=True, spacing=SPACING
    ).item()
    assert ours.nsd == pytest.approx(surface, abs=1e-5)
    matrix = get_confusion_matrix(*pair)
    for name in ("sensitivity", "specificity", "precision"):
        assert getattr(ours, name) == pytest.approx(
            compute_confusion_matrix_metric(name, matrix).item(), abs=1e-6
        )
    millilitres = 0.8 * 1.3 * 3.0 / 1000
    assert ours.volume_difference == pytest.approx(
        (predicted.sum() - reference.sum()) * millilitres
    )
    assert ours.reference_volume == pytest.approx(reference.sum() * millilitres)


def test_a_perfect_mask():
    mask = ball((12, 12, 12))
    ours = score(mask, mask, SPACING)
    assert (ours.dice, ours.nsd, ours.hd95, ours.sensitivity, ours.specificity, ours.precision) == (
        1,
        1,
        0,
        1,
        1,
        1,
    )


def nan_where(values):
    return ["nan" if math.isnan(v) else v for v in values]


def test_conventions_for_empty_masks():
    mask, empty = ball((8, 8, 8)), np.zeros((8, 8, 8), bool)

    def row(predicted, reference):
        s = score(predicted, reference, SPACING)
        return nan_where([s.dice, s.nsd, s.hd95, s.sensitivity, s.precision])

    assert row(empty, empty) == ["nan"] * 5
    assert row(empty, mask) == [0, 0, "nan", 0, "nan"]
    assert row(mask, empty) == [0, 0, "nan", "nan", 0]
    assert score(empty, empty, SPACING).specificity == 1
    assert score(empty, empty, SPACING).volume_difference == 0


def test_each_label_by_itself_and_means_without_nan():
    predicted, reference = np.zeros((2, 6, 6, 6), np.uint8)
    predicted[1:4, 1:4, 1:4] = 2
    reference[1:4, 1:4, 1:5] = 2
    scores = score_labels(predicted, reference, ["liver", "spleen"], SPACING)
    assert list(scores) == ["liver", "spleen"]
    assert math.isnan(scores["liver"].dice)
    assert scores["spleen"].dice == pytest.approx(2 * 27 / (27 + 36))
    assert scores["spleen"].dice == dice(predicted == 2, reference == 2)
    assert mean(s.dice for s in scores.values()) == scores["spleen"].dice
    assert math.isnan(mean([]))
