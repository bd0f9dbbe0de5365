from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from foreign import (
    SWIN,
    dynunet_supervised,
    fseft,
    mednext_authors,
    mednext_monai,
    network,
    nnunet,
    segresnet_vae,
    suprem_segresnet,
    suprem_universal,
    swin_vit,
    swin_whole,
    unetr_of,
)

from sea_peft import cli
from sea_peft.backbones import architecture, find_sites
from sea_peft.backbones.checkpoints import read_checkpoint
from sea_peft.backbones.weights import load_pretrained, user_weights
from sea_peft.data.recipe import Window
from sea_peft.errors import DiskError, UsageError, WeightsError
from sea_peft.jobs.expected import Given, Unscaled
from sea_peft.jobs.importing import Imported, import_weights

SMALL = dict(architecture("segresnet").small)
GIVEN = {
    "labels": ["liver", "spleen"],
    "channels": ["CT"],
    "spacing": (1.5, 1.5, 1.5),
    "intensity": Window(low=-175, high=250),
    "patch": (16, 16, 16),
    "licence": "CC BY 4.0",
}


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """A checkpoint of a small SegResNet with three outputs."""
    return dict(network("segresnet", **SMALL).state_dict())


def imported(
    file: Path,
    name: str = "mine",
    backbone: str = "segresnet",
    origin: str = "auto",
    **changes: object,
) -> Imported:
    return import_weights(file, name, backbone, Given(**{**GIVEN, **changes}), origin)


@pytest.mark.parametrize("nesting", ["flat", "state_dict", "prefix", "both"])
def test_checkpoints_as_training_programs_write_them(
    tensors: dict[str, torch.Tensor], tmp_path: Path, nesting: str
) -> None:
    named = (
        {f"module.{key}": t for key, t in tensors.items()}
        if nesting in ("prefix", "both")
        else tensors
    )
    content = (
        {"epoch": 3, "state_dict": named, "best": 0.9}
        if nesting in ("state_dict", "both")
        else named
    )
    torch.save(content, tmp_path / "net.pth")
    result = imported(tmp_path / "net.pth")
    assert len(result.keys.matched) == len(tensors)
    loaded = load_pretrained("mine")
    assert loaded.card.labels == ["background", "liver", "spleen"]
    assert loaded.card.licence == "CC BY 4.0"
    for key, tensor in loaded.network.state_dict().items():
        torch.testing.assert_close(tensor, tensors[key], rtol=0, atol=0)


def test_tensors_without_a_place_are_refused(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    more = {f"attention.{n}.weight": torch.zeros(2) for n in range(6)}
    safetensors.torch.save_file({**tensors, **more}, tmp_path / "net.safetensors")
    with pytest.raises(WeightsError) as caught:
        imported(tmp_path / "net.safetensors")
    sentence = str(caught.value)
    first = ", ".join(f"attention.{n}.weight" for n in range(5))
    assert (
        f"tensors of segresnet fit (100%); 6 are not known ({first}, …); without them the network"
        " gives other" in sentence
    )
    assert sentence.endswith(
        "choose the --backbone, --origin or --setting that has a place for them, or give the"
        " checkpoint's own network as --backbone package.module:factory."
    )
    assert not user_weights().exists()


def test_networks_that_hold_all_of_ours_and_more_are_refused(tmp_path: Path) -> None:
    """They fit tensor by tensor and compute something else."""
    from monai.networks.nets import UNet

    batch = UNet(3, 1, 3, channels=(4, 8, 16), strides=(2, 2), num_res_units=2, norm="batch")
    torch.save(batch.state_dict(), tmp_path / "unet.pth")
    with pytest.raises(WeightsError, match=r"\(100%\); \d+ are not known \(.*adn\.N\."):
        imported(
            tmp_path / "unet.pth",
            backbone="unet",
            settings={"channels": [4, 8, 16]},
            patch=(32, 32, 32),
        )


@pytest.mark.parametrize(
    ("version", "proj_type", "left_out"), [("0.7", "perceptron", 4), ("1.4", "conv", 25)]
)
def test_unetr_of_every_monai(tmp_path: Path, version: str, proj_type: str, left_out: int) -> None:
    """Made with MONAI's own network, and the same outputs; not verified against a real file."""
    from monai.networks.nets import UNETR

    of = UNETR(
        1, 3, 32, feature_size=2, hidden_size=8, mlp_dim=8, num_heads=2, proj_type=proj_type
    ).eval()
    torch.save(unetr_of(version, of), tmp_path / "net.pth")
    result = imported(tmp_path / "net.pth", backbone="unetr", settings={"num_heads": 2}, patch=None)
    assert len(result.left_out) == left_out
    loaded = load_pretrained("mine")
    x = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.network(x), of(x))


