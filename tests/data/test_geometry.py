"""From the input's grid to the recipe's and exactly back."""

from itertools import permutations, product

import numpy as np
import pytest
import torch
from nibabel.orientations import aff2axcodes
from synthetic_scans import MemoryCase, ball

from sea_peft.data.geometry import crop, whole_geometry
from sea_peft.data.metrics import dice
from sea_peft.data.planes import Planes
from sea_peft.data.prepare import prepare, restore, restore_probability
from sea_peft.data.recipe import Recipe, Window, ZScore

ORIENTATIONS = [
    (axes, signs) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)
]  # 48  fmt: skip


def affine_for(axes, signs, spacing, origin=(7.0, -31.0, 12.5)):
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (row, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[row, column] = sign * spacing[column]
    affine[:3, 3] = origin
    return affine


def one_hot(label, count):
    return torch.nn.functional.one_hot(label.long(), count + 1).movedim(-1, 0).float()


def lopsided(shape):
    """Two touching structures with no symmetry, so that a wrong flip or axis shows."""
    organ = ball(shape, 0.36)
    half = np.indices(shape)[0] < shape[0] * 0.4
    label = np.where(organ, np.where(half, 4, 9), 0).astype(np.int16)
    label[:, : shape[1] // 4] = 0
    return label


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_round_trip_over_all_orientations(axes, signs):
    """Issue's bar: anisotropic spacing, odd sizes, Dice >= 0.98 for a prediction that copies
    the label.
    """
    spacing, shape = (1.3, 1.9, 3.1), (61, 43, 27)
    affine = affine_for(axes, signs, spacing)
    label = lopsided(shape)
    image = np.where(ball(shape, 0.45), 50.0 + label, -1000.0).astype(np.float32)
    case = MemoryCase("x", {"CT": image}, label, affine)
    scan = prepare(case, Recipe(margin=4), ["CT"], {"a": (4,), "b": (9,)})
    assert scan.image.shape[1:] == scan.label.shape == scan.geometry.grid
    back = restore(one_hot(scan.label, 2), scan.geometry)
    assert back.shape == shape
    assert np.array_equal(scan.geometry.affine, affine)
    assert dice(back == 1, label == 4) >= 0.98
    assert dice(back == 2, label == 9) >= 0.98


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS[::5])
def test_same_world_same_tensor(axes, signs):
    """One scan stored in any orientation becomes the same tensor."""
    shape, spacing = (12, 10, 8), (1.5, 1.5, 1.5)
    rng = np.random.default_rng(0)
    ras = rng.normal(size=shape).astype(np.float32)
    stored = ras.transpose(axes)[tuple(slice(None, None, s) for s in signs)]
    affine = affine_for(axes, signs, spacing)
    case = MemoryCase("x", {"MR": stored}, None, affine)
    scan = prepare(case, Recipe(intensity=ZScore(), crop_foreground=False), ["MR"])
    expected = (ras - ras.mean()) / ras.std()
    np.testing.assert_allclose(scan.image[0].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "ASL", "SRP"])
def test_tensor_axes_are_the_recipe_orientation(orientation):
    affine = affine_for((2, 0, 1), (1, -1, 1), (1, 1, 1))
    assert "".join(aff2axcodes(affine)) == "SLA"
    geometry = whole_geometry((4, 5, 6), affine, orientation, (1, 1, 1))
    world = np.indices((4, 5, 6)).reshape(3, -1)
    world = (affine[:3, :3] @ world + affine[:3, 3:]).reshape(3, 4, 5, 6)
    for axis, letter in enumerate(orientation):
        row = "RAS".find(letter) if letter in "RAS" else "LPI".find(letter)
        turned = np.diff(geometry.oriented(world[row]), axis=axis)
        assert (turned == (1 if letter in "RAS" else -1)).all()


def test_resampling_agrees_with_monai():
    """MONAI's Spacing, bilinear, is the reference for the grey values the weights were trained
    on.
    """
    from monai.data import MetaTensor
    from monai.transforms import Orientation, Spacing

    shape, affine = (24, 20, 16), affine_for((1, 0, 2), (-1, 1, 1), (0.75, 1.5, 3.0))
    image = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    turned = Orientation(axcodes="RAS")(MetaTensor(image[None], affine=torch.tensor(affine)))
    expected = Spacing(
        pixdim=(1.5, 1.5, 1.5), mode="bilinear", align_corners=False, scale_extent=True
    )(turned)
    geometry = whole_geometry(shape, affine, "RAS", (1.5, 1.5, 1.5))
    ours = torch.cat([slab[0] for _, slab in geometry.grid_slabs(geometry.boxed(image), 1)])
    assert tuple(expected.shape[1:]) == geometry.grid
    np.testing.assert_allclose(ours.numpy(), expected[0].numpy(), atol=1e-4)


def test_equal_spacing_is_untouched_even_when_the_header_rounds():
    geometry = whole_geometry(
        (30, 31, 32), np.diag([1.4999995, 1.5, 1.5000002, 1]), "RAS", (1.5, 1.5, 1.5)
    )
    assert geometry.grid == (30, 31, 32)
    values = np.random.default_rng(0).random((30, 31, 32), dtype=np.float32)
    slabs = [slab[0] for _, slab in geometry.grid_slabs(geometry.boxed(values), 1)]
    np.testing.assert_array_equal(torch.cat(slabs).numpy(), values)


def test_crop_keeps_the_place():
    label = np.zeros((40, 41, 42), np.uint8)
    label[10:17, 20:25, 30:34] = 1
    image = np.where(label, 100.0, -1000.0).astype(np.float32)
    case = MemoryCase("x", {"CT": image}, label, np.diag([1.0, 1, 1, 1]))
    recipe = Recipe(spacing=(1, 1, 1), margin=2, intensity=Window(low=0, high=100))
    scan = prepare(case, recipe, ["CT"], {"a": (1,)})
    assert scan.geometry.start == (8, 18, 28)
    assert scan.geometry.grid == (11, 9, 8)
    assert np.array_equal(restore(one_hot(scan.label, 1), scan.geometry), label)
    probability = restore_probability(one_hot(scan.label, 1), 0, scan.geometry)
    assert np.array_equal(probability, 1.0 - label)


def test_slabs_are_the_whole(monkeypatch):
    """Bringing a prediction back plane by plane (large scans) is the same as in one piece."""
    import sea_peft.data.resample as module

    geometry = crop(
        whole_geometry((21, 18, 17), np.diag([0.9, 1.1, 3, 1]), "LPS", (1.5, 1.5, 1.5)),
        (2, 1, 0),
        (16, 15, 14),
    )
    probabilities = torch.rand(3, *geometry.grid)
    whole = restore(probabilities, geometry)
    monkeypatch.setattr(module, "_SLAB_VALUES", 3 * 15 * 14 * 2)
    assert len(list(geometry.slabs(Planes.of(probabilities).read, 3))) == 8
    assert np.array_equal(restore(probabilities, geometry), whole)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 9), (2, 3, 200)])
def test_tiny_scans(shape):
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    image.flat[0] = 5
    if image.size == 1:
        return
    case = MemoryCase("x", {"MR": image}, (image > 0).astype(np.uint8), np.diag([5, 0.4, 0.4, 1]))
    scan = prepare(case, Recipe(intensity=ZScore()), ["MR"], {"a": (1,)})
    assert restore(one_hot(scan.label, 1), scan.geometry).shape == shape
