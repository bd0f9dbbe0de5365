"""Outlines, filled again by readers that share nothing with them."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.path import Path
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, label

from sea_peft.data.contours import outlines


def by_centres(parts, shape):
    """Voxels whose centre is in a part."""
    rows, columns = np.indices(shape)
    centres = np.column_stack([columns.ravel(), rows.ravel()])
    inside = [
        Path(np.vstack([part, part[:1]])).contains_points(centres).reshape(shape) for part in parts
    ]
    return np.logical_xor.reduce([np.zeros(shape, dtype=bool), *inside])


def by_area(parts, shape, times=16):
    """Voxels of which more than half is in a part, as a painter of pixels sees it."""
    picture = Image.new("1", (shape[1] * times, shape[0] * times))
    for part in parts:
        ImageDraw.Draw(picture).polygon(
            [tuple(corner) for corner in (part + 0.5) * times - 0.5], fill=1
        )
    fine = np.asarray(picture).reshape(shape[0], times, shape[1], times)
    return fine.mean(axis=(1, 3)) > 0.5


@pytest.mark.parametrize("seed", range(8))
def test_outlines_of_anything_give_the_mask_back(seed):
    """Parts in holes of parts, walls of one voxel, voxels that share a corner alone, and parts
    at the border.
    """
    rng = np.random.default_rng(seed)
    plane = gaussian_filter(rng.normal(size=(40, 52)), 0.3 * seed) > 0
    parts = outlines(plane)
    np.testing.assert_array_equal(by_centres(parts, plane.shape), plane)
    assert label(plane, np.ones((3, 3)))[1] <= len(parts) <= label(plane)[1]
    if seed >= 6:  # without single voxels, half of which outlines cut away
        assert (by_area(parts, plane.shape) != plane).mean() < 0.01


def test_a_ring_is_one_contour_with_a_keyhole():
    rows, columns = np.indices((60, 60))
    radius = np.hypot(rows - 30, columns - 29)
    ring = (radius < 22) & (radius > 9)
    (part,) = outlines(ring)
    x, y = part.T
    area = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    assert area == pytest.approx(
        ring.sum(), abs=1e-9
    )  # half a voxel less without the hole, which gets it
    np.testing.assert_array_equal(by_centres([part], ring.shape), ring)
    np.testing.assert_array_equal(by_area([part], ring.shape), ring)


def test_nothing_has_no_outline():
    assert outlines(np.zeros((4, 5), dtype=bool)) == []


def test_corners_where_it_goes_straight_on_are_left_out():
    (part,) = outlines(np.ones((4, 7), dtype=bool))
    assert len(part) == 8
    assert part.min(axis=0).tolist() == [-0.5, -0.5]
    assert part.max(axis=0).tolist() == [6.5, 3.5]
