"""Foreign key names lead to the right tensors, and patch merging runs in the order that a
checkpoint was trained with.

All checkpoints are synthetic (see `foreign`): no test here has seen a real file of the origin that
it names.
"""

from __future__ import annotations

import re
import zipfile

import numpy as np
import pytest
import torch
from foreign import (
    SWIN,
    btcv,
    fseft,
    mednext_authors,
    mednext_monai,
    network,
    nnunet,
    suprem_segresnet,
    suprem_universal,
    swin_vit,
    swin_whole,
)
from torch import nn

from sea_peft.backbones import architecture
from sea_peft.backbones.checkpoints import read_checkpoint
from sea_peft.backbones.keymaps import ORIGINS, choose_origin
from sea_peft.backbones.swinunetr import MERGING_ORDERS, PatchMergingBefore15
from sea_peft.backbones.weights import unique_tensors
from sea_peft.data.recipe import ZScore
from sea_peft.errors import UsageError, WeightsError

SEGRESNET = {"init_filters": 8}
NNUNET = {"features": (4, 8, 16), "strides": (1, 2, 2), "decoder_convs": (2, 2), "convs": (2, 2, 2)}

CASES = {
    "suprem-segresnet": ("suprem", "segresnet", SEGRESNET, suprem_segresnet),
    "suprem-unet3d": ("suprem", "unet3d", {"width": 4}, suprem_universal),
    "suprem-swinunetr": ("suprem", "swinunetr", SWIN, suprem_universal),
    "fseft-swinunetr": ("fseft", "swinunetr", SWIN, fseft),
    "fseft-unet3d": ("fseft", "unet3d", {"width": 4}, fseft),
    "swin-ssl-whole": ("swin-ssl", "swinunetr", SWIN, swin_whole),
    "mednext-s": ("mednext", "mednext_s", {"init_filters": 4}, mednext_authors),
    "mednext-m": (
        "mednext",
        "mednext_m",
        {"init_filters": 4, "down_expansion": [3, 4, 4, 4]},
        mednext_authors,
    ),
    "monai-mednext-s": ("monai-mednext", "mednext_s", {"init_filters": 4}, mednext_monai),
}
CLASSIFIERS = ("conv_final.2.conv.", "out_tr.", "out.conv.")


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_of_an_origin_arrives_under_our_name(case, tmp_path):
    """Not verified against a real file: names and shapes are those of the origin's public
    source.
    """
    origin, backbone, kwargs, write = CASES[case]
    of = network(backbone, **kwargs)
    torch.save(write(of), tmp_path / "net.pth")
    checkpoint = read_checkpoint(tmp_path / "net.pth")
    chosen = choose_origin("auto", checkpoint, backbone)
    assert chosen.name == origin
    tensors, left_out = chosen.translate(checkpoint.tensors)
    own = {
        k: t
        for k, t in of.state_dict().items()
        if not (chosen.no_classifier and k.startswith(CLASSIFIERS))
    }
    assert tensors.keys() == own.keys()
    assert all(torch.equal(tensors[key], own[key]) for key in own)
    assert len(left_out) == len(checkpoint.tensors) - len(own)


@pytest.mark.parametrize("case", CASES)
def test_widths_are_read_off_the_tensors(case):
    _, backbone, kwargs, _ = CASES[case]
    arch = architecture(backbone)
    read = arch.read_widths(network(backbone, **kwargs).state_dict())
    again = arch.build(in_channels=1, out_channels=3, **read)
    shapes = {k: t.shape for k, t in unique_tensors(network(backbone, **kwargs)).items()}
    assert {k: t.shape for k, t in unique_tensors(again).items()} == shapes


