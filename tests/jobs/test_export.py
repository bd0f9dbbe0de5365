"""Exported networks, run by the tools that they are for, on another scan than the one that the
export tried them on.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import make_adapter

from sea_peft.backbones.typed import Typed
from sea_peft.data.cases import FileCase
from sea_peft.data.layouts import open_dataset
from sea_peft.data.prepare import prepare, restore
from sea_peft.data.recipe import Percentile, Recipe, Window, ZScore
from sea_peft.data.volumes import Volume, read_volume, write_volume
from sea_peft.errors import UsageError, WeightsError
from sea_peft.jobs.export import export
from sea_peft.jobs.exporting import trial
from sea_peft.jobs.exporting.scans import blended, to_grid, to_mask
from sea_peft.jobs.importing import import_weights
from sea_peft.jobs.predictor import Predictor


def require(*names: str) -> None:
    """Skip where the receiving tool is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


def predicted(adapter: Path, weights: Path, toy: Path) -> tuple[Path, np.ndarray]:
    """A scan, and `predict`'s mask of it."""
    (case,) = open_dataset(toy).cases[:1]
    mask = Predictor(adapter, Typed(weights=str(weights)), "cpu").label_map(case)
    return toy / "imagesTr" / f"{case.id}_0000.nii.gz", mask


@pytest.mark.slow
@pytest.mark.parametrize("to", ["torch", "onnx"])
def test_the_script_beside_a_network_makes_predicts_masks(to, adapter, weights, toy, tmp_path):
    require(*(["onnx", "onnxscript", "onnxruntime"] if to == "onnx" else []))
    made = export(adapter, to, tmp_path / "out", typed=Typed(weights=str(weights)))
    assert set(made.files) == {
        f"network.{'onnx' if to == 'onnx' else 'pt2'}",
        "network.json",
        "masks.py",
        "scans.py",
    }
    assert made.agreement >= 0.999
    scan, mask = predicted(adapter, weights, toy)
    # without sea_peft, which may be installed
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sea_peft.py").write_text("raise ImportError('sea_peft is not to be used here')\n")
    subprocess.run(
        [sys.executable, made.folder / "masks.py", scan, tmp_path / "m.nii.gz"],
        check=True,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(hidden)},
        capture_output=True,
    )
    written = read_volume(tmp_path / "m.nii.gz")
    assert np.mean(np.asarray(written.array) == mask) >= 0.999
    assert mask.any()
    np.testing.assert_allclose(written.affine, read_volume(scan).affine, atol=1e-4)
    told = json.loads((made.folder / "network.json").read_text())
    assert told["labels"] == {"background": 0, "organ": 1, "spot": 2}
    assert told["window"]["patch"] == [16, 16, 16]
    assert told["recipe"]["orientation"] == "RAS"


@pytest.mark.slow
def test_a_network_with_an_added_label_is_exported_like_any_other(weights, toy, tmp_path):
    """As `adapt --add-label` makes it: what the backbone knows has no codes, for nobody has
    drawn it.
    """
    labels = {"organ": [], "other": [], "spot": [2]}
    adapter = make_adapter(tmp_path / "adapter", weights, labels, ["CT"], ("affine", "lora"))
    made = export(adapter, "torch", tmp_path / "out", typed=Typed(weights=str(weights)))
    assert made.agreement >= 0.999
    told = json.loads((made.folder / "network.json").read_text())
    assert told["labels"] == {"background": 0, "organ": 1, "other": 2, "spot": 3}


