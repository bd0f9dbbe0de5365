"""A backbone of a few thousand parameters, five small scans, and an adapter that was never trained: enough to run every job."""

from __future__ import annotations

from pathlib import Path

import pytest
from disks import disk as disk
from toys import make_adapter, tiny_weights, toy_dataset


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
    return make_adapter(tmp_path_factory.mktemp("adapters") / "toy", weights, labels, ["CT"], ("affine", "lora"))
