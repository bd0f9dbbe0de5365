import numpy as np
import pytest
import torch
from pydantic import ValidationError
from synthetic_scans import AFFINE, MemoryCase, scan

from sea_peft.data.intensity import choose_intensity, foreground
from sea_peft.data.prepare import label_indices, prepare
from sea_peft.data.recipe import Percentile, Recipe, Window, ZScore
from sea_peft.errors import DataError

PLAIN = {"spacing": (1.2, 1.0, 2.0), "crop_foreground": False}


def test_window_scales_clips_and_keeps_channel_order():
    image, label = scan(0)
    case = MemoryCase("x", {"a": image, "b": image * 0 - 175}, label)
    tensor = prepare(case, Recipe(**PLAIN), ["b", "a"]).image
    assert tensor.dtype == torch.float32
    assert (tensor[0] == 0).all()
    turned = image[::-1, ::-1]  # AFFINE is LPS-like: two axes flip
    np.testing.assert_allclose(tensor[1].numpy(), np.clip((turned + 175) / 425, 0, 1), atol=1e-6)
    assert prepare(case, Recipe(**PLAIN), ["a"], None).label is None


@pytest.mark.parametrize("padding", [0.0, -4.0])
def test_z_score_is_taken_inside_the_body_of_each_channel(padding):
    """Scans are padded with 0 or, where z-scored before padding, with their minimum (as BraTS
    2015 is).
    """
    rng = np.random.default_rng(0)
    image = np.full((20, 20, 20), padding, np.float32)
    image[5:15, 5:15, 5:15] = rng.normal(1.0, 0.5, (10, 10, 10)).clip(-3.9)
    case = MemoryCase("x", {"MR": image, "MR2": image * 3}, None, np.eye(4))
    tensor = prepare(
        case, Recipe(spacing=(1, 1, 1), intensity=ZScore(), margin=1), ["MR", "MR2"]
    ).image
    assert tensor.shape == (2, 12, 12, 12)
    inside = tensor[:, 1:-1, 1:-1, 1:-1]
    assert abs(float(inside.mean())) < 1e-4
    assert abs(float(inside.std()) - 1) < 1e-3
    assert (tensor[:, 0] == 0).all()


def test_percentiles_of_the_foreground_become_0_to_1():
    image = np.zeros((20, 20, 20), np.float32)
    image[:10] = np.linspace(100, 200, 4000, dtype=np.float32).reshape(10, 20, 20)
    case = MemoryCase("x", {"MR": image}, None, np.eye(4))
    recipe = Recipe(
        spacing=(1, 1, 1), intensity=Percentile(low=0.0, high=100.0), crop_foreground=False
    )
    tensor = prepare(case, recipe, ["MR"]).image[0]
    assert (tensor[10:] == 0).all()
    assert float(tensor.max()) == pytest.approx(1)
    assert float(tensor[5, 0, 0]) == pytest.approx(0.5, abs=0.01)


def test_a_scan_without_padding_is_all_body():
    image = np.random.default_rng(0).integers(6, 200, (10, 10, 10))
    assert foreground(image, Percentile()).all()


def test_a_scan_that_is_no_ct_is_noted_where_a_ct_is_wanted():
    image, _ = scan(0)
    head = MemoryCase("head", {"CT": np.abs(image) / 10}, None)
    (note,) = prepare(head, Recipe(**PLAIN), ["CT"]).notes
    assert note.startswith("case head: channel CT is declared as CT but runs from")
    assert note.endswith("which are hardly Hounsfield units; is it a CT at all?")
    assert prepare(head, Recipe(**PLAIN, intensity=ZScore()), ["CT"]).notes == ()
    assert prepare(MemoryCase("ct", {"CT": image}, None), Recipe(**PLAIN), ["CT"]).notes == ()


def test_labels_are_numbered_in_the_asked_order():
    stored = np.array([0.0, 1, 2, 3.0000001, 4], np.float32)
    assert label_indices(stored, {"b": (4,), "a": (1, 3)}).tolist() == [0, 2, 0, 2, 1]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (-1, r"the label runs from -1 to 0; label codes must lie in 0\.\.65535"),
        (70000, r"codes must lie in 0\.\.65535"),
        (np.nan, "the label has 1 of 2 voxels that are NaN"),
        (4.5, r"the label has voxels that are not whole numbers \(for instance 4\.5\)"),
    ],
)
def test_values_that_are_no_codes(value, sentence):
    """Neither trained on nor scored against."""
    with pytest.raises(DataError, match=sentence):
        label_indices(np.array([0.0, value]), {"a": (1,)})


