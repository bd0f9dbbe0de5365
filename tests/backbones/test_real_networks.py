"""Published networks of real scans: what they are known to reach unadapted, taken in from the
files as their authors ship them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sea_peft.backbones.checkpoints import read_checkpoint
from sea_peft.backbones.weights import load_pretrained
from sea_peft.data.cases import FileCase, ImageFile
from sea_peft.data.prepare import prepare, restore
from sea_peft.data.recipe import Recipe
from sea_peft.data.sliding import SlidingWindow
from sea_peft.data.volumes import read_volume
from sea_peft.errors import UsageError, WeightsError
from sea_peft.jobs.expected import Given
from sea_peft.jobs.importing import Imported, import_weights
from sea_peft.jobs.inference import probabilities

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "real"


@pytest.fixture(autouse=True)
def own_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def real(path: str) -> Path:
    if not (REAL / path).exists():
        pytest.skip(f"{path} is not beside the repository")
    return REAL / path


def imported(path: str, backbone: str) -> Imported:
    return import_weights(real(path), "mine", backbone)


def dice(image: Path, label: Path, codes: dict[str, int | tuple[int, ...]]) -> dict[str, float]:
    """Of the unadapted network called `mine` on the whole scan: label → Dice with a code of the
    mask, or with several as one.
    """
    pretrained = load_pretrained("mine")
    card = pretrained.card
    scan = prepare(
        FileCase(id="scan", images={card.channels[0]: ImageFile(image)}),
        Recipe.model_validate(card.recipe),
        card.channels,
    )
    window = SlidingWindow(patch=card.patch, overlap=0.25)
    (output,) = probabilities(pretrained.network, scan, window, torch.device("cpu"), batch=1)
    found, wanted = restore(output, scan.geometry), read_volume(label).array
    scores = {}
    for name, code in codes.items():
        p, r = found == card.labels.index(name), np.isin(wanted, code)
        scores[name] = 2.0 * np.count_nonzero(p & r) / (np.count_nonzero(p) + np.count_nonzero(r))
    return scores


def test_obelisks_network_says_all_but_its_labels_itself():
    result = imported("weights_obelisk/allconvunet_tcia_fold1.pth", "obelisk")
    assert (result.origin, result.parameters, len(result.keys.matched)) == ("obelisk", 883_740, 98)
    card = load_pretrained("mine").card
    assert card.labels == [
        "background",
        "spleen",
        "pancreas",
        "left kidney",
        "gallbladder",
        "esophagus",
        "liver",
        "stomach",
        "duodenum",
    ]
    assert (card.recipe.orientation, card.patch, card.assumed) == ("LAI", (144, 144, 144), [])
    said = {expected.what: (expected.value, expected.by) for expected in result.expects}
    assert said["intensity"] == ("none:-1024,3071", "origin")


@pytest.mark.slow
def test_obelisks_network_finds_the_liver_of_another_scanner():
    imported("weights_obelisk/allconvunet_tcia_fold1.pth", "obelisk")
    image, label = (real(f"ct_organs/{kind}/totalseg_ct.nii.gz") for kind in ("images", "labels"))
    assert dice(image, label, {"liver": 1})["liver"] >= 0.9


@pytest.mark.parametrize(
    ("path", "parameters", "classes"),
    [("model18cls", 96_408, 18), ("subcortical", 196_038, 18), ("model5_gw_ae", 5_598, 3)],
)
def test_meshnets_take_their_dilations_from_the_file_beside_them(path, parameters, classes):
    result = imported(f"weights_brainchop/{path}/model.safetensors", "meshnet")
    assert (result.origin, result.settings["dilations"]) == (
        "brainchop",
        [1, 2, 4, 8, 16, 8, 4, 2, 1],
    )
    assert result.settings["activation"] == ("relu" if path == "model5_gw_ae" else "elu")
    named = path == "model18cls"  # the only one whose colormap.json names every class
    assert len(load_pretrained("mine").card.labels) == (classes if named else 1)
    width = result.settings["width"]
    assert result.parameters == parameters - (0 if named else (classes - 1) * (width + 1))


def test_a_meshnet_without_the_file_beside_it_asks(tmp_path):
    """As brainchop's own site has it: safetensors that are called .pth."""
    content = real("weights_brainchop/model18cls/model.safetensors").read_bytes()
    (tmp_path / "model.pth").write_bytes(content)
    assert len(read_checkpoint(tmp_path / "model.pth").tensors) == 20
    with pytest.raises(UsageError, match=r"give the setting dilations="):
        import_weights(
            tmp_path / "model.pth",
            "mine",
            "meshnet",
            Given(channels=["T1"], spacing=(1.0, 1.0, 1.0)),
        )


@pytest.mark.slow
def test_a_meshnet_finds_the_structures_of_a_brain():
    imported("weights_brainchop/model18cls/model.safetensors", "meshnet")
    names = load_pretrained("mine").card.labels[1:]
    image, label = (
        sorted(real(f"oasis_subcortical/{kind}").iterdir())[0] for kind in ("imagesTr", "labelsTr")
    )
    found = dice(image, label, {name: code for code, name in enumerate(names, start=1)})
    assert 0.70 <= np.mean(list(found.values())) <= 0.80
    assert found["Thalamus"] > 0.8


@pytest.mark.parametrize(
    ("name", "values"), [("hippodeep.pt", 499_179), ("params_head_00075_00000.pt", 286_379)]
)
def test_hippodeeps_legacy_files_are_read(name, values):
    tensors = read_checkpoint(real(f"weights_hippodeep/{name}")).tensors
    assert sum(tensor.numel() for tensor in tensors.values()) == values


def test_hippodeep_finds_the_hippocampus_of_another_set():
    """Of one that its import mirrors: crops of the Decathlon look as the left side does to it.
    Unmirrored it finds next to nothing.
    """
    file, given = real("weights_hippodeep/hippodeep.pt"), Given(orientation="RAS")
    result = import_weights(file, "mine", "hippodeep", given)
    assert (result.origin, result.parameters, result.labels) == (
        "hippodeep",
        499_002,
        ("hippocampus",),
    )
    assert any("mirrored left ones" in sentence for sentence in result.said)
    image, label = (
        real(f"msd_hippocampus/{kind}/hippocampus_001.nii.gz") for kind in ("imagesTr", "labelsTr")
    )
    assert dice(image, label, {"hippocampus": (1, 2)})["hippocampus"] > 0.8


def test_hippodeeps_network_of_the_head_is_no_network_of_the_hippocampus():
    with pytest.raises(WeightsError, match="0 of 38 tensors of hippodeep fit"):
        import_weights(
            real("weights_hippodeep/params_head_00075_00000.pt"),
            "mine",
            "hippodeep",
            Given(channels=["T1"], spacing=(1.0, 1.0, 1.0)),
        )