@pytest.mark.slow
def test_a_bundle_is_run_by_monai(adapter, weights, toy, tmp_path):
    require("ignite", "fire")
    made = export(adapter, "bundle", tmp_path / "out", typed=Typed(weights=str(weights)))
    scan, mask = predicted(adapter, weights, toy)
    (tmp_path / "scans").mkdir()
    os.symlink(scan, tmp_path / "scans" / "one.nii.gz")
    command = [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        "configs/inference.json",
        "--dataset_dir",
        str(tmp_path / "scans"),
        "--output_dir",
        str(tmp_path / "masks"),
    ]
    subprocess.run(command, check=True, cwd=made.folder, capture_output=True)
    written = read_volume(tmp_path / "masks" / "one_seg.nii.gz")
    assert np.mean(np.asarray(written.array) == mask) >= 0.999
    metadata = json.loads((made.folder / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {
        "0": "background",
        "1": "organ",
        "2": "spot",
    }
    assert not [path for path in made.folder.rglob("*") if "__pycache__" in path.parts]


@pytest.mark.parametrize("intensity", [Window(low=-100, high=200), ZScore(), Percentile()])
@pytest.mark.parametrize("orientation", ["RAS", "SPL"])
def test_what_runs_without_sea_peft_does_as_it_does(toy, intensity, orientation):
    recipe = Recipe(
        spacing=(1.7, 2.0, 2.6), intensity=intensity, orientation=orientation, margin=3.0
    )
    (case,) = open_dataset(toy).cases[:1]
    scan, volume = prepare(case, recipe, ["CT"]), case.image("CT")
    grid, way_back = to_grid([np.asarray(volume.array)], volume.affine, recipe.model_dump())
    np.testing.assert_allclose(grid, scan.image.numpy(), atol=2e-5)
    spread = np.random.default_rng(0).normal(size=(3, *grid.shape[1:])).astype(np.float32)
    spread = np.exp(spread) / np.exp(spread).sum(axis=0)
    expected = np.array([0, 4, 300])[restore(scan.image.new_tensor(spread), scan.geometry)]
    assert np.array_equal(to_mask(spread, way_back, recipe.model_dump(), [4, 300]), expected)


@pytest.mark.parametrize("inferer", ["monai", "nnunet"])
def test_windows_without_sea_peft_are_its_own(inferer):
    import torch

    from sea_peft.data.sliding import SlidingWindow
    from sea_peft.jobs.windows import blended as ours

    window = SlidingWindow(patch=(8, 6, 4), inferer=inferer, pad=-0.5)
    image = torch.randn(1, 19, 5, 9, generator=torch.Generator().manual_seed(0))
    mixing = torch.randn(3, 8, 6, 4, generator=torch.Generator().manual_seed(1))

    def network(x: torch.Tensor) -> torch.Tensor:
        return x * mixing  # depends on where in the window a voxel lies

    def scored(x: torch.Tensor) -> tuple[torch.Tensor]:
        return (network(x) if inferer == "nnunet" else network(x).softmax(1),)

    expected = torch.cat(
        [slab for (slab,) in ours(scored, image, window, torch.device("cpu"))], dim=1
    )
    expected = expected.softmax(0) if inferer == "nnunet" else expected
    found = blended(
        lambda x: network(torch.from_numpy(x)).numpy(), image.numpy(), window.model_dump()
    )
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


@pytest.mark.slow
def test_masks_that_differ_leave_nothing(adapter, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "AGREEMENT", 1.1)
    with pytest.raises(WeightsError, match=r"torch\.export gives predict's mask in"):
        export(adapter, "torch", tmp_path / "out", typed=Typed(weights=str(weights)))
    assert list(tmp_path.iterdir()) == []


def nnunet_checkpoint(file: Path) -> dict[str, Any]:
    """`checkpoint_final.pth` of a small nnU-Net v2 with random weights, whose plans nnU-Net can
    build it from. Returns its data set's description.
    """
    import torch

    from sea_peft.backbones import architecture

    features, strides = [4, 8, 16], [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
    torch.manual_seed(0)
    widths = {"features": features, "strides": strides, "convs": [2, 2, 2], "decoder_convs": [1, 1]}
    of = architecture("nnunet_plain").build(in_channels=1, out_channels=3, **widths)
    for tensor in of.parameters():  # not so near to zero that all classes are level
        torch.nn.init.normal_(tensor, std=0.3)
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "small",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16, 16, 16],
        "median_image_size_in_voxels": [20.0, 20.0, 20.0],
        "spacing": [3.0, 1.5, 1.5],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": False,
        **{
            f"resampling_fn_{what}": "resample_data_or_seg_to_shape"
            for what in ("data", "seg", "probabilities")
        },
        **{f"resampling_fn_{what}_kwargs": resampling for what in ("data", "probabilities")},
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 3,
                "features_per_stage": features,
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[3, 3, 3]] * 3,
                "strides": strides,
                "n_conv_per_stage": [2, 2, 2],
                "n_conv_per_stage_decoder": [1, 1],
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    grey = {
        "mean": 50.0,
        "std": 60.0,
        "percentile_00_5": -100.0,
        "percentile_99_5": 200.0,
        "median": 50.0,
        "min": -900.0,
        "max": 900.0,
    }
    plans = {
        "dataset_name": "Dataset001_Toy",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [3.0, 1.5, 1.5],
        "original_median_shape_after_transp": [20, 20, 20],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": grey},
    }
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "organ": 1, "other": 2},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    written = {
        "network_weights": of.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
        "init_args": {
            "plans": plans,
            "configuration": "3d_fullres",
            "fold": 0,
            "dataset_json": dataset,
        },
    }
    torch.save(written, file)
    return dataset