@pytest.mark.parametrize("kind", ["plain", "resenc"])
def test_nnunet_says_everything_itself(kind, tmp_path):
    """Not verified against a real file: the layout is that of nnUNetTrainer.save_checkpoint and
    of nnU-Net's plans.
    """
    pytest.importorskip("dynamic_network_architectures")
    depth = (
        NNUNET
        if kind == "plain"
        else {k: v for k, v in NNUNET.items() if k != "convs"} | {"blocks": (1, 2, 1)}
    )
    of = network(f"nnunet_{kind}", **depth)
    torch.save(nnunet(of), tmp_path / "checkpoint_final.pth")
    checkpoint = read_checkpoint(tmp_path / "checkpoint_final.pth")
    origin = choose_origin("auto", checkpoint, f"nnunet_{kind}")
    known = origin.know(checkpoint, f"nnunet_{kind}")
    assert origin.name == "nnunet"
    assert known.labels == ("liver", "spleen")
    assert known.channels == ("CT",)
    assert (known.recipe.orientation, known.assumed) == ("SPL", {"orientation"})
    assert known.recipe.spacing == (2.5, 0.8, 0.8)
    assert known.recipe.resampler == "nnunet"
    assert (known.recipe.crop_foreground, known.recipe.margin) == (True, 0.0)
    assert known.notes == ()
    assert known.patch == (32, 32, 32)
    arch = architecture(f"nnunet_{kind}")
    again = arch.build(
        in_channels=1, out_channels=3, **arch.read_widths(checkpoint.tensors), **known.settings
    )
    assert len(again._forward_pre_hooks) == 1
    again.load_state_dict(checkpoint.tensors)
    hounsfield = torch.tensor([-2000.0, -1004.0, 0.0, 300.0, 1588.0, 9000.0]).reshape(
        1, 1, 1, 1, -1
    )
    theirs = (hounsfield.clamp(-1004.0, 1588.0) + 50.39) / 503.39
    window = (hounsfield.clamp(-1004.0, 1588.0) + 1004.0) / (1588.0 + 1004.0)
    seen: list[torch.Tensor] = []
    stem = (
        again.encoder.stem.convs[0].conv
        if kind == "resenc"
        else again.encoder.stages[0][0].convs[0].conv
    )
    stem.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    x = window.expand(1, 1, 8, 8, 6)[..., :1].expand(1, 1, 8, 8, 8)
    again(x)
    torch.testing.assert_close(seen[0], theirs[..., :1].expand(1, 1, 8, 8, 8))


@pytest.mark.parametrize("core", ["core", "_core"])
def test_numbers_of_numpy_1_and_2_are_read_without_running_code(core, tmp_path):
    torch.save(
        {"network_weights": {"w": torch.ones(2)}, "logging": [np.float64(0.5)]},
        tmp_path / "new.pth",
    )
    with (
        zipfile.ZipFile(tmp_path / "new.pth") as new,
        zipfile.ZipFile(tmp_path / "net.pth", "w") as net,
    ):
        for entry in new.namelist():
            content = new.read(entry)
            net.writestr(entry, re.sub(rb"numpy\._?core\.", f"numpy.{core}.".encode(), content))
    checkpoint = read_checkpoint(tmp_path / "net.pth")
    assert checkpoint.content["logging"] == [0.5]
    assert checkpoint.tensors["w"].tolist() == [1.0, 1.0]


def test_nnunet_networks_that_cannot_be_taken_in_are_refused(tmp_path):
    pytest.importorskip("dynamic_network_architectures")
    of = network("nnunet_plain", **NNUNET)
    origin = ORIGINS["nnunet"]
    for content, sentence in (
        (nnunet(of, labels={"background": 0, "whole": [1, 2]}), "regions that overlap"),
        (
            nnunet(of, scheme="RescaleTo01Normalization"),
            "scales grey values by RescaleTo01Normalization",
        ),
        (
            {**nnunet(of), "init_args": {"plans": {}, "configuration": "2d", "dataset_json": {}}},
            "plans in it are not as",
        ),
    ):
        torch.save(content, tmp_path / "net.pth")
        with pytest.raises(WeightsError, match=sentence):
            origin.know(read_checkpoint(tmp_path / "net.pth"), "nnunet_plain")


