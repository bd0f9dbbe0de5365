import numpy as np
import pytest
import torch

from sea_peft.data.codes import IGNORED
from sea_peft.data.crops import CropSampler
from sea_peft.data.geometry import whole_geometry
from sea_peft.data.hold_out import hold_out_labels
from sea_peft.data.prepare import Scan
from sea_peft.data.sliding import SlidingWindow
from sea_peft.errors import DataError


def make(shape, **boxes):
    """A scan with one label per box."""
    label = np.zeros(shape, np.uint8)
    for index, box in enumerate(boxes.values(), start=1):
        label[box] = index
    image = torch.from_numpy(np.random.default_rng(0).random((2, *shape), dtype=np.float32) + 0.5)
    return Scan(
        id="p7",
        image=image,
        label=torch.from_numpy(label),
        geometry=whole_geometry(shape, np.eye(4), "RAS", (1, 1, 1)),
    )


@pytest.mark.parametrize("fraction", [0.2, 0.3, 0.5])
def test_held_out_labels_count_once_and_the_image_stays_whole(fraction):
    scan = make((12, 40, 10), organ=np.s_[3:8, 10:30, 2:7])
    before = scan.label.clone()
    kept, held = hold_out_labels(scan, fraction)
    assert kept.image is scan.image
    assert held.image is scan.image
    assert torch.equal(
        (kept.label == IGNORED), (held.label != IGNORED)
    )  # every voxel counts in one of them
    assert torch.equal(torch.where(kept.label == IGNORED, held.label, kept.label), before)
    assert torch.equal(scan.label, before)  # copies
    share = float((held.label == 1).sum() / (scan.label == 1).sum())
    assert share == pytest.approx(fraction, abs=0.06)


def test_every_label_has_voxels_and_surroundings_in_both_parts():
    """Small organs at one end of the body: a single cut through the scan would take them whole."""
    scan = make(
        (60, 24, 24),
        long=np.s_[5:55, 3:8, 3:8],
        at_the_end=np.s_[50:56, 14:20, 4:8],
        inside=np.s_[52:54, 12:16, 14:20],
    )
    parts = hold_out_labels(scan)
    for index in (1, 2, 3):
        near = torch.nn.functional.max_pool3d((scan.label == index)[None].float(), 3, 1, 1)[
            0
        ].bool() & (scan.label == 0)
        whole = int((scan.label == index).sum())
        shares = [int((part.label == index).sum()) / whole for part in parts]
        assert shares == [pytest.approx(0.7, abs=0.15), pytest.approx(0.3, abs=0.15)]
        assert all(bool((part.label[near] == 0).any()) for part in parts)


def test_what_was_not_annotated_counts_in_neither_part():
    scan = make((20, 8, 8), organ=np.s_[2:12, 2:6, 2:6])
    scan.label[15:] = IGNORED
    for part in hold_out_labels(scan):
        assert bool((part.label[15:] == IGNORED).all())


def test_a_label_of_one_voxel_is_trained_on_and_alone_is_an_error():
    speck = np.s_[10:11, 4:5, 4:5]
    kept, held = hold_out_labels(make((20, 8, 8), organ=np.s_[2:8, 2:6, 2:6], speck=speck))
    assert 2 in kept.label
    assert 2 not in held.label
    with pytest.raises(DataError, match="case p7: its labels are too small"):
        hold_out_labels(make((20, 8, 8), speck=speck))
    with pytest.raises(DataError, match="case p7: nothing is labelled"):
        hold_out_labels(make((20, 8, 8)))


@pytest.mark.parametrize("part", [0, 1])
def test_crops_of_a_part_are_centred_on_voxels_that_count(part):
    """A crop may show what does not count, but never centres on it, where the scan's border
    leaves the choice.
    """
    scan = make((8, 60, 8), organ=np.s_[2:6, 5:55, 2:6])
    half = hold_out_labels(scan)[part]
    images, labels = CropSampler([half], SlidingWindow(patch=(8, 9, 8)), 0).batch(0, 40)
    assert images.shape[0] == 40
    assert bool((labels == IGNORED).any())
    assert int((labels[:, 4, 4, 4] == IGNORED).sum()) <= 4  # moved inward at the scan's ends
