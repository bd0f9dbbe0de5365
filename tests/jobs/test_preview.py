"""Pictures of scans: which way they face, where the planes lie, what is outlined and what is
shown as grey.
"""

from __future__ import annotations

import io

import numpy as np
import pytest

from sea_peft.data.geometry import whole_geometry
from sea_peft.data.recipe import Window, ZScore
from sea_peft.data.volumes import Volume
from sea_peft.jobs import preview
from sea_peft.jobs.shades import Shades, scaled_shades, shades

SHAPE, SPACING = (16, 20, 12), (2.0, 3.0, 4.0)
# towards the patient's left and back, as most scanners write
AFFINE = np.array([[-2.0, 0, 0, 20], [0, -3, 0, 40], [0, 0, 4, -20], [0, 0, 0, 1]])
UPRIGHT = whole_geometry(SHAPE, AFFINE, "RAS", SPACING)
BLUE, ORANGE, GREEN = "#56B4E9", "#E69F00", "#009E73"
PINK = "#CC79A7"


@pytest.mark.parametrize(("axis", "front"), [(0, (1, -1, -1)), (1, (-1, 1, -1)), (2, (-1, -1, 1))])
def test_planes_face_as_radiologists_look_at_them(axis: int, front: tuple[int, int, int]) -> None:
    """Top left is anterior and superior in sagittal planes, right and superior in coronal ones,
    right and anterior in axial ones.
    """
    upright = np.zeros((3, 4, 5))
    upright[front] = 1.0
    plane = preview._plane(upright, axis, 1)
    assert plane[0, 0] == 1.0
    assert plane.sum() == 1.0


@pytest.mark.parametrize(
    ("axis", "at", "said"),
    [
        (0, 0, "L 10 mm (1 of 16)"),
        (0, 15, "R 20 mm (16 of 16)"),
        (1, 0, "P 17 mm (1 of 20)"),
        (2, 11, "H 24 mm (12 of 12)"),
        (2, 0, "F 20 mm (1 of 12)"),
    ],
)
def test_a_plane_says_where_it_lies_in_the_scanner(axis: int, at: int, said: str) -> None:
    assert preview._position(UPRIGHT, axis, at) == said


def test_labels_are_outlined_side_by_side_and_errors_marked() -> None:
    """The inner label is drawn first, and the line of what surrounds it used to hide its own."""
    labelled = np.zeros(SHAPE, np.uint8)
    labelled[3:13, 4:16, 2:10] = 2
    labelled[6:10, 8:12, 4:8] = 1
    image = Volume(np.zeros(SHAPE, np.float32), AFFINE)
    names, black = ["core", "rim"], Shades(0.0, 1.0, "none")
    alone = _pixels(preview.preview_png(image, {"": labelled}, names, UPRIGHT, black, about=1))
    above_legend = alone[: int(0.9 * len(alone))]
    assert _shows(above_legend, BLUE)
    assert _shows(above_legend, ORANGE)
    assert not _shows(alone, GREEN)
    assert not _shows(alone, PINK)

    found = np.where(labelled == 1, 2, labelled).astype(np.uint8)
    compared = _pixels(
        preview.preview_png(image, {"predicted": found}, names, UPRIGHT, black, 1, labelled)
    )
    assert len(compared) > 2.5 * len(alone)  # predicted, labelled, and what differs
    assert _shows(compared[int(0.66 * len(compared)) :], PINK)


@pytest.mark.parametrize("filled", [0, 1])
def test_a_scan_that_is_all_mask_or_none_is_shown_in_its_middle(filled: int) -> None:
    mask = np.full((9, 11, 13), filled)
    assert [preview._fullest(mask, axis) for axis in range(3)] == [4, 5, 6]


def test_errors_are_of_three_kinds() -> None:
    found, wanted = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 1])
    assert preview._differences(found, wanted).tolist() == [0, 1, 2, 0, 3]


def test_air_around_the_body_is_left_out_and_air_within_it_is_not() -> None:
    plane = np.zeros((20, 20))
    plane[4:16, 4:16] = 1.0
    plane[8:12, 8:12] = 0.0  # a lung
    plane[1, 1] = 1.0  # noise
    body = preview._body(plane, Shades(0.0, 1.0, ""))
    assert body.sum() == 12 * 12
    assert body[8:12, 8:12].all()
    assert not preview._body(np.zeros((5, 5)), Shades(0.0, 1.0, "")).any()


def test_ct_is_shown_through_a_named_window() -> None:
    scan = np.linspace(-1000, 1000, 8000, dtype=np.float32).reshape(20, 20, 20)
    assert shades(scan, "CT", Window(low=-175, high=250)) == Shades(
        -175, 250, "CT window W 425 L 37.5"
    )
    assert shades(scan, "CT", Window(low=-1000, high=1000)).name == "CT window W 400 L 40"
    assert shades(scan, "ct", ZScore()).name == "ct window W 400 L 40"
    assert scaled_shades(scan, "CT", Window(low=-175, high=250)) == Shades(
        0.0, 1.0, "CT window W 425 L 37.5"
    )


def test_a_bright_lesion_on_mr_is_not_white_all_over() -> None:
    rng = np.random.default_rng(0)
    scan = np.zeros((40, 40, 40), np.float32)
    scan[5:35, 5:35, 5:35] = rng.normal(100, 10, (30, 30, 30))
    lesion = np.s_[10:16, 10:16, 10:16]  # 0.8% of the head
    scan[lesion] = rng.normal(300, 20, (6, 6, 6))
    shown = shades(scan, "flair", ZScore())
    assert (scan[lesion] < shown.high).mean() > 0.8
    assert 60 < shown.low < 100
    assert shown.name == "flair, grey values from percentile 1 to 99.9"


def _pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    return np.rint(imread(io.BytesIO(png), format="png")[..., :3] * 255).astype(int)


def _shows(picture: np.ndarray, colour: str) -> bool:
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(picture - rgb).max(axis=-1) < 8).sum() > 50)
