"""Augmented crops: repeatable, the label moves with the image, nothing from outside the scan
comes in, and bodies turn rigidly in mm.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sea_peft.data.augment import box_for, recolour, turn
from sea_peft.data.augmentation import FULL, NONE, Augmentation, load_augmentation
from sea_peft.data.codes import IGNORED
from sea_peft.data.crops import CropSampler
from sea_peft.data.geometry import whole_geometry
from sea_peft.data.prepare import Scan
from sea_peft.data.sliding import SlidingWindow
from sea_peft.errors import UsageError

PATCH = (16, 12, 8)
ALWAYS = Augmentation(
    spatial_p=1,
    rotation=20,
    scaling=0.2,
    gain=0,
    shift=0,
    gamma_p=0,
    noise_p=0,
    blur_p=0,
    low_resolution_p=0,
)


def _scan(image: torch.Tensor, label: torch.Tensor, spacing=(1.0, 1.0, 1.0)) -> Scan:
    geometry = whole_geometry(tuple(label.shape), np.diag([*spacing, 1.0]), "RAS", spacing)
    return Scan(id="p", image=image, label=label, geometry=geometry)


def _ball(shape=(60, 60, 60), radius=9.0, spacing=(1.0, 1.0, 1.0)) -> Scan:
    grid = np.indices(shape)
    middle = (np.asarray(shape) - 1) / 2
    distance = np.sqrt(sum(((grid[a] - middle[a]) * spacing[a]) ** 2 for a in range(3)))
    label = torch.from_numpy((distance <= radius).astype(np.uint8))
    return _scan(label[None].float(), label, spacing)


def test_the_same_seed_and_step_give_the_same_crop() -> None:
    scan = _ball()
    first, again = (
        CropSampler([scan], SlidingWindow(patch=PATCH), 3, FULL).batch(7, 4) for _ in range(2)
    )
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(
        CropSampler([scan], SlidingWindow(patch=PATCH), 4, FULL).batch(7, 4)[0], first[0]
    )


def test_no_random_state_is_touched() -> None:
    before, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    CropSampler([_ball()], SlidingWindow(patch=PATCH), 0, FULL).batch(0, 8)
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(numbers, np.random.get_state()[1])  # noqa: NPY002


def test_none_leaves_crops_as_they_are() -> None:
    scan = _scan(torch.rand(1, 20, 20, 20) + 1, torch.ones(20, 20, 20, dtype=torch.uint8))
    images, _ = CropSampler([scan], SlidingWindow(patch=PATCH), 0, NONE).batch(0, 6)
    windows = scan.image[0].unfold(0, 16, 1).unfold(1, 12, 1).unfold(2, 8, 1).reshape(-1, *PATCH)
    for image in images:
        assert bool((windows == image[0]).all(dim=(1, 2, 3)).any())


def test_the_label_moves_with_the_image() -> None:
    images, labels = CropSampler([_ball()], SlidingWindow(patch=(24, 24, 24)), 0, ALWAYS).batch(
        0, 10
    )
    inside = images[:, 0] > 0.5
    assert (inside == (labels == 1)).float().mean() > 0.99
    assert len({int(n) for n in labels.sum(dim=(1, 2, 3))}) > 5  # scaled, so not all of one size


def test_rotation_and_scaling_bring_no_border_in() -> None:
    whole = _scan(torch.ones(1, 80, 80, 80), torch.ones(80, 80, 80, dtype=torch.uint8))
    rng = np.random.default_rng(0)
    wide = box_for(ALWAYS, PATCH, (1.0, 1.0, 1.0))
    box = tuple(slice(0, side) for side in wide)
    for _ in range(200):
        image, label = turn(
            ALWAYS, whole.image[(slice(None), *box)], whole.label[box], PATCH, (1.0, 1.0, 1.0), rng
        )
        assert float(image.min()) == pytest.approx(1.0, abs=1e-5)
        assert int(label.min()) == 1


def test_bodies_turn_in_mm_and_not_in_voxels() -> None:
    """A ball scanned in thick slices stays a ball of the same volume when it is turned alone."""
    spacing = (1.0, 1.0, 4.0)
    spec = ALWAYS.model_copy(update={"scaling": 0.0, "rotation": 45.0})
    scan = _ball((64, 64, 24), 12.0, spacing)
    wide = box_for(spec, (40, 40, 12), spacing)
    middle = tuple(
        slice(n // 2 - w // 2, n // 2 + (w + 1) // 2)
        for n, w in zip((90, 90, 40), wide, strict=True)
    )
    big = _ball((90, 90, 40), 12.0, spacing)
    rng = np.random.default_rng(1)
    volumes = [
        int(
            (
                turn(
                    spec,
                    big.image[(slice(None), *middle)],
                    big.label[middle],
                    (40, 40, 12),
                    spacing,
                    rng,
                )[1]
                == 1
            ).sum()
        )
        for _ in range(20)
    ]
    own = int(scan.label.sum())
    assert np.mean(volumes) == pytest.approx(own, rel=0.08)
    assert max(volumes) < 1.2 * own


def test_voxels_that_do_not_count_stay_so() -> None:
    scan = _ball()
    scan.label[:30] = IGNORED
    _, labels = CropSampler([scan], SlidingWindow(patch=PATCH), 0, ALWAYS).batch(0, 10)
    assert set(labels.unique().tolist()) <= {0, 1, IGNORED}
    assert IGNORED in labels


def test_grey_values_stay_finite_and_change() -> None:
    image = torch.rand(2, *PATCH)
    busy = Augmentation(gamma_p=1, noise_p=1, blur_p=1, low_resolution_p=1, bias_field_p=1)
    for seed in range(20):
        changed = recolour(busy, image, np.random.default_rng(seed))
        assert changed.shape == image.shape
        assert changed.dtype == torch.float32
        assert bool(torch.isfinite(changed).all())
        assert not torch.equal(changed, image)
    assert bool(
        torch.isfinite(recolour(busy, torch.zeros(1, *PATCH), np.random.default_rng(0))).all()
    )


def test_a_file_overrides_the_default_and_bad_files_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("rotation = 30\nspatial_p = 1.0\n")
    assert load_augmentation(str(path)) == FULL.model_copy(
        update={"rotation": 30.0, "spatial_p": 1.0}
    )
    assert load_augmentation("none") == NONE
    for text, why in (
        ("rotation = -1", "rotation"),
        ("flip = true", "flip"),
        ("rotation", "not valid TOML"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=why):
            load_augmentation(str(path))
    with pytest.raises(UsageError, match="choose default, full, grey or none"):
        load_augmentation("much")
