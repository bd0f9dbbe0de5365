"""Files are what their content says, and nothing in them runs."""

from __future__ import annotations

import gzip
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from sea_peft.backbones.checkpoints import read_checkpoint
from sea_peft.errors import WeightsError


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2))
        self.out = nn.Conv3d(2, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.down(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_gives_its_tensors_without_running(tmp_path):
    network = Small().eval()
    torch.jit.trace(network, torch.zeros(1, 1, 4, 4, 4)).save(str(tmp_path / "model.pt"))
    found = read_checkpoint(tmp_path / "model.pt").tensors
    wanted = network.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_script_whose_pickle_calls_something_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/code/__torch__.py", "")
        archive.writestr("model/data.pkl", pickle.dumps(Evil(), protocol=2))
    with pytest.raises(WeightsError):
        read_checkpoint(tmp_path / "model.pt")
    assert not (tmp_path / "ran").exists()


def test_safetensors_are_known_under_any_name(tmp_path):
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "model.pth")
    assert read_checkpoint(tmp_path / "model.pth").tensors["a"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_arrays_beside_the_weights_are_read_and_arrays_of_objects_are_not(zipped, tmp_path):
    content = {
        "state_dict": {"w": torch.ones(2)},
        "losses": np.arange(3.0),
        "best": np.float32(0.5),
    }
    torch.save(content, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(tmp_path / "net.pth")
    assert read.content["losses"].tolist() == [0.0, 1.0, 2.0]
    torch.save({**content, "losses": np.array([Small], dtype=object)}, tmp_path / "net.pth")
    with pytest.raises(WeightsError):
        read_checkpoint(tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "a pointer of Git LFS; run `git lfs pull`",
        ),
        (b"<!DOCTYPE html><html></html>", "a web page, not a download"),
        (b'{"model": 1}', "JSON text"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5, as Keras"),
        (gzip.compress(b"x", mtime=0), "a gzip archive; unpack it"),
        (b"\x08\x08\x12\x07pytorch\x1a\x032.1", "an ONNX graph"),
        (b"", "empty"),
        (b"\x00\x01nonsense", "not a readable checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_named(content, sentence, tmp_path):
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=sentence):
        read_checkpoint(tmp_path / "model.pth")


def test_a_whole_network_is_refused_by_its_name_and_an_archive_by_what_is_in_it(tmp_path):
    torch.save(nn.Conv3d(1, 1, 1), tmp_path / "model.pth")
    with pytest.raises(
        WeightsError,
        match=r"more than tensors \(torch\.nn\.modules\.conv\.Conv3d\).*state_dict\(\)",
    ):
        read_checkpoint(tmp_path / "model.pth")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("fold_0/checkpoint_final.pth", b"x")
    with pytest.raises(
        WeightsError,
        match=r"zip archive of other files; unpack it, and give fold_0/checkpoint_final\.pth",
    ):
        read_checkpoint(tmp_path / "all.zip")


def test_folders_of_known_shapes_hold_one_checkpoint(tmp_path):
    for name in ("fold_0/checkpoint_final.pth", "fold_1/checkpoint_final.pth"):
        (tmp_path / name).parent.mkdir()
        torch.save({"w": torch.ones(1)}, tmp_path / name)
    with pytest.raises(
        WeightsError,
        match=r"holds 2 checkpoints \(fold_0/checkpoint_final\.pth, .*give one of them",
    ):
        read_checkpoint(tmp_path)
    assert read_checkpoint(tmp_path / "fold_0").file.name == "checkpoint_final.pth"
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="a folder without a checkpoint"):
        read_checkpoint(tmp_path / "empty")
