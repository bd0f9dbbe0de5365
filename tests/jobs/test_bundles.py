"""Bundles as MONAI's own tools write them: what their metadata and their inference say is taken
over, and what it does not do is said.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from foreign import network

from sea_peft.backbones import architecture
from sea_peft.backbones.weights import load_pretrained
from sea_peft.data.cases import FileCase, ImageFile
from sea_peft.data.prepare import prepare
from sea_peft.data.volumes import Volume, write_volume
from sea_peft.errors import UsageError, WeightsError
from sea_peft.jobs.expected import Given
from sea_peft.jobs.importing import Imported, import_weights

pytestmark = pytest.mark.filterwarnings("ignore")  # of MONAI's tools
LOADED = [
    {"_target_": "LoadImaged", "keys": "image"},
    {"_target_": "EnsureChannelFirstd", "keys": "image"},
]
RAS = {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}
HALF = {"_target_": "Spacingd", "keys": ["image"], "pixdim": "@spacing", "mode": "bilinear"}
RANGE = {
    "_target_": "ScaleIntensityRanged",
    "keys": "@image_key",
    "a_min": -57,
    "a_max": 164,
    "b_min": -1,
    "b_max": 1,
    "clip": True,
}
ZSCORE = {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True}
MINMAX = {"_target_": "ScaleIntensityd", "keys": "image", "minv": -1.0, "maxv": 1.0}


def bundle(folder: Path, *transforms: dict[str, Any]) -> Path:
    """A bundle of a small SegResNet by `monai.bundle.init_bundle`, its network's inputs and
    outputs described.
    """
    from monai.bundle import init_bundle
    from monai.bundle.utils import DEFAULT_INFERENCE, DEFAULT_METADATA

    image = {
        "type": "image",
        "modality": "CT",
        "num_channels": 1,
        "spatial_shape": ["8*n"] * 3,
        "channel_def": {"0": "image"},
    }
    pred = {
        "type": "image",
        "num_channels": 3,
        "channel_def": {"0": "background", "1": "liver", "2": "spleen"},
    }
    metadata = {
        **DEFAULT_METADATA,
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }
    inference = {
        **DEFAULT_INFERENCE,
        "image_key": "image",
        "spacing": [1.5, 1.5, 2.0],
        "preprocessing": {"_target_": "Compose", "transforms": [*LOADED, *transforms]},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": [32, 32, 16],
            "sw_batch_size": 4,
        },
    }
    of = network("segresnet", **architecture("segresnet").small)
    init_bundle(str(folder / "bundle"), network=of, metadata_str=metadata, inference_str=inference)
    return folder / "bundle"


def imported(folder: Path, **given: Any) -> tuple[Imported, dict[str, tuple[str, str]]]:
    result = import_weights(folder, "mine", "segresnet", Given(**given))
    return result, {expected.what: (expected.value, expected.by) for expected in result.expects}


def test_a_bundle_says_all_that_an_import_asks(tmp_path):
    result, said = imported(bundle(tmp_path, RAS, HALF, RANGE))
    assert result.origin == "monai-bundle"
    assert {by for _, by in said.values()} == {"origin"}
    assert said["labels"][0] == "liver, spleen"
    assert said["spacing"][0] == "1.5 × 1.5 × 2 mm"
    assert said["intensity"][0] == "window:-57,164"
    assert said["patch"][0] == "32 × 32 × 16"
    loaded, of = load_pretrained("mine"), network("segresnet", **architecture("segresnet").small)
    with torch.no_grad():
        assert torch.equal(loaded.network(loaded.example), of(2.0 * loaded.example - 1.0))


def test_a_bundle_may_be_written_in_yaml(tmp_path):
    folder = bundle(tmp_path, RAS, HALF, RANGE)
    written = folder / "configs" / "inference.json"
    written.with_suffix(".yaml").write_text(yaml.safe_dump(json.loads(written.read_text())))
    written.unlink()
    _, said = imported(folder)
    assert {by for _, by in said.values()} == {"origin"}
    assert (said["spacing"][0], said["intensity"][0]) == ("1.5 × 1.5 × 2 mm", "window:-57,164")


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ("a: &a [x, x]\nb: [*a, *a]\n", "it repeats parts by reference"),
        (
            "a: !!python/object/apply:os.system ['touch made']\n",
            "could not determine a constructor",
        ),
        ("a: " + "[" * 3000 + "\n", "nested too deeply"),
        ("a: {\n", "it is not valid YAML"),
    ],
)
def test_yaml_is_data_or_said_not_to_be_read(tmp_path, monkeypatch, part, why):
    monkeypatch.chdir(tmp_path)
    folder = bundle(tmp_path, RAS, HALF, RANGE)
    written = folder / "configs" / "inference.json"
    written.with_suffix(".yaml").write_text(part + yaml.safe_dump(json.loads(written.read_text())))
    written.unlink()
    result, said = imported(folder, spacing=(1.0, 1.0, 1.0), patch=(32, 32, 32))
    assert any(
        "inference.yaml is not taken into account" in sentence and why in sentence
        for sentence in result.said
    )
    assert said["orientation"][1] == "assumed"
    assert not Path("made").exists()


def test_what_the_network_sees_is_what_monais_transforms_make(tmp_path):
    """On the bundle's own grid; resampling is MONAI's and ours alike only up to the edges."""
    from monai.bundle import ConfigParser

    folder = bundle(tmp_path, {**RAS, "axcodes": "LPS"}, {**HALF, "pixdim": [2.0, 2.0, 2.0]}, RANGE)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    grey = np.random.default_rng(0).normal(0, 100, (20, 18, 16)).astype(np.float32)
    write_volume(tmp_path / "scan.nii.gz", Volume(grey, affine))
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    theirs = parser.get_parsed_content("preprocessing")({"image": str(tmp_path / "scan.nii.gz")})[
        "image"
    ]
    imported(folder)
    card = load_pretrained("mine").card
    recipe = card.recipe.model_copy(update={"crop_foreground": False})
    ours = prepare(
        FileCase(id="scan", images={"CT": ImageFile(tmp_path / "scan.nii.gz")}), recipe, ["CT"]
    ).image
    seen = card.kwargs["input_factor"] * ours + card.kwargs["input_offset"]
    torch.testing.assert_close(seen, torch.as_tensor(np.asarray(theirs)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("transforms", "intensity", "note"),
    [
        ([ZSCORE], "zscore", None),
        ([MINMAX, {**ZSCORE, "nonzero": False}], "zscore", "z-scores were taken over whole scans"),
        ([ZSCORE, MINMAX], "percentile:0,100", None),
        ([{**RANGE, "clip": False}], "window:-57,164", "does not clip"),
        (
            [RANGE, ZSCORE],
            None,
            "by ScaleIntensityRange and then NormalizeIntensity in a way that no recipe does",
        ),
        (
            [{**RANGE, "a_min": "$-1000 / 2"}],
            None,
            "How far ScaleIntensityRange scales is computed in the bundle",
        ),
        (
            [{"_target_": "GaussianSmoothd", "keys": "image"}, ZSCORE],
            "zscore",
            "also has GaussianSmooth",
        ),
    ],
)
def test_grey_values_are_taken_over_or_said(tmp_path, transforms, intensity, note):
    result, said = imported(bundle(tmp_path, RAS, HALF, *transforms))
    assert said["intensity"] == ((intensity, "origin") if intensity else ("zscore", "assumed"))
    *_, last = result.said[: 1 if note is None else 2]
    assert (note or "Origin monai-bundle") in last


def test_voxels_whose_size_is_computed_are_asked_for(tmp_path):
    folder = bundle(tmp_path, RAS, {**HALF, "pixdim": "$[1.5] * 3"}, RANGE)
    with pytest.raises(UsageError, match="give --spacing"):
        imported(folder)
    assert imported(folder, spacing=(1.5, 1.5, 1.5))[1]["spacing"][1] == "you"


def test_sides_along_stored_axes_are_no_recipe(tmp_path):
    with pytest.raises(UsageError, match="give --spacing"):
        imported(bundle(tmp_path, HALF, RAS, RANGE))


def test_a_bundle_of_a_stranger_is_checked(tmp_path):
    folder = bundle(tmp_path, {**RAS, "axcodes": "RRS"}, HALF, RANGE)
    with pytest.raises(WeightsError, match="preprocessing is not as MONAI reads it"):
        imported(folder)
    config = json.loads((folder / "configs" / "inference.json").read_text())
    (folder / "configs" / "inference.json").write_text(
        json.dumps({**config, "preprocessing": "@preprocessing"})
    )
    assert imported(folder, spacing=(1.5, 1.5, 1.5))[1]["orientation"] == ("RAS", "assumed")
