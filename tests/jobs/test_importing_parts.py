"""TotalSegmentator's folder of five part models, imported in one command. The layout is that of
the package's `libs.py`; networks are tiny.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from foreign import network, nnunet

from sea_peft import cli
from sea_peft.backbones.weights import load_pretrained

NAMES = {
    "291": "TotalSegmentator_part1_organs_1559subj",
    "292": "TotalSegmentator_part2_vertebrae_1532subj",
    "293": "TotalSegmentator_part3_cardiac_1559subj",
    "294": "TotalSegmentator_part4_muscles_1559subj",
    "295": "TotalSegmentator_part5_ribs_1559subj",
}
LABELS = {
    "291": ("spleen", "liver"),
    "292": ("vertebrae_L5", "vertebrae_L4"),
    "293": ("heart", "aorta"),
    "294": ("humerus_left", "hip_left"),
    "295": ("rib_left_1", "rib_left_2"),
}
NARROW = {"features": (4, 8), "strides": (1, 2), "decoder_convs": (1,), "convs": (1, 1)}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """`~/.totalsegmentator/nnunet/results` with five networks."""
    pytest.importorskip("dynamic_network_architectures")
    for number, name in NAMES.items():
        labels = {
            "background": 0,
            **{label: code for code, label in enumerate(LABELS[number], start=1)},
        }
        content = nnunet(network("nnunet_plain", **NARROW), labels=labels)
        content["init_args"]["plans"]["dataset_name"] = f"Dataset{number}_{name}"
        write(content, tmp_path / "results" / f"Dataset{number}_{name}")
    return tmp_path / "results"


def write(content: dict[str, object], dataset: Path, configuration: str = "3d_fullres") -> None:
    fold = dataset / f"nnUNetTrainerNoMirroring__nnUNetPlans__{configuration}" / "fold_0"
    fold.mkdir(parents=True)
    torch.save(content, fold / "checkpoint_final.pth")


def run(folder: Path, name: str = "total") -> int:
    return cli.run(
        [
            "backbones",
            "import",
            str(folder),
            "--as",
            name,
            "--backbone",
            "nnunet_plain",
            "--patch",
            "16,16,16",
            "--json",
        ]
    )


def test_five_part_models_become_one_list(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(results) == 0
    caught = capsys.readouterr()
    networks = json.loads(caught.out)["networks"]
    assert {n["name"]: tuple(n["labels"]) for n in networks} == {
        f"total_{n}": labels for n, labels in LABELS.items()
    }
    assert "It is TotalSegmentator's by its data set" in caught.err
    card = load_pretrained("total_293").card
    assert card.labels == ["background", "heart", "aorta"]
    assert card.recipe.orientation == "SAR", (
        "TotalSegmentator's canonical axes in the order of its nnU-Net"
    )
    assert card.assumed == [], "known of TotalSegmentator, guessed of any other nnU-Net"


def test_one_part_is_taken_by_its_folder(results: Path) -> None:
    assert run(results / f"Dataset294_{NAMES['294']}", "muscles") == 0
    assert load_pretrained("muscles").card.labels[1:] == ["humerus_left", "hip_left"]


def test_what_cannot_be_taken_is_said_and_stops_nothing(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = nnunet(network("nnunet_plain", **NARROW), labels={"background": 0, "a": 1, "b": 2})
    flat["init_args"]["plans"]["configurations"]["3d_lowres"]["patch_size"] = [32, 32]
    write(flat, results / f"Dataset291_{NAMES['291']}", "2d")
    assert run(results) == 8
    caught = capsys.readouterr()
    document = json.loads(caught.out)
    assert [n["name"] for n in document["networks"]] == [
        "total_291_3d_fullres",
        *(f"total_{n}" for n in range(292, 296)),
    ]
    (refused,) = document["refused"]
    assert "2D network" in refused["why"]
    assert "1 of 6 networks were not imported" in caught.err
    assert run(results) == 5, "none is left to take in, and the first says why"
