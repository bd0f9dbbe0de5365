"""Scans and masks in nnU-Net's way, against scipy in three dimensions, torch, and nnU-Net
itself where it is installed.
"""

from itertools import product

import numpy as np
import pytest
import torch
from scipy import ndimage
from synthetic_scans import MemoryCase

from sea_peft.data.as_nnunet import resized, thick_axis
from sea_peft.data.geometry import whole_geometry
from sea_peft.data.prepare import prepare, restore, restore_probability
from sea_peft.data.recipe import Recipe, Window, ZScore


def edges(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Boxes with sharp edges, around which cubic splines overshoot."""
    return np.kron(
        np.random.default_rng(seed).integers(0, 9, [-(-n // 4) for n in shape]), np.ones((4, 4, 4))
    )[: shape[0], : shape[1], : shape[2]].astype(np.float32)


def zoomed(values: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """What nnU-Net's resampling calls, by way of scikit-image: cubic splines, cut to the range
    of the values.
    """
    factors = [m / n for m, n in zip(grid, values.shape, strict=True)]
    out = ndimage.zoom(values.astype(float), factors, order=3, mode="nearest", grid_mode=True)
    return out.clip(values.min(), values.max())


@pytest.mark.parametrize("grid", [(9, 20, 21), (31, 12, 14), (16, 18, 5)])
def test_cubic_splines_axis_by_axis_are_those_of_scipy_in_three_dimensions(
    grid: tuple[int, int, int],
) -> None:
    values = edges((16, 12, 14))
    found = resized(torch.from_numpy(values), grid, None).numpy()
    np.testing.assert_allclose(found, zoomed(values, grid), atol=2e-5)


@pytest.mark.parametrize(("thick", "n"), product((0, 1, 2), (8, 23)))
def test_thick_slices_are_resampled_each_by_itself_and_the_nearest_is_taken(
    thick: int, n: int
) -> None:
    shape, grid = [14, 14, 14], [9, 9, 9]
    shape[thick], grid[thick] = 12, n
    values = edges((shape[0], shape[1], shape[2]))
    slices = np.stack([zoomed(one, (9, 9)) for one in np.moveaxis(values, thick, 0)])
    at = 12 / n * (np.arange(n) + 0.5) - 0.5
    nearest = ndimage.map_coordinates(np.arange(12.0), [at], order=0, mode="nearest").astype(int)
    found = resized(torch.from_numpy(values), grid, thick).numpy()
    np.testing.assert_allclose(found, np.moveaxis(slices[nearest], 0, thick), atol=2e-5)


def test_the_thick_axis_is_the_first_spacings_then_the_seconds() -> None:
    assert thick_axis((1, 1, 3.1), (5, 1, 1)) == 2
    assert thick_axis((1, 1, 3), (5, 1, 1)) == 0
    assert thick_axis((1, 1, 3), (2, 1, 1)) is None
    assert thick_axis((0.25, 1.25, 1.25), (5, 1, 1)) is None, "two long sides are no thick slice"


@pytest.mark.parametrize("spacing", [(1.5, 0.7, 0.8), (3.5, 0.7, 1.0)])
def test_logits_come_back_linearly_between_ends(spacing: tuple[float, float, float]) -> None:
    geometry = whole_geometry((20, 21, 22), np.eye(4), "RAS", spacing, "nnunet")
    logits = 3 * torch.randn(3, *geometry.grid, generator=torch.Generator().manual_seed(0))
    there = torch.nn.functional.interpolate(
        logits[None], (20, 21, 22), mode="trilinear", align_corners=False
    )[0]
    if spacing[0] > 3:  # thick slices of the network's grid
        sheets = torch.nn.functional.interpolate(
            logits.transpose(0, 1), (21, 22), mode="bilinear", align_corners=False
        )
        nearest = ((torch.arange(20) + 0.5) * geometry.grid[0] / 20 - 0.5 + 0.5).floor().long()
        there = sheets[nearest].transpose(0, 1)
    probabilities = logits.softmax(dim=0)
    assert (restore(probabilities, geometry) == there.argmax(0).numpy()).all()
    for index in range(3):
        found = restore_probability(probabilities, index, geometry)
        np.testing.assert_allclose(found, there.softmax(0)[index].numpy(), atol=1e-5)


def test_z_scores_over_the_box_of_what_is_not_0() -> None:
    image = np.zeros((12, 14, 16), np.float32)
    inner = np.random.default_rng(0).normal(100, 20, (8, 9, 10)).astype(np.float32)
    inner[3:5, 3:5, 3:5] = 0.0  # a hole, and one corner that is not body
    inner[0, 0, 0] = 0.0
    image[2:10, 2:11, 2:12] = inner
    common = {"spacing": (1, 1, 1), "margin": 0.0, "resampler": "nnunet"}
    case = MemoryCase("x", {"MR": image}, None, np.eye(4))
    found = prepare(case, Recipe(**common, intensity=ZScore(over="box")), ["MR"]).image[0].numpy()
    np.testing.assert_allclose(found, (inner - inner.mean()) / inner.std(), atol=1e-4)
    body = np.ones(inner.shape, bool)
    body[0, 0, 0] = False
    found = prepare(case, Recipe(**common, intensity=ZScore()), ["MR"]).image[0].numpy()
    expected = np.where(body, (inner - inner[body].mean()) / inner[body].std(), 0.0)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_grey_values_are_cut_before_they_are_resampled() -> None:
    image = np.where(edges((16, 12, 14)) > 4, 900.0, -900.0).astype(np.float32)
    recipe = Recipe(
        spacing=(2, 0.8, 1.2), intensity=Window(low=-100, high=100), margin=0.0, resampler="nnunet"
    )
    found = prepare(MemoryCase("x", {"CT": image}, None, np.eye(4)), recipe, ["CT"]).image[0]
    np.testing.assert_allclose(
        found.numpy(), zoomed((image > 0).astype(float), tuple(found.shape)), atol=2e-5
    )


def test_what_is_usual_is_not_written() -> None:
    assert "resampler" not in Recipe().model_dump(mode="json")
    assert ZScore().model_dump(mode="json") == {"kind": "zscore"}
    particular = Recipe(resampler="nnunet", intensity=ZScore(over="box"))
    assert Recipe.model_validate_json(particular.model_dump_json()) == particular


@pytest.mark.parametrize("spacing", [(1.2, 1.3, 2.5), (1.2, 1.3, 6.0), (1.5, 1.5, 3.0)])
def test_what_the_network_sees_is_what_nnunets_own_preprocessor_makes(
    spacing: tuple[float, float, float],
) -> None:
    preprocessing = pytest.importorskip("nnunetv2.preprocessing.preprocessors.default_preprocessor")
    resample = pytest.importorskip(
        "nnunetv2.preprocessing.resampling.default_resampling"
    ).resample_data_or_seg_to_shape
    from functools import partial
    from types import SimpleNamespace

    target = [3.0, 1.5, 1.5]
    image = edges((26, 24, 20)) * 100
    image[:3] = 0.0
    configuration = SimpleNamespace(
        spacing=target,
        normalization_schemes=["ZScoreNormalization"],
        use_mask_for_norm=[False],
        resampling_fn_data=partial(
            resample, is_seg=False, order=3, order_z=0, force_separate_z=None
        ),
        resampling_fn_seg=partial(resample, is_seg=True, order=1, order_z=0, force_separate_z=None),
    )
    plans = SimpleNamespace(
        transpose_forward=[0, 1, 2], foreground_intensity_properties_per_channel={"0": {}}
    )
    stored = image.transpose(2, 1, 0)  # as SimpleITK reads it
    theirs = preprocessing.DefaultPreprocessor(verbose=False).run_case_npy(
        stored[None], None, {"spacing": list(reversed(spacing))}, plans, configuration, {}
    )[0]
    recipe = Recipe(
        orientation="SPL",
        spacing=(3.0, 1.5, 1.5),
        intensity=ZScore(over="box"),
        margin=0.0,
        resampler="nnunet",
    )
    case = MemoryCase(
        "x", {"T1": image}, None, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    )
    np.testing.assert_allclose(prepare(case, recipe, ["T1"]).image.numpy(), theirs, atol=1e-4)