def test_nnunets_z_scores_are_over_what_its_plans_say(tmp_path):
    pytest.importorskip("dynamic_network_architectures")
    content = nnunet(network("nnunet_plain", **NNUNET), scheme="ZScoreNormalization")
    plans = content["init_args"]["plans"]["configurations"]["3d_lowres"]
    for in_body, over in ((False, "box"), (True, "foreground")):
        plans["use_mask_for_norm"] = [in_body]
        torch.save(content, tmp_path / "net.pth")
        known = ORIGINS["nnunet"].know(read_checkpoint(tmp_path / "net.pth"), "nnunet_plain")
        assert known.recipe.intensity == ZScore(over=over)
    plans["resampling_fn_data"] = "resample_torch_fornnunet"
    torch.save(content, tmp_path / "net.pth")
    known = ORIGINS["nnunet"].know(read_checkpoint(tmp_path / "net.pth"), "nnunet_plain")
    assert (
        "resampled by resample_data_or_seg_to_shape, resample_torch_fornnunet of order 3"
        in known.notes[0]
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda plans, _: plans["configurations"].update(
            {"3d_fullres": {"inherits_from": "3d_fullres"}}
        ),
        lambda plans, _: plans["configurations"]["3d_lowres"].update(patch_size=["a", 32, 32]),
        lambda plans, _: plans["configurations"]["3d_lowres"].update(resampling_fn_data_kwargs=3),
        lambda plans, _: plans["configurations"]["3d_lowres"].update(
            patch_size=[float("inf"), 32, 32]
        ),
        lambda plans, _: plans["configurations"]["3d_fullres"].update(spacing=[float("nan"), 1, 1]),
        lambda plans, _: plans.update(transpose_forward=[0, 0, 0]),
        lambda plans, _: plans.update(configurations=[]),
        lambda _, described: described.update(channel_names=["CT"]),
        lambda _, described: described.update(labels=["background", "liver"]),
    ],
)
def test_plans_of_a_stranger_are_checked(tmp_path, change):
    pytest.importorskip("dynamic_network_architectures")
    content = nnunet(network("nnunet_plain", **NNUNET))
    change(content["init_args"]["plans"], content["init_args"]["dataset_json"])
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match="plans in it are not as"):
        ORIGINS["nnunet"].know(read_checkpoint(tmp_path / "net.pth"), "nnunet_plain")


def test_the_transformer_alone_is_named_and_is_not_the_whole_network(tmp_path):
    """Not verified against a real `model_swinvit.pt`: names are those that MONAI's `load_from`
    reads.
    """
    of = network("swinunetr", **SWIN)
    torch.save(swin_vit(of), tmp_path / "model_swinvit.pt")
    checkpoint = read_checkpoint(tmp_path / "model_swinvit.pt")
    origin = choose_origin("auto", checkpoint, "swinunetr")
    assert origin.name == "swin-ssl"
    tensors, left_out = origin.translate(checkpoint.tensors)
    own = {key: t for key, t in of.state_dict().items() if key.startswith("swinViT.")}
    assert tensors.keys() == own.keys()
    assert all(torch.equal(tensors[key], own[key]) for key in own)
    assert len(left_out) == 3


def test_btcv_has_monais_own_names_and_has_to_be_named(tmp_path):
    """Not verified against a real file: the layout is that of research-contributions' test.py."""
    torch.save(btcv(network("swinunetr", **SWIN)), tmp_path / "btcv.pt")
    checkpoint = read_checkpoint(tmp_path / "btcv.pt")
    assert choose_origin("auto", checkpoint, "swinunetr").name == "plain"
    known = choose_origin("btcv", checkpoint, "swinunetr").know(checkpoint, "swinunetr")
    assert known.settings == {"merging": "monai<1.5"}
    assert known.recipe.spacing == (1.5, 1.5, 2.0)