def test_a_label_that_the_spacing_swallows():
    image, label = scan(0)
    label[:] = 0
    label[6, 6, 4] = 1
    coarse = Recipe(spacing=(9, 9, 9), crop_foreground=False)
    refused(
        MemoryCase("p1", {"CT": image}, label),
        "none of the label's 1 voxels is left .* 9 × 9 × 9 mm",
        recipe=coarse,
    )


def refused(case, sentence, channels=("CT",), recipe=None):
    with pytest.raises(DataError, match=sentence):
        prepare(case, recipe or Recipe(), channels, {"a": (1,)})


def test_what_cannot_be_prepared():
    image, label = scan(0)
    broken = image.copy()
    broken[3, 4, 5] = np.nan
    broken[0, 0, 0] = np.inf
    refused(
        MemoryCase("p1", {"CT": broken}, label),
        "case p1: channel CT has 2 of 1512 voxels that are NaN",
    )
    refused(
        MemoryCase("p1", {"CT": image}, label[:-1]),
        "case p1: label has shape 13×12×9, image has shape 14×12×9",
    )
    other = MemoryCase("p1", {"CT": image, "PET": image[:, :-1]}, label)
    refused(other, "channel PET has shape 14×11×9, channel CT has shape 14×12×9", ("CT", "PET"))
    flat = Recipe(intensity=ZScore())
    refused(
        MemoryCase("p1", {"CT": image * 0 + 3}, label),
        "case p1: channel CT holds a single grey value",
        recipe=flat,
    )


def test_a_voxel_size_in_the_wrong_unit_does_not_fill_the_memory():
    image, label = scan(0)
    case = MemoryCase("p1", {"CT": image}, label, np.diag([1200.0, 1000, 2000, 1]))
    refused(
        case, "case p1: voxels of 1200 × 1000 × 2000 mm would become .* is the voxel size in mill"
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            np.diag([1.1, 1, 1, 1]),
            r"voxel size \(1.32, 1, 2\) mm, image has voxel size \(1.2, 1, 2\) mm",
        ),
        (
            np.diag([-1, 1, 1, 1]),
            r"direction \(1, 0, 0, 0, -1, 0, 0, 0, 1\), image has direction \(-1, 0, 0,",
        ),
        (
            np.array([[1, 0, 0, 5.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
            r"origin \(35.5, 20, -10\) mm, image has",
        ),
    ],
)
def test_grids_that_disagree(change, sentence):
    image, label = scan(0)

    class Moved(MemoryCase):
        def label(self):
            volume = super().label()
            return type(volume)(volume.array, change @ volume.affine)

    refused(Moved("p1", {"CT": image}, label), f"case p1: label has {sentence}")


def test_a_tenth_of_a_millimetre_is_the_same_grid():
    image, label = scan(0)

    class Nudged(MemoryCase):
        def label(self):
            volume = super().label()
            return type(volume)(
                volume.array, volume.affine + np.eye(4) * 0.005 * (np.arange(4) < 3)
            )

    prepare(Nudged("p1", {"CT": image}, label), Recipe(), ["CT"], {"a": (1,)})


def test_intensity_that_suits_the_scans():
    image, _ = scan(0)
    ct = MemoryCase("ct", {"x": image}, None)
    mr = MemoryCase("mr", {"x": np.abs(image) / 10}, None)
    recipe = Recipe()
    assert choose_intensity(recipe, [ct], ["x"]) == (recipe, None)
    assert choose_intensity(recipe, [mr], ["CT"]) == (recipe, None)  # declared
    chosen, sentence = choose_intensity(recipe, [ct, mr], ["x"])
    assert chosen.intensity == Percentile()
    assert chosen.spacing == recipe.spacing
    assert "case mr" in sentence
    assert "-175 to 250 HU" in sentence
    zscored = Recipe(intensity=ZScore())
    assert choose_intensity(zscored, [mr], ["x"]) == (zscored, None)


def test_recipe_is_strict_and_survives_json():
    recipe = Recipe(intensity=Window(low=-100, high=300), spacing=(1, 1, 2))
    assert recipe.intensity == Window(low=-100, high=300)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    for wrong in (
        {"orientation": "RRS"},
        {"orientation": "XYZ"},
        {"spacing": (0, 1, 1)},
        {"margin": -1},
        {"colour": 1},
        {"intensity": {"kind": "window", "low": 5, "high": 5}},
        {"intensity": {"kind": "magic"}},
        {"intensity": {"kind": "percentile", "low": 60, "high": 40}},
    ):
        with pytest.raises(ValidationError):
            Recipe(**wrong)


def test_affine_of_the_scan_is_kept():
    image, label = scan(0)
    assert np.array_equal(
        prepare(MemoryCase("x", {"CT": image}, label), Recipe(), ["CT"]).geometry.affine, AFFINE
    )
