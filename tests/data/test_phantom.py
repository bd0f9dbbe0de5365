"""The embedded phantoms: a case is a number, organs are plausible, every target renders with its labels."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from sea_peft.data.phantom import LABELS, SOURCE, TARGETS, PhantomCase, phantom_dataset, render
from sea_peft.data.phantom.anatomy import draw_anatomy
from sea_peft.data.phantom.patient import STRUCTURES, Build
from sea_peft.data.phantom.sampling import Grid, label_map, sample
from sea_peft.errors import DataError

# Adult volumes in ml: wide enough for the schematic anatomy and partly imaged organs, narrow enough to catch
# slips
VOLUMES = {
    "liver": (700, 2600),
    "spleen": (60, 450),
    "right_kidney": (70, 300),
    "left_kidney": (70, 300),
    "stomach": (150, 900),
    "pancreas": (30, 170),
    "aorta": (45, 250),
    "inferior_vena_cava": (50, 280),
    "spine": (250, 800),
    "lungs": (400, 2500),
    "gallbladder": (6, 70),
    "duodenum": (20, 170),
    "psoas": (90, 450),
}


def _labels(number: int, grid: Grid, build: Build | None = None) -> np.ndarray:
    return label_map(sample(draw_anatomy(number, build), grid), grid.shape)


def test_a_case_is_a_number() -> None:
    first, second, other = (render(SOURCE, n) for n in (7, 7, 8))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[1], other[1])


def test_scanners_see_the_same_patient() -> None:
    image, label, affine = render(SOURCE, 1000)
    low_image, low_label, low_affine = render(TARGETS["low-dose-ct"], 1000)
    assert np.array_equal(label, low_label)
    assert np.array_equal(affine, low_affine)
    assert not np.array_equal(image, low_image)


@pytest.mark.parametrize("number", [0, 1003, 2011])
def test_organs_have_plausible_volumes_and_sides(number: int) -> None:
    grid = Grid()
    label = _labels(number, grid)
    for name, (low, high) in VOLUMES.items():
        millilitres = (label == 1 + STRUCTURES.index(name)).sum() * np.prod(grid.spacing) / 1000
        assert low < millilitres < high, f"{name}: {millilitres:.0f} ml"

    def centre(name: str) -> np.ndarray:
        return np.argwhere(label == 1 + STRUCTURES.index(name)).mean(0)

    # the first axis runs to the patient's right, the third to the head
    assert centre("liver")[0] > centre("stomach")[0] > centre("spleen")[0]
    assert centre("right_kidney")[0] > centre("spine")[0] > centre("left_kidney")[0]
    assert centre("lungs")[2] > centre("liver")[2] > centre("psoas")[2]


def test_neighbours_touch() -> None:
    label = _labels(2, Grid())
    pairs = {tuple(sorted(p)) for axis in range(3) for p in _touching(label, axis)}
    code = {name: 1 + i for i, name in enumerate(STRUCTURES)}
    for a, b in (("liver", "lungs"), ("pancreas", "duodenum"), ("spine", "psoas"), ("liver", "right_kidney")):
        assert tuple(sorted((code[a], code[b]))) in pairs, f"{a} and {b} lie apart"


def _touching(label: np.ndarray, axis: int) -> np.ndarray:
    a, b = np.delete(label, -1, axis).ravel(), np.delete(label, 0, axis).ravel()
    return np.unique(np.stack([a, b], 1)[(a != b) & (a > 0) & (b > 0)], axis=0)


def test_resolution_changes_the_grid_and_not_the_patient() -> None:
    grid = Grid()
    fine = grid.refined(1.5)
    assert fine.shape == (96, 96, 72)
    assert np.allclose(np.multiply(fine.shape, fine.spacing), np.multiply(grid.shape, grid.spacing))
    coarse_label, fine_label = _labels(5, grid), _labels(5, fine)
    for code in (1, 3, 9):
        ratio = (fine_label == code).sum() * np.prod(fine.spacing) / ((coarse_label == code).sum() * 125)
        assert 0.93 < ratio < 1.07


@pytest.mark.parametrize("name", ["source", *TARGETS])
def test_every_target_renders_with_its_labels(name: str) -> None:
    dataset = phantom_dataset(name)
    assert dataset.layout == "phantom"
    assert len(dataset.cases) == 12
    assert len(dataset.test_cases) >= 20
    assert not {c.id for c in dataset.cases} & {c.id for c in dataset.test_cases}
    codes = {code for codes in dataset.labels.values() for code in codes}
    seen: set[int] = set()
    for case in (*dataset.cases[:2], dataset.test_cases[0]):
        volume, label = case.image(dataset.channels[0]), case.label()
        assert label is not None
        assert volume.array.dtype == np.int16
        assert label.array.dtype == np.uint8
        assert volume.array.shape == label.array.shape
        assert np.array_equal(volume.affine, label.affine)
        seen |= set(np.unique(label.array).tolist())
    assert seen == {0, *codes}
    assert case.image(dataset.channels[0]) is volume  # rendered once


def test_source_labels_leave_out_the_novel_organs() -> None:
    novel = phantom_dataset("novel-organs").labels
    assert len(STRUCTURES) >= 12
    assert not set(LABELS) & set(novel)
    assert set(LABELS) | set(novel) == set(STRUCTURES)
    assert phantom_dataset("source").labels == {name: (code,) for name, code in LABELS.items()}


def test_low_dose_is_noisier_and_has_no_contrast() -> None:
    source, low = (render(t, 1000)[0].astype(float) for t in (SOURCE, TARGETS["low-dose-ct"]))
    label = render(SOURCE, 1000)[1]
    liver = binary_erosion(label == LABELS["liver"], iterations=3)  # away from the edges, which blur mixes
    aorta = label == LABELS["aorta"]
    assert low[liver].std() > 1.3 * source[liver].std()
    assert source[aorta].mean() - low[aorta].mean() > 60
    assert abs(low[aorta].mean() - 42) < 25


def test_mr_is_positive_and_ct_is_in_hounsfield_units() -> None:
    assert render(TARGETS["mr-t1"], 1000)[0].min() >= 0
    assert render(SOURCE, 1000)[0].min() < -900


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(DataError, match="did you mean low-dose-ct"):
        phantom_dataset("low-dose")
    with pytest.raises(DataError, match="channel MR is missing"):
        PhantomCase(SOURCE, 1).image("MR")


def test_the_source_is_the_one_the_bundled_weights_were_trained_on() -> None:
    image, label, _ = render(SOURCE, 0)
    counts = np.bincount(label.ravel(), minlength=len(STRUCTURES) + 1)[1:12]
    trained_on = [8177, 1326, 1019, 928, 3532, 570, 695, 860, 3294, 8673, 124]
    assert np.allclose(counts, trained_on, rtol=0.01, atol=3), "the source changed: train the bundled weights again"
    assert image[label == LABELS["liver"]].mean() == pytest.approx(99.1, abs=1.0)


def test_oral_contrast_fills_the_stomach() -> None:
    low = render(TARGETS["low-dose-ct"], 1001)[0]
    layers = sample(draw_anatomy(1001), Grid())
    inside = next(layer for layer in layers if layer.tissue == "stomach_content")
    assert np.median(low[inside.where][inside.share > 0.5]) > 0
    assert np.percentile(low[inside.where][inside.share > 0.5], 90) > 150


def test_rendering_is_fast_enough_to_be_lazy() -> None:
    render(SOURCE, 4000)
    started = time.perf_counter()
    render(SOURCE, 4001)
    assert time.perf_counter() - started < 5  # about 0.1 s on an idle core
