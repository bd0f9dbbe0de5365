import numpy as np
import pytest
import torch

from sea_peft.data.augmentation import NONE
from sea_peft.data.crops import CropSampler, labelled_crop
from sea_peft.data.geometry import whole_geometry
from sea_peft.data.prepare import Scan
from sea_peft.data.sliding import SlidingWindow
from sea_peft.errors import DataError


def make(shape=(20, 18, 16), labels=2, seed=0, name="x"):
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    for index in range(1, labels + 1):
        label[2 * index : 2 * index + 2, 4:9, 4:9] = index
    image = torch.from_numpy(rng.random((2, *shape), dtype=np.float32) + 0.5)
    return Scan(
        id=name,
        image=image,
        label=torch.from_numpy(label),
        geometry=whole_geometry(shape, np.eye(4), "RAS", (1, 1, 1)),
    )


def test_batches_are_a_function_of_seed_and_step():
    scans = [make(seed=s) for s in range(3)]
    sampler = CropSampler(scans, SlidingWindow(patch=(8, 8, 8)), seed=5)
    first = [sampler.batch(step, 2) for step in range(6)]
    torch.manual_seed(99)
    np.random.default_rng()
    state = torch.get_rng_state()
    again = CropSampler(scans, SlidingWindow(patch=(8, 8, 8)), seed=5)
    for step in (4, 0, 5, 2):
        for a, b in zip(again.batch(step, 2), first[step], strict=True):
            assert torch.equal(a, b)
    for whole, part in zip(first[2], again.batch(2, 2, [1]), strict=True):
        assert torch.equal(whole[1:], part), "a process's share of a batch"
    assert torch.equal(torch.get_rng_state(), state)
    other = CropSampler(scans, SlidingWindow(patch=(8, 8, 8)), seed=6).batch(0, 2)
    assert not torch.equal(other[0], first[0][0])
    assert not torch.equal(first[0][0], first[1][0])


def test_shapes_types_and_balance():
    sampler = CropSampler([make()], SlidingWindow(patch=(8, 6, 4)), seed=0)
    image, label = sampler.batch(0, 40)
    assert image.shape == (40, 2, 8, 6, 4)
    assert label.shape == (40, 8, 6, 4)
    assert (image.dtype, label.dtype) == (torch.float32, torch.uint8)
    positive = (label[::2].flatten(1) > 0).any(1)
    assert positive.all()  # every second crop is centred on a label
    assert {1, 2} <= set(label[::2].unique().tolist())


def test_rare_labels_are_drawn_as_often_as_common_ones():
    scan = make(labels=1)
    scan.label[18, 16, 14] = 2
    sampler = CropSampler([scan], SlidingWindow(patch=(3, 3, 3)), seed=1)
    _, label = sampler.batch(0, 200)
    rare = (label[::2].flatten(1) == 2).any(1).float().mean()
    assert 0.35 < float(rare) < 0.65


@pytest.mark.parametrize("factor", [1.0, 0.01])
def test_jitter_stays_within_a_tenth_of_each_channels_own_grey_values_and_the_source_is_untouched(
    factor,
):
    """However wide the window is that the recipe maps to 0..1."""
    scan, window = make(), SlidingWindow(patch=(8, 8, 8))
    scan.image.mul_(factor)
    before = scan.image.clone()
    plain, _ = CropSampler([scan], window, 0, NONE).batch(3, 50)
    image, _ = CropSampler([scan], window, 0).batch(3, 50)
    mean, deviation = plain.mean((2, 3, 4)), plain.std((2, 3, 4))
    gains = image.std((2, 3, 4)) / deviation
    shifts = (image.mean((2, 3, 4)) - mean) / deviation
    for found, about in ((gains, 1.0), (shifts, 0.0)):
        assert -0.1 - 1e-5 <= float((found - about).min()) < -0.05
        assert 0.05 < float((found - about).max()) <= 0.1 + 1e-5
    assert torch.equal(scan.image, before)


def test_fixed_crops_are_fixed_without_jitter_and_visit_each_scan():
    scans = [make(seed=s) for s in range(3)]
    for number, scan in enumerate(scans):
        scan.image.fill_(float(number))
    sampler = CropSampler(scans, SlidingWindow(patch=(8, 8, 8)), seed=0)
    image, label = sampler.fixed(6)
    assert image[:, 0, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(sampler.fixed(6)[1], label)
    assert (label[:3].flatten(1) > 0).any(1).all()


def test_small_scans_are_padded_with_zero():
    scan = make(shape=(6, 18, 5), labels=1)
    image, label = CropSampler([scan], SlidingWindow(patch=(8, 8, 8)), seed=0).fixed(2)
    assert image.shape == (2, 2, 8, 8, 8)
    assert (image[:, :, 0] == 0).all()
    assert (image[:, :, :, :, -1] == 0).all()
    assert int((label > 0).sum()) > 0


def test_scans_that_cannot_be_cropped():
    with pytest.raises(DataError, match="no scan"):
        CropSampler([], SlidingWindow(patch=(8, 8, 8)), 0)
    scan = make(name="p7")
    with pytest.raises(DataError, match="case p7 has no label"):
        CropSampler(
            [Scan(id="p7", image=scan.image, label=None, geometry=scan.geometry)],
            SlidingWindow(patch=(8, 8, 8)),
            0,
        )


def test_a_scan_with_nothing_labelled_still_gives_background():
    scan = make(labels=0)
    _, label = CropSampler([scan], SlidingWindow(patch=(8, 8, 8)), 0).batch(0, 4)
    assert int(label.sum()) == 0


def test_around_a_small_scan_stands_what_the_window_says():
    """In crops, in the boxes that are turned, and in `labelled_crop`, as in prediction."""
    scan, window = make((6, 6, 6)), SlidingWindow(patch=(10, 10, 10), pad=-3.0)
    images, labels = CropSampler([scan], window, 0, NONE).batch(0, 4)
    image, label = labelled_crop(scan, window)
    for found, known in ((images[0], labels[0]), (image, label)):
        outside = torch.ones(10, 10, 10, dtype=torch.bool)
        outside[2:8, 2:8, 2:8] = False
        assert bool((found[0][outside] == -3.0).all())
        assert bool((known[outside] == 0).all())
        torch.testing.assert_close(found[:, 2:8, 2:8, 2:8], scan.image)
    turning = NONE.model_copy(update={"spatial_p": 1.0})
    turned, _ = CropSampler([scan], window, 0, turning).batch(0, 4)
    assert float((turned == -3.0).float().mean()) > 0.3