@pytest.mark.parametrize(
    ("version", "merging"),
    [("1.3.0", "monai<1.5"), ("1.4.1rc2", "monai<1.5"), ("1.5.0", "monai>=1.5")],
)
def test_a_bundle_says_with_which_monai_it_was_made(tmp_path, version, merging):
    """Not verified against a real bundle: only `monai_version` of its metadata is read."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text(f'{{"monai_version": "{version}"}}')
    torch.save({"w": torch.zeros(1)}, tmp_path / "models" / "model.pt")
    checkpoint = read_checkpoint(tmp_path / "models" / "model.pt")
    origin = choose_origin("auto", checkpoint, "swinunetr")
    assert origin.name == "monai-bundle"
    assert origin.know(checkpoint, "swinunetr").settings == {"merging": merging}
    assert origin.know(checkpoint, "segresnet").settings == {}


def test_unknown_and_unfitting_origins_are_refused(tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "net.pt")
    checkpoint = read_checkpoint(tmp_path / "net.pt")
    with pytest.raises(UsageError, match=r"No origin is called 'superm'. Did you mean 'suprem'\?"):
        choose_origin("superm", checkpoint, "unet3d")
    with pytest.raises(WeightsError, match=r"Checkpoints of mednext are of mednext_s.*not unet3d"):
        choose_origin("mednext", checkpoint, "unet3d")


# -- patch merging ---------------------------------------------------------------------------------


def _as_before_15(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The merging of MONAI 0.9 to 1.4, written out from its slices: the fifth to seventh
    neighbours are (1,0,1), (0,1,0), (0,0,1).
    """
    slices = [
        x[:, 0::2, 0::2, 0::2],
        x[:, 1::2, 0::2, 0::2],
        x[:, 0::2, 1::2, 0::2],
        x[:, 0::2, 0::2, 1::2],
        x[:, 1::2, 0::2, 1::2],
        x[:, 0::2, 1::2, 0::2],
        x[:, 0::2, 0::2, 1::2],
        x[:, 1::2, 1::2, 1::2],
    ]
    return module.reduction(module.norm(torch.cat(slices, -1)))


@pytest.mark.parametrize("size", [(4, 4, 4), (5, 4, 3)])
def test_the_old_order_of_patch_merging_is_the_published_one(size):
    torch.manual_seed(0)
    old = PatchMergingBefore15(3)
    x = torch.randn(2, *size, 3)
    padded = nn.functional.pad(x, (0, 0, *(p for n in reversed(size) for p in (0, n % 2))))
    torch.testing.assert_close(old(x), _as_before_15(old, padded), rtol=0, atol=0)


def test_the_new_order_is_that_of_the_installed_monai():
    from monai.networks.nets.swin_unetr import PatchMerging

    torch.manual_seed(0)
    new, x = PatchMerging(3), torch.randn(1, 4, 4, 4, 3)
    neighbours = [x[:, i::2, j::2, k::2] for i, j, k in MERGING_ORDERS["monai>=1.5"]]
    torch.testing.assert_close(
        new(x), new.reduction(new.norm(torch.cat(neighbours, -1))), rtol=0, atol=0
    )
    old = PatchMergingBefore15(3)
    old.load_state_dict(new.state_dict())
    assert not torch.allclose(old(x), new(x))


def test_the_whole_network_depends_on_the_order_and_its_keys_do_not():
    old = network("swinunetr", merging="monai<1.5", **architecture("swinunetr").small)
    new = network("swinunetr", **architecture("swinunetr").small)
    assert old.state_dict().keys() == new.state_dict().keys()
    new.load_state_dict(old.state_dict())
    x = architecture("swinunetr").example(1)
    with torch.no_grad():
        assert not torch.allclose(old(x), new(x), atol=1e-3)
    with pytest.raises(ValueError, match="is none of"):
        network("swinunetr", merging="monai 1.5")
