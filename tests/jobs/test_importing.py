from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from sea_peft import cli
from sea_peft.backbones import Architecture, architecture
from sea_peft.backbones.weights import load_pretrained, user_weights
from sea_peft.data.recipe import Recipe
from sea_peft.errors import UsageError, WeightsError
from sea_peft.jobs.importing import import_weights, read_checkpoint


@pytest.fixture
def tensors(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """A checkpoint of the small SegResNet, which is the one registered for these tests."""
    small = architecture("segresnet")
    build = small.build
    tiny = Architecture(
        small.name, lambda **kwargs: build(**{**small.small, **kwargs}), 8, 16, small.paper, small.licence, {}
    )
    for module in ("sea_peft.jobs.importing", "sea_peft.backbones.weights"):
        monkeypatch.setattr(f"{module}.architecture", lambda name: tiny)
    torch.manual_seed(0)
    return dict(tiny.build(in_channels=1, out_channels=3).state_dict())


def imported(file: Path, **changes: object):
    wanted = {
        "name": "mine",
        "backbone": "segresnet",
        "labels": ["liver", "spleen"],
        "channels": ["CT"],
        "recipe": Recipe(),
        "patch": (16, 16, 16),
        "licence": "CC BY 4.0",
    }
    return import_weights(file, **{**wanted, **changes})


@pytest.mark.parametrize("nesting", ["flat", "state_dict", "prefix", "both"])
def test_checkpoints_as_training_programs_write_them(
    tensors: dict[str, torch.Tensor], tmp_path: Path, nesting: str
) -> None:
    named = {f"module.{key}": t for key, t in tensors.items()} if nesting in ("prefix", "both") else tensors
    content = {"epoch": 3, "state_dict": named, "best": 0.9} if nesting in ("state_dict", "both") else named
    torch.save(content, tmp_path / "net.pth")
    result = imported(tmp_path / "net.pth")
    assert len(result.keys.matched) == len(tensors)
    loaded = load_pretrained("mine")
    assert loaded.card.labels == ["background", "liver", "spleen"]
    assert loaded.card.licence == "CC BY 4.0"
    for key, tensor in loaded.network.state_dict().items():
        torch.testing.assert_close(tensor, tensors[key], rtol=0, atol=0)


def test_extra_tensors_are_reported(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    safetensors.torch.save_file({**tensors, "deep_supervision.weight": torch.zeros(2)}, tmp_path / "net.safetensors")
    result = imported(tmp_path / "net.safetensors")
    assert result.keys.unexpected == ("deep_supervision.weight",)
    assert result.keys.complete


def test_an_incomplete_load_is_refused(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    del tensors["convInit.conv.weight"]
    torch.save(tensors, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"1 are missing \(convInit\.conv\.weight\); a load must be complete"):
        imported(tmp_path / "net.pth")
    assert not user_weights().exists()


def test_other_labels_and_another_network(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"have another shape \(first: conv_final\.2.*has \[3.*needed is \[2"):
        imported(tmp_path / "net.pth", labels=["liver"])
    torch.save({f"x{key}": tensor for key, tensor in tensors.items()}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"0 of \d+ tensors .* choose the right --backbone"):
        imported(tmp_path / "other.pth")


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="could run any code"):
        read_checkpoint(tmp_path / "evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(WeightsError):
        read_checkpoint(tmp_path / "evil.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"rubbish", b"PK\x03\x04rubbish"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"net{suffix}").write_bytes(content)
    with pytest.raises(WeightsError):
        read_checkpoint(tmp_path / f"net{suffix}")


def test_names(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "net.pth")
    imported(tmp_path / "net.pth")
    with pytest.raises(UsageError, match="weights called mine already"):
        imported(tmp_path / "net.pth")
    for name in ("a/b", "", "phantom_segresnet"):
        with pytest.raises(UsageError):
            imported(tmp_path / "net.pth", name=name)


def test_on_the_command_line(
    tensors: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(tensors, tmp_path / "net.pth")
    arguments = ["backbones", "import", str(tmp_path / "net.pth"), "--as", "mine", "--backbone", "segresnet", "--json"]
    arguments += [
        "--label",
        "liver",
        "--label",
        "spleen",
        "--channel",
        "CT",
        "--spacing",
        "1.5",
        "--window",
        "-175,250",
    ]
    assert cli.run(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["missing"] == []
    assert load_pretrained("mine").card.recipe["intensity"] == {"kind": "window", "low": -175.0, "high": 250.0}