def test_version_2_of_swinunetr(tmp_path: Path) -> None:
    from monai.networks.nets import SwinUNETR

    small = dict(architecture("swinunetr").small)
    of = SwinUNETR(in_channels=1, out_channels=3, use_v2=True, **small).eval()
    torch.save(of.state_dict(), tmp_path / "swin.pth")
    imported(
        tmp_path / "swin.pth",
        backbone="swinunetr",
        settings={"merging": "monai>=1.5"},
        patch=(64, 64, 64),
    )
    loaded = load_pretrained("mine")
    x = torch.randn(1, 1, 64, 64, 32)
    with torch.no_grad():
        assert torch.equal(loaded.network(x), of(x))
    sites = {site.path: site.stage for site in find_sites(loaded.network, loaded.example)}
    assert {sites[f"swinViT.layers{n}c.0.layer.conv1.conv"] for n in (1, 2, 3)} == {"encoder"}


@pytest.mark.parametrize(
    ("backbone", "kwargs", "write", "left_out"),
    [
        ("dynunet", {"filters": (4, 8, 16, 16), "strides": (1, 2, 2, 2)}, dynunet_supervised, 4),
        ("segresnet", SMALL, segresnet_vae, 3),
        ("mednext_s", {"init_filters": 4}, mednext_monai, 1),
        ("unet3d", {"width": 4}, fseft, 2),
        ("swinunetr", SWIN, swin_whole, 5),
    ],
)
def test_what_stands_beside_a_network_and_never_acts_on_its_outputs_is_left_out(
    tmp_path: Path, backbone: str, kwargs: dict, write, left_out: int
) -> None:
    """Not verified against a real file of any of these."""
    of = network(backbone, **kwargs)
    torch.save(write(of), tmp_path / "net.pth")
    labels = None if write in (fseft, swin_whole) else GIVEN["labels"]
    result = imported(tmp_path / "net.pth", backbone=backbone, labels=labels, patch=None)
    assert len(result.left_out) == left_out
    loaded = load_pretrained("mine")
    assert loaded.card.left_out == list(result.left_out)
    if labels is not None:
        with torch.no_grad():
            assert torch.equal(loaded.network(loaded.example), of(loaded.example))


def test_what_is_left_out_may_share_the_prefix_of_all_keys(tmp_path: Path) -> None:
    content = segresnet_vae(network("segresnet", **SMALL))
    torch.save({f"net.{key}": tensor for key, tensor in content.items()}, tmp_path / "net.pth")
    assert imported(tmp_path / "net.pth").left_out == (
        "vae_down.2.conv.weight",
        "vae_fc1.weight",
        "vae_fc_up_sample.0.conv.weight",
    )