@pytest.mark.slow
def test_an_nnunet_folder_is_run_by_nnunet(tmp_path):
    require("dynamic_network_architectures")
    if shutil.which("nnUNetv2_predict_from_modelfolder") is None:
        pytest.skip("nnunetv2 is not installed")
    source = tmp_path / "checkpoint_final.pth"
    nnunet_checkpoint(source)
    own = import_weights(source, "mine", "nnunet_plain").file
    # one label under its own name, one that is new
    adapter = make_adapter(
        tmp_path / "a", own, {"organ": [7], "spot": [9]}, ["CT"], ("affine", "lora")
    )
    typed = Typed(weights=str(own))
    made = export(adapter, "nnunet", tmp_path / "out", typed=typed, source=source)
    assert made.agreement >= 0.999
    assert {"plans.json", "dataset.json", "fold_0/checkpoint_final.pth"} <= set(made.files)
    labels = json.loads((made.folder / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0, "organ": 1, "other": 2, "spot": 3}
    with pytest.raises(UsageError, match="--source"):
        export(adapter, "nnunet", tmp_path / "again", typed=typed)
    other = tmp_path / "other.pth"
    other.write_bytes(source.read_bytes() + b" ")
    with pytest.raises(WeightsError, match=r"not the checkpoint|not a readable"):
        export(adapter, "nnunet", tmp_path / "again", typed=typed, source=other)


def test_refusals(adapter, weights, tmp_path, monkeypatch):
    typed = Typed(weights=str(weights))
    with pytest.raises(UsageError, match="there are bundle, nnunet, onnx, peft, torch"):
        export(adapter, "coreml", tmp_path / "out", typed=typed)
    with pytest.raises(UsageError, match="did not come from an nnU-Net"):
        export(adapter, "nnunet", tmp_path / "out", typed=typed)
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        export(adapter, "torch", tmp_path / "there", typed=typed)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r"needs onnx, onnxscript, onnxruntime.*sea_peft\[export\]"
    ):
        export(adapter, "onnx", tmp_path / "out", typed=typed)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_tool_that_takes_the_strongest_class_is_told_apart_from_one_that_is_wrong(
    tmp_path: Path,
) -> None:
    mask, predicts = tmp_path / "mask.nii.gz", np.array([[[0, 0], [0, 7]]])
    tried = trial.Trial(tmp_path, (), FileCase(id="trial", images={}), predicts)
    theirs = np.array([[[0, 2], [1, 2]]])
    write_volume(mask, Volume(theirs.astype(np.uint8), np.eye(4)))
    assert tried.agreement_of_classes(mask, "the tool", theirs, {2: 7}) == 0.75
    with pytest.raises(WeightsError, match=r"25\.00% of the voxels .* use the adapter as it is"):
        tried.agreement_of_classes(mask, "the tool", predicts, {2: 7})
    with pytest.raises(WeightsError, match=r"25\.00% of the voxels .* use the adapter as it is"):
        tried.agreement(mask, "the tool")


def test_the_trial_is_stored_as_nnunet_takes_axes() -> None:
    """nnU-Net turns nothing, so a scan has to lie as the network was trained to see it."""
    from nibabel import aff2axcodes

    from sea_peft.backbones.keymaps.nnunet import as_stored
    from sea_peft.jobs.exporting.nnunet import _turned

    scan = Volume(np.arange(24).reshape(2, 3, 4), np.diag([-1.0, -2.0, 3.0, 1.0]))
    turned = _turned(scan, "RAS")
    assert aff2axcodes(turned.affine) == ("R", "A", "S")
    assert (turned.array == scan.array[::-1, ::-1]).all()
    again = _turned(turned, "LPS")
    assert (again.array == scan.array).all()
    np.testing.assert_allclose(again.affine, scan.affine)
    assert as_stored("SPL", "LAS") == "SAL"
    assert as_stored("LPS", "RAS") == "RAS"
    assert as_stored("SPL", "LPS") is None
    assert as_stored("SAR", "LAS") is None, "it was imported with another orientation already"
    assert as_stored("SPL", "PSR") is None, "axes in another order"


@pytest.mark.parametrize(
    ("code", "way"),
    [
        ("import a_module_that_nobody_has", "the tool lacks a_module_that_nobody_has: install it"),
        ("raise SystemExit('no')", "(no), so nothing was written; use the adapter as it is"),
    ],
)
def test_a_tool_that_fails_is_quoted_with_the_way_out(code: str, way: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as refused:
        trial.run_tool([sys.executable, "-c", code], "the tool", tmp_path)
    assert way in str(refused.value)
