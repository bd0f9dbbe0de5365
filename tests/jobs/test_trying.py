"""`seapeft backbones try` on a network whose right orientation and scaling are known by
construction.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from sea_peft import cli
from sea_peft.backbones import architecture
from sea_peft.backbones.field_of_view import field_of_view
from sea_peft.backbones.limits import Limits
from sea_peft.data.volumes import Volume, read_volume, write_volume
from sea_peft.errors import UsageError
from sea_peft.jobs.expected import Given, Unscaled
from sea_peft.jobs.importing import import_weights
from sea_peft.jobs.trying import try_backbone

SHIFT = (8, 4, 2)  # voxels that the network looks ahead along D, H, W
THRESHOLD = 60.0  # HU


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A MeshNet that marks what is above 60 HU a few voxels further along each axis: its axes
    and its units both matter.
    """
    made = architecture("meshnet").build(width=1, dilations=SHIFT, activation="relu")
    for axis, key in enumerate(("model.0", "model.2", "model.4")):
        weight = torch.zeros(1, 1, 3, 3, 3)
        weight[(0, 0, *(2 if other == axis else 1 for other in range(3)))] = 1.0
        made.get_submodule(key).weight.data = weight
        made.get_submodule(key).bias.data.zero_()
    head = made.get_submodule("model.6")
    head.weight.data = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1, 1)
    head.bias.data = torch.tensor([0.0, -THRESHOLD])
    safetensors.torch.save_file(dict(made.state_dict()), tmp_path / "net.pth")
    return tmp_path / "net.pth"


@pytest.fixture
def scan(tmp_path: Path) -> tuple[Path, Path]:
    """A ball in air and the mask that the network gives it when it is read as LAI in plain HU;
    identity affine, so axes are RAS.
    """
    at = np.stack(np.meshgrid(*(np.arange(n) for n in (40, 36, 44)), indexing="ij"))

    def ball(centre: tuple[int, int, int]) -> np.ndarray:
        return ((at - np.array(centre)[:, None, None, None]) ** 2).sum(0) < 49

    image = np.full(at.shape[1:], -1000.0, dtype=np.float32)
    image[ball((18, 18, 22))] = 100.0
    image += np.random.default_rng(0).normal(0, 5, image.shape).astype(np.float32)
    # ahead is L, A, I: the mask lies that much behind, which is to the right, the back and the top
    mask = ball((18 + SHIFT[0], 18 - SHIFT[1], 22 + SHIFT[2])).astype(np.uint8)
    write_volume(tmp_path / "scan.nii.gz", Volume(image, np.eye(4)))
    write_volume(tmp_path / "mask.nii.gz", Volume(5 * mask, np.eye(4)))
    return tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz"


def taken_in(file: Path, **changes: object) -> None:
    given = {
        "labels": ["ball"], "channels": ["CT"], "spacing": (1.0, 1.0, 1.0), "patch": (32, 32, 32),
        "settings": {"dilations": list(SHIFT), "activation": "relu"},
    }  # fmt: skip
    result = import_weights(file, "mine", "meshnet", Given(**{**given, **changes}))
    assumed = [expected.what for expected in result.expects if expected.by == "assumed"]
    assert assumed == [what for what in ("orientation", "intensity") if what not in changes]


def test_the_right_reading_is_found_from_a_wrong_card(network, scan, tmp_path):
    taken_in(network)
    tried = try_backbone("mine", *scan, out=tmp_path / "out", seconds=600)
    assert tried.own is not None
    assert (tried.own.orientation, tried.own.intensity, tried.dice["ball"]) == (
        "RAS",
        "zscore",
        0.0,
    )
    best = tried.better[0]
    assert (best.orientation, best.intensity) == ("LAI", "none:-1024,3071")
    assert best.dice > 0.95
    assert tried.looked_at == 48 * 4
    assert read_volume(tried.mask).array.max() == 0
    assert tried.picture.read_bytes().startswith(b"\x89PNG")


def test_a_search_without_time_verifies_the_best_that_it_saw(network, scan, tmp_path):
    taken_in(network)
    tried = try_backbone("mine", *scan, out=tmp_path / "out", seconds=1e-6)
    assert (tried.looked_at, tried.ways, tried.better) == (1, 48 * 4, ())


def test_what_overlaps_by_chance_is_no_better_reading(network, scan, tmp_path, capsys):
    """The only reading that finds anything finds one voxel in thirty of what it marks."""
    taken_in(network)
    mask = read_volume(scan[1])
    drawn = np.asarray(mask.array)
    few = np.where(np.random.default_rng(1).random(drawn.shape) < 1 / 30, drawn, 0).astype(np.uint8)
    write_volume(scan[1], Volume(few, np.eye(4)))
    arguments = [
        "backbones",
        "try",
        "mine",
        str(scan[0]),
        "--label",
        str(scan[1]),
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.run([*arguments, "--class", "ball=5"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "fits clearly better, and the network hardly finds these labels as imported." in shown
    assert "To import it that way" not in shown


def test_a_right_card_has_nothing_to_look_for(network, scan, tmp_path, capsys):
    taken_in(network, orientation="LAI", intensity=Unscaled())
    arguments = [
        "backbones",
        "try",
        "mine",
        str(scan[0]),
        "--label",
        str(scan[1]),
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.run([*arguments, "--class", "ball=5", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["dice"]["ball"] > 0.95
    assert document["codes"] == {"ball": [5]}
    assert document["better"] == []
    assert document["volumes_ml"]["ball"] == pytest.approx(1.4, abs=0.1)
    assert cli.run(arguments) == 2  # nothing is replaced unasked
    assert cli.run([*arguments, "--overwrite", "--no-search", "--class", "spleen=5"]) == 2


def test_without_named_classes_there_is_no_mask_to_look_at(network, scan, tmp_path):
    taken_in(network, labels=None)
    with pytest.raises(UsageError, match="untrained classifier"):
        try_backbone("mine", scan[0], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_field_of_view_is_what_the_kernels_add_up_to():
    made = architecture("meshnet").build(width=2, dilations=(1, 2, 4)).eval()
    view = field_of_view(made, 1, Limits((1, 1, 1), (1, 1, 1)))
    assert (view.extent, view.bounded, view.statistics) == ((15, 15, 15), True, False)


def test_a_norm_over_the_whole_patch_is_told_apart_from_the_kernels():
    made = torch.nn.Sequential(
        torch.nn.Conv3d(1, 2, 3, padding=1),
        torch.nn.InstanceNorm3d(2, affine=True),
        torch.nn.Conv3d(2, 2, 5, padding=2),
    ).eval()
    view = field_of_view(made, 1, Limits((1, 1, 1), (1, 1, 1)))
    assert (view.extent, view.bounded, view.statistics) == ((7, 7, 7), True, True)
    assert not any(module._forward_hooks for module in made.modules())
