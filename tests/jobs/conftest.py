"""A backbone of a few thousand parameters, five small scans, and an adapter that was never
trained: enough to run every job.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from disks import disk as disk
from toys import make_adapter, tiny_weights, toy_dataset

from sea_peft.artefacts.adapter_file import CONFIG_NAME, read_adapter_config
from sea_peft.data.prepare import prepare
from sea_peft.jobs.options import AdaptOptions
from sea_peft.jobs.quality import look_at_shot, quality
from sea_peft.jobs.setup import prepare_run


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights of the user, no runs in the checkout."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny SegResNet that knows the organ and another label, with random values."""
    return tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five labelled cases in nnU-Net's layout."""
    return toy_dataset(tmp_path_factory.mktemp("data") / "Dataset007_Toy")


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """An adapter for the toy data's two labels, one of which the backbone does not know."""
    labels = {"organ": [1], "spot": [2]}
    return make_adapter(
        tmp_path_factory.mktemp("adapters") / "toy", weights, labels, ["CT"], ("affine", "lora")
    )


@pytest.fixture
def knowing(adapter, weights, toy, tmp_path) -> Path:
    """The toy adapter, as a run on the toy data would have left it."""
    setup = prepare_run(
        AdaptOptions(
            data=str(toy),
            weights=str(weights),
            out=tmp_path / "x",
            shots=5,
            budget="20%",
            mlflow=False,
        ),
        lambda _: None,
    )
    labels = tuple(setup.dataset.labels)
    shots = [
        prepare(case, setup.recipe, setup.dataset.channels, setup.dataset.labels)
        for case in setup.split.shots
    ]
    looks = [look_at_shot(shot, labels, setup.recipe.spacing) for shot in shots]
    sure = {"adapted": {"case": dict.fromkeys(labels, 0.9)}}
    found = quality(looks, labels, sure, {"adapted": {"case": dict.fromkeys(labels, 0.8)}})
    folder = shutil.copytree(adapter, tmp_path / "knowing")
    config = read_adapter_config(folder).model_copy(update={"quality": found})
    (folder / CONFIG_NAME).write_text(config.model_dump_json())
    assert read_adapter_config(folder).quality == found
    return folder


@pytest.fixture
def scans(toy: Path, tmp_path: Path) -> Path:
    """Three small scans, of which b is damaged."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name, number in (("a", 0), ("c", 1)):
        shutil.copy(toy / "imagesTr" / f"toy_{number}_0000.nii.gz", folder / f"{name}.nii.gz")
    (folder / "b.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes()[:-200])
    return folder
