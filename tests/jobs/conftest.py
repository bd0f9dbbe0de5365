"""A backbone of a few thousand parameters, five small scans, and an adapter that was never trained: enough to run every job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from toys import AFFINE, PATCH, make_adapter, toy_scan

from sea_peft.backbones import architecture
from sea_peft.backbones.weights import save_weights
from sea_peft.data.recipe import Recipe, Window
from sea_peft.data.volumes import Volume, write_volume


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights of the user, no runs in the checkout."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny SegResNet that knows the organ and another label, with random values."""
    arch = architecture("segresnet")
    torch.manual_seed(3)
    network = arch.build(in_channels=1, out_channels=3, **arch.small)
    card = {
        "name": "tiny",
        "architecture": "segresnet",
        "kwargs": dict(arch.small),
        "labels": ["background", "organ", "other"],
        "channels": ["CT"],
        "recipe": Recipe(
            spacing=(2.0, 2.0, 2.0), intensity=Window(low=-100, high=200), crop_foreground=False
        ).model_dump(mode="json"),
        "patch": PATCH,
        "licence": "Apache-2.0",
    }
    folder = tmp_path_factory.mktemp("weights")
    return save_weights(folder, network, card, half=False).with_suffix(".safetensors")


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five labelled cases in nnU-Net's layout."""
    root = tmp_path_factory.mktemp("data") / "Dataset007_Toy"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for number in range(5):
        image, label = toy_scan(number)
        write_volume(root / "imagesTr" / f"toy_{number}_0000.nii.gz", Volume(image, AFFINE))
        write_volume(root / "labelsTr" / f"toy_{number}.nii.gz", Volume(label, AFFINE))
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "organ": 1, "spot": 2},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """An adapter for the toy data's two labels, one of which the backbone does not know."""
    labels = {"organ": [1], "spot": [2]}
    return make_adapter(tmp_path_factory.mktemp("adapters") / "toy", weights, labels, ["CT"], ("affine", "lora"))
