"""Small scans written by real writers, and the real scans that may lie beside the repository."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from synthetic_scans import AFFINE, MemoryCase, scan

from sea_peft.data.volumes import Volume, write_volume

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def memory_case() -> Callable[..., MemoryCase]:
    def make(seed: int = 0, name: str | None = None) -> MemoryCase:
        image, label = scan(seed)
        return MemoryCase(name or f"case_{seed}", {"CT": image}, label)

    return make


@pytest.fixture
def nnunet(tmp_path: Path) -> Callable[..., Path]:
    """Write an nnU-Net raw folder with `count` cases; `description` overrides entries of
    dataset.json.
    """

    def make(
        count: int = 4,
        channels: Sequence[str] = ("CT",),
        name: str = "Dataset001_Toy",
        **description,
    ) -> Path:
        root = tmp_path / name
        for folder in ("imagesTr", "labelsTr"):
            (root / folder).mkdir(parents=True)
        for number in range(count):
            image, label = scan(number)
            for channel in range(len(channels)):
                path = root / "imagesTr" / f"toy_{number:03d}_{channel:04d}.nii.gz"
                write_volume(path, Volume(image + channel, AFFINE))
            write_volume(root / "labelsTr" / f"toy_{number:03d}.nii.gz", Volume(label, AFFINE))
        content = {
            "channel_names": {str(i): c for i, c in enumerate(channels)},
            "labels": {"background": 0, "liver": 1, "spleen": 2},
            "numTraining": count,
            "file_ending": ".nii.gz",
        } | description
        (root / "dataset.json").write_text(json.dumps(content))
        return root

    return make


@pytest.fixture(scope="session")
def brats2015() -> Path:
    return _real("brats2015")


@pytest.fixture(scope="session")
def pyradiomics() -> Path:
    return _real("pyradiomics")


def _real(name: str) -> Path:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"the real scans of {name} are not beside the repository")
    return path