def test_an_incomplete_load_is_refused(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    del tensors["up_samples.0.0.conv.weight"]
    torch.save(tensors, tmp_path / "net.pth")
    with pytest.raises(
        WeightsError,
        match=r"1 are missing \(up_samples\.0\.0\.conv\.weight\); a load must be complete",
    ):
        imported(tmp_path / "net.pth")
    assert not user_weights().exists()


def test_other_labels_and_another_network(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "net.pth")
    with pytest.raises(
        WeightsError, match=r"have another shape \(first: conv_final\.2.*has \[3.*needed is \[2"
    ):
        imported(tmp_path / "net.pth", labels=["liver"])
    torch.save({f"x{key}": tensor for key, tensor in tensors.items()}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"0 of \d+ tensors .* choose the right --backbone"):
        imported(tmp_path / "other.pth", labels=None)


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


def test_what_nobody_knows_is_asked_for(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "net.pth")
    for changes, flag in (({"channels": None}, "--channel"), ({"spacing": None}, "--spacing")):
        with pytest.raises(UsageError, match=f"give {flag}"):
            imported(tmp_path / "net.pth", **changes)
    torch.save(network("swinunetr", **SWIN).state_dict(), tmp_path / "swin.pth")
    with pytest.raises(
        UsageError, match=r"merging is: before MONAI 1\.5 .* give the setting merging="
    ):
        imported(tmp_path / "swin.pth", backbone="swinunetr", patch=(96, 96, 96))
    with pytest.raises(UsageError, match=r"cannot be built with .*no_such_width=3"):
        imported(tmp_path / "net.pth", settings={"no_such_width": 3})


def test_a_classifier_whose_rows_nobody_names_is_replaced_and_said_to_be(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(tensors, tmp_path / "net.pth")
    result = imported(tmp_path / "net.pth", labels=None)
    assert result.new == ("conv_final.2.conv.bias", "conv_final.2.conv.weight")
    assert any("new and untrained" in sentence for sentence in result.said)
    loaded = load_pretrained("mine")
    assert loaded.card.labels == ["background"]
    assert loaded.card.new == list(result.new)
    own = loaded.network.state_dict()
    assert own["conv_final.2.conv.weight"].unique().tolist() == [0.125]
    assert not own["conv_final.2.conv.bias"].any()
    for key in own.keys() - set(result.new):
        assert torch.equal(own[key], tensors[key])
    # the new row hides nothing from the probe
    with_classes = network("segresnet", **SMALL)
    assert [s.path for s in find_sites(loaded.network, loaded.example)] == [
        s.path for s in find_sites(with_classes, loaded.example)
    ]


def test_a_network_that_runs_its_classes_through_more_than_a_classifier_needs_labels(
    tmp_path: Path,
) -> None:
    of = network("unet", channels=(4, 8, 16))
    torch.save(of.state_dict(), tmp_path / "net.pth")
    wanted = {"backbone": "unet", "settings": {"channels": [4, 8, 16]}, "patch": (32, 32, 32)}
    with pytest.raises(WeightsError, match="have another shape"):
        imported(tmp_path / "net.pth", labels=None, **wanted)
    assert not imported(tmp_path / "net.pth", **wanted).new


@pytest.mark.parametrize(
    ("origin", "backbone", "kwargs", "write"),
    [
        ("suprem", "segresnet", {"init_filters": 8}, suprem_segresnet),
        ("suprem", "unet3d", {"width": 4}, suprem_universal),
        ("suprem", "swinunetr", SWIN, suprem_universal),
        ("fseft", "swinunetr", SWIN, fseft),
    ],
)
def test_origins_bring_recipe_patch_and_settings(
    tmp_path: Path, origin: str, backbone: str, kwargs: dict, write
) -> None:
    """Not verified against a real file: only that published names, widths and preprocessing are
    taken up.
    """
    of = network(backbone, **kwargs)
    torch.save(write(of), tmp_path / "net.pth")
    result = import_weights(tmp_path / "net.pth", "mine", backbone)
    assert result.origin == origin
    assert result.said[0].startswith(f"Origin {origin}: ")
    assert result.new
    loaded = load_pretrained("mine")
    card = loaded.card
    assert (card.labels, card.channels, card.patch) == (["background"], ["CT"], (96, 96, 96))
    assert card.recipe.intensity == Window(low=-175.0, high=250.0)
    assert card.recipe.spacing == (1.5, 1.5, 1.5)
    assert len(card.source_sha256) == 64
    assert card.kwargs.get("merging") == ("monai<1.5" if backbone == "swinunetr" else None)
    if backbone == "swinunetr":
        assert type(loaded.network.swinViT.layers1[0].downsample).__name__ == "PatchMergingBefore15"
    with pytest.raises(UsageError, match=r"cannot be used here .* leave --labels out"):
        imported(tmp_path / "net.pth", name="other", backbone=backbone)


def test_a_transformer_without_its_decoder_is_refused(tmp_path: Path) -> None:
    """Not verified against a real `model_swinvit.pt`."""
    torch.save(swin_vit(network("swinunetr", **SWIN)), tmp_path / "model_swinvit.pt")
    with pytest.raises(
        WeightsError, match=r"tensors of swinunetr fit \(\d\d%\).*are missing \(decoder1"
    ):
        imported(
            tmp_path / "model_swinvit.pt", backbone="swinunetr", labels=None, patch=(64, 64, 64)
        )


def test_mednext_of_the_authors_gives_the_same_outputs(tmp_path: Path) -> None:
    """Not verified against a real file: the authors' network is MONAI's port of it with their
    names and output shape.
    """
    of = network("mednext_b", init_filters=4, down_expansion=[3, 4, 4, 4])
    torch.save(mednext_authors(of), tmp_path / "net.pth")
    result = imported(tmp_path / "net.pth", backbone="mednext_b", patch=(32, 32, 32))
    assert (result.settings["init_filters"], result.settings["kernel_size"]) == (4, 3)
    assert result.settings["down_expansion"] == [3, 4, 4, 4]
    assert len(result.left_out) == 9
    loaded = load_pretrained("mine")
    with torch.no_grad():
        assert torch.equal(loaded.network(loaded.example), of(loaded.example))


@pytest.mark.parametrize("letter", ["s", "b", "l"])
def test_the_letter_of_a_mednext_decides_nothing(letter: str, tmp_path: Path) -> None:
    """An M has the ratios of a B and more blocks: whatever it is called, all of them are there."""
    of = network("mednext_m", init_filters=4, down_expansion=[3, 4, 4, 4])
    torch.save(mednext_authors(of), tmp_path / "net.pth")
    result = imported(tmp_path / "net.pth", backbone=f"mednext_{letter}", patch=(32, 32, 32))
    assert result.settings["blocks"] == [3, 4, 4, 4, 4, 4, 4, 4, 3]
    loaded = load_pretrained("mine")
    with torch.no_grad():
        assert torch.equal(loaded.network(loaded.example), of(loaded.example))


def test_nnunet_checkpoints_need_nothing_to_be_said(tmp_path: Path) -> None:
    """Not verified against a real file. Tensors are stored under all of nnU-Net's names for
    them and kept once.
    """
    pytest.importorskip("dynamic_network_architectures")
    shape = {
        "features": (4, 8, 16),
        "strides": (1, 2, (1, 2, 2)),
        "decoder_convs": (2, 2),
        "convs": (2, 2, 1),
    }
    of = network("nnunet_plain", **shape)
    torch.save(nnunet(of), tmp_path / "checkpoint_final.pth")
    import_weights(tmp_path / "checkpoint_final.pth", "mine", "nnunet_plain")
    loaded = load_pretrained("mine")
    assert loaded.card.labels == ["background", "liver", "spleen"]
    assert loaded.limits.divisor == (2, 4, 4)
    window, settings = loaded.card.window(), loaded.card.kwargs
    assert window.inferer == "nnunet"
    assert window.pad != 0.0
    beyond_the_scan = settings["input_factor"] * window.pad + settings["input_offset"]
    assert beyond_the_scan == pytest.approx(0, abs=1e-6), "as nnU-Net pads"
    assert len(safetensors.torch.load_file(user_weights() / "mine.safetensors")) < len(
        of.state_dict()
    )
    x = loaded.example
    with torch.no_grad():
        inside = loaded.card.kwargs["input_factor"] * x + loaded.card.kwargs["input_offset"]
        assert torch.equal(loaded.network(x), of(inside))


def test_the_patch_that_nobody_gives_is_one_that_the_network_takes(tmp_path: Path) -> None:
    """Seven stages take multiples of 64, and 96 is none."""
    strides = (1, (1, 2, 2), (1, 2, 2), (1, 2, 2), (1, 2, 2), 2, 2)
    of = network("dynunet", filters=(4,) * 7, strides=strides)
    torch.save(of.state_dict(), tmp_path / "net.pth")
    imported(tmp_path / "net.pth", backbone="dynunet", patch=None)
    assert load_pretrained("mine").card.patch == (96, 128, 128)


def test_two_names_of_one_tensor_must_agree(tmp_path: Path) -> None:
    pytest.importorskip("dynamic_network_architectures")
    tensors = dict(network("nnunet_plain", **dict(architecture("nnunet_plain").small)).state_dict())
    key = next(key for key in tensors if ".all_modules.0." in key)
    torch.save({**tensors, key: tensors[key] + 1}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match="are one tensor of the network and differ"):
        imported(tmp_path / "net.pth", backbone="nnunet_plain", patch=(32, 32, 32))


def test_tensors_that_are_not_finite_are_refused(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    tensors["convInit.conv.weight"][0, 0, 0, 0, 0] = float("nan")
    torch.save(tensors, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"convInit\.conv\.weight holds NaN or infinity"):
        imported(tmp_path / "net.pth")


def test_a_disk_that_is_full_does_not_take_the_name(
    tensors: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(tensors, tmp_path / "net.pth")
    replace = os.replace

    def full(source: str | Path, target: str | Path) -> None:
        if Path(target).suffix == ".json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(DiskError) as caught:
            imported(tmp_path / "net.pth")
    assert str(caught.value).endswith(
        "mine.json: the disk is full: free some space there, or have it written elsewhere, which"
        " XDG_DATA_HOME sets."
    )
    assert not list(user_weights().iterdir())
    imported(tmp_path / "net.pth")
    assert load_pretrained("mine").card.name == "mine"


def test_on_the_command_line(
    tensors: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(tensors, tmp_path / "net.pth")
    arguments = [
        "backbones",
        "import",
        str(tmp_path / "net.pth"),
        "--as",
        "mine",
        "--backbone",
        "segresnet",
        "--json",
    ]
    arguments += [
        "--labels",
        "liver,spleen",
        "--channel",
        "CT",
        "--spacing",
        "1.5",
        "--intensity",
        "window:-175,250",
    ]
    arguments += ["--setting", "init_filters=8", "--setting", "blocks_up=[1,1]"]
    assert cli.run(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["missing"] == []
    assert document["origin"] == "plain"
    assert document["settings"]["blocks_up"] == [1, 1]
    assert load_pretrained("mine").card.recipe.intensity == Window(low=-175.0, high=250.0)
    assert cli.run([*arguments[:4], "other", *arguments[5:7], "--setting", "8"]) == 2


def test_one_sigmoid_is_two_classes_with_logits_0_and_z(tmp_path: Path) -> None:
    of = network("segresnet", **{**SMALL, "out_channels": 1})
    torch.save(of.state_dict(), tmp_path / "net.pth")
    result = imported(tmp_path / "net.pth", labels=["liver"])
    assert any("one output is a sigmoid" in sentence for sentence in result.said)
    loaded = load_pretrained("mine")
    with torch.no_grad():
        ours, theirs = loaded.network(loaded.example), of(loaded.example)
    assert torch.equal(ours[:, :1], torch.zeros_like(theirs))
    torch.testing.assert_close(ours.softmax(1)[:, 1:], theirs.sigmoid())


def test_who_says_what_a_scan_is_turned_into(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(tensors, tmp_path / "net.pth")
    result = imported(tmp_path / "net.pth", orientation="LPS", intensity=None, patch=None)
    assert {(e.what, e.by) for e in result.expects} == {
        ("labels", "you"),
        ("channels", "you"),
        ("orientation", "you"),
        ("spacing", "you"),
        ("intensity", "assumed"),
        ("patch", "assumed"),
    }
    card = load_pretrained("mine").card
    assert (card.recipe.orientation, card.assumed) == ("LPS", ["intensity", "patch"])
    assert any(
        "Assumed, because nobody says: intensity, patch" in sentence for sentence in result.said
    )


def test_grey_values_as_they_are(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "net.pth")
    with pytest.raises(UsageError, match=r"T1 have no range of their own.*none:LOW,HIGH"):
        imported(tmp_path / "net.pth", channels=["T1"], intensity=Unscaled())
    result = imported(tmp_path / "net.pth", intensity=Unscaled())
    assert (result.settings["input_factor"], result.settings["input_offset"]) == (4095.0, -1024.0)
    loaded, of = load_pretrained("mine"), network("segresnet", **SMALL)
    hounsfield = torch.linspace(-1024, 3071, loaded.example.numel()).reshape(loaded.example.shape)
    window = loaded.card.recipe.intensity
    with torch.no_grad():
        ours = loaded.network((hounsfield - window.low) / (window.high - window.low))
        torch.testing.assert_close(ours, of(hounsfield), rtol=1e-4, atol=1e-4)
