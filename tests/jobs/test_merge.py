from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import network
from toys import install, make_adapter

from sea_peft.backbones import architecture
from sea_peft.backbones.typed import NOTHING, Typed
from sea_peft.backbones.weights import load_typed
from sea_peft.data.layouts import open_dataset
from sea_peft.data.prepare import restore
from sea_peft.data.recipe import Recipe
from sea_peft.errors import DiskError, UsageError, WeightsError
from sea_peft.jobs.merge import merge
from sea_peft.jobs.model import load_adapter
from sea_peft.jobs.predictor import Predictor
from sea_peft.jobs.weights_file import save_weights


def test_merged_network_gives_the_same_masks(
    adapter: Path, weights: Path, toy: Path, tmp_path: Path
) -> None:
    merged = merge(adapter, tmp_path / "merged.safetensors", Typed(weights=str(weights)))
    assert merged.labels == ("background", "organ", "other", "spot")
    assert merged.difference < 1e-4
    loaded = load_typed(Typed(weights=str(merged.file)))
    predictor = Predictor(adapter, Typed(weights=str(weights)), "cpu")
    case = open_dataset(toy).cases[0]
    scan = predictor.prepared(case)
    ours = predictor.probabilities(scan)
    size = [-(-n // 8) * 8 for n in scan.image.shape[1:]]
    padded = torch.zeros(1, 1, *size)
    d, h, w = scan.image.shape[1:]
    padded[0, :, :d, :h, :w] = scan.image
    with torch.no_grad():
        adapted = predictor.model(padded).softmax(1)
        plain = loaded.network(padded).softmax(1)
    # background and what is not asked for, then organ, then the new label
    theirs = torch.stack([plain[:, 0] + plain[:, 2], plain[:, 1], plain[:, 3]], dim=1)
    torch.testing.assert_close(theirs, adapted, atol=1e-5, rtol=0)
    labels = [restore(p[0, :, :d, :h, :w], scan.geometry) for p in (theirs, adapted)]
    assert np.mean(labels[0] == labels[1]) > 0.999
    assert ours.shape == (3, d, h, w)


def test_labels_that_the_backbone_knows_add_no_output(weights: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "known", weights, {"organ": [1]}, ["CT"], ("affine", "lora"))
    merged = merge(adapter, tmp_path / "m.safetensors", Typed(weights=str(weights)))
    assert merged.labels == ("background", "organ", "other")


def test_what_cannot_be_folded_is_refused_by_name(weights: Path, tmp_path: Path) -> None:
    adapter = make_adapter(
        tmp_path / "parallel", weights, {"organ": [1]}, ["CT"], ("conv_adapter",)
    )
    with pytest.raises(
        WeightsError, match=r"conv_adapter\.(parallel|sequential)-\d+@.* cannot be merged"
    ):
        merge(adapter, tmp_path / "m.safetensors", Typed(weights=str(weights)))
    assert [path.name for path in tmp_path.iterdir()] == ["parallel"]


def test_a_failed_check_writes_nothing(
    adapter: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sea_peft.jobs.folding.NEW_LABEL_ODDS", 0.5)  # as if folding were wrong
    with pytest.raises(WeightsError, match="differ from the adapted one's"):
        merge(adapter, tmp_path / "m.safetensors", Typed(weights=str(weights)))
    assert not list(tmp_path.glob("m.*"))


def test_a_disk_that_is_full_keeps_nothing_of_it(
    adapter: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(DiskError, match=r"m\.json: the disk is full"):
            merge(adapter, tmp_path / "m.safetensors", Typed(weights=str(weights)))
    assert not [path for path in tmp_path.iterdir() if "m." in path.name]
    assert merge(adapter, tmp_path / "m.safetensors", Typed(weights=str(weights))).file.is_file()


def test_refusals(adapter: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.safetensors"):
        merge(adapter, tmp_path / "m.pt", Typed(weights=str(weights)))
    (tmp_path / "m.json").touch()
    with pytest.raises(UsageError, match="exists already"):
        merge(adapter, tmp_path / "m.safetensors", Typed(weights=str(weights)))


def test_a_card_that_a_killed_merge_left_is_in_nobodys_way(
    adapter: Path, weights: Path, tmp_path: Path
) -> None:
    whole = merge(adapter, tmp_path / "m.safetensors", Typed(weights=str(weights)))
    whole.file.unlink()
    shutil.copy(whole.card, tmp_path / "others.json")
    assert merge(adapter, tmp_path / "m.safetensors", Typed(weights=str(weights))) == whole
    assert whole.file.is_file()
    with pytest.raises(UsageError, match=r"others\.json exists already"):  # it is of other weights
        merge(adapter, tmp_path / "others.safetensors", Typed(weights=str(weights)))


def test_the_adapter_is_left_as_it_was(adapter: Path, weights: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    merge(adapter, tmp_path / "m.safetensors", Typed(weights=str(weights)))
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before
    load_adapter(adapter, Typed(weights=str(weights)))


def small(name: str, folder: Path) -> Path:
    """Weights of the small version of an architecture, with random values."""
    arch = architecture(name)
    if not arch.installed:
        pytest.skip(f"{name} needs {arch.needs.package}")
    limits = arch.limits_of(arch.small)
    side = limits.exact or limits.holding((16, 16, 16))
    card = {
        "name": "small",
        "architecture": name,
        "kwargs": dict(arch.small),
        "labels": ["background", "organ", "other"],
        "channels": ["CT"],
        "recipe": Recipe().model_dump(mode="json"),
        "patch": side,
        "licence": "CC0-1.0",
    }
    return save_weights(folder, network(name, **arch.small), card, half=False).with_suffix(
        ".safetensors"
    )


@pytest.mark.parametrize("name", ["dynunet", "nnunet_plain", "mednext_s"])
def test_tensors_under_several_names_are_folded_under_all_of_them(
    name: str, tmp_path: Path
) -> None:
    own = small(name, tmp_path)
    adapter = make_adapter(
        tmp_path / "a", own, {"organ": [1], "spot": [2]}, ["CT"], ("affine", "lora")
    )
    merged = merge(adapter, tmp_path / "m.safetensors", Typed(weights=str(own)))
    assert merged.labels == ("background", "organ", "other", "spot")
    assert merged.difference <= 1e-3 * max(1.0, merged.largest)


@pytest.mark.parametrize(
    ("name", "families", "grown"),
    [
        ("unet", ("affine", "lora"), {"norms", "outputs"}),
        pytest.param("unetr", ("affine", "adaptformer"), {"wider"}, marks=pytest.mark.slow),
        ("mednext_s", ("tsa",), {"dense"}),
    ],
)
def test_a_network_grows_by_what_has_no_tensor_to_be_folded_into(name, families, grown, tmp_path):
    own = small(name, tmp_path)
    adapter = make_adapter(tmp_path / "a", own, {"organ": [1]}, ["CT"], families)
    merged = merge(adapter, tmp_path / "m.safetensors", Typed(weights=str(own)))
    assert merged.difference <= 1e-3 * max(1.0, merged.largest)
    loaded = load_typed(Typed(weights=str(merged.file)))
    assert set(loaded.card.kwargs["grown"]) == grown
    model, _ = load_adapter(adapter, Typed(weights=str(own)))
    x = torch.randn(1, 1, *loaded.card.patch, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        adapted, plain = model(x), loaded.network(x)
    theirs = torch.stack([plain[:, (0, 2)].logsumexp(1), plain[:, 1]], dim=1)
    torch.testing.assert_close(theirs, adapted, rtol=1e-4, atol=1e-4)
    # what was merged is a backbone like any other, and may grow further
    again = make_adapter(tmp_path / "b", merged.file, {"organ": [1]}, ["CT"], families)
    twice = merge(again, tmp_path / "n.safetensors", Typed(weights=str(merged.file)))
    assert load_typed(Typed(weights=str(twice.file))).card.kwargs["grown"].keys() == grown


def test_a_grown_unet_is_monais_with_affine_norms_and_a_convolution(tmp_path):
    from monai.networks.nets import UNet
    from safetensors.torch import load_file

    own = small("unet", tmp_path)
    adapter = make_adapter(tmp_path / "a", own, {"organ": [1]}, ["CT"], ("affine", "lora"))
    merged = merge(adapter, tmp_path / "m.safetensors", Typed(weights=str(own)))
    affine = ("instance", {"affine": True})
    plain = UNet(3, 1, 3, channels=(4, 8, 16), strides=(2, 2), num_res_units=2, norm=affine).eval()
    tensors = load_file(merged.file)
    head = {name: tensors.pop(f"grown_last.{name}") for name in ("weight", "bias")}
    plain.load_state_dict(tensors)
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.nn.functional.conv3d(plain(x), **head),
            load_typed(Typed(weights=str(merged.file))).network(x),
        )


def tensors_of(file: Path) -> dict[str, torch.Tensor]:
    return {
        key: tensor.clone()
        for key, tensor in load_typed(Typed(weights=str(file))).network.state_dict().items()
    }


def test_several_adapters_add_up_by_their_shares(weights: Path, tmp_path: Path) -> None:
    labels, typed = {"organ": [1], "spot": [2]}, Typed(weights=str(weights))
    a = make_adapter(tmp_path / "a", weights, labels, ["CT"], ("affine", "lora"))
    b = make_adapter(tmp_path / "b", weights, labels, ["CT"], ("lora", "tsa"))
    alone = [
        tensors_of(merge(each, tmp_path / f"{each.name}.safetensors", typed).file)
        for each in (a, b)
    ]
    for shares in ((0.5, 0.5), (0.3, 0.7)):
        merged = merge(a, tmp_path / f"{shares[0]}.safetensors", typed, others=[b], shares=shares)
        for key, tensor in tensors_of(merged.file).items():
            torch.testing.assert_close(
                tensor, shares[0] * alone[0][key] + shares[1] * alone[1][key]
            )
    equal, half = (tmp_path / f"{name}.safetensors" for name in ("equal", "0.5"))
    merge(a, equal, typed, others=[b])
    assert equal.read_bytes() == half.read_bytes()
    only = merge(a, tmp_path / "only.safetensors", typed, others=[b], shares=(0, 1))
    assert only.agreement == 1
    assert (only.units, only.difference) == (4, None)
    half_strength = tensors_of(
        merge(a, tmp_path / "weak.safetensors", typed, others=[b], shares=(0.5, 0)).file
    )
    norm = next(
        key
        for key in half_strength
        if "norm" in key and not torch.equal(alone[0][key], alone[1][key])
    )
    torch.testing.assert_close(
        half_strength[norm], (alone[0][norm] + alone[1][norm]) / 2
    )  # b leaves norms alone


def test_adapters_that_do_not_add_up_are_refused(weights: Path, tmp_path: Path) -> None:
    typed = Typed(weights=str(weights))
    a, b = (
        make_adapter(tmp_path / n, weights, {"organ": [1]}, ["CT"], (f,))
        for n, f in (("a", "lora"), ("b", "tsa"))
    )
    other = make_adapter(tmp_path / "other", weights, {"spot": [2]}, ["CT"], ("lora",))
    bundled = make_adapter(
        tmp_path / "unet", Path("phantom_unet"), {"organ": [1]}, ["CT"], ("lora",)
    )
    install(weights)
    cases = [
        (
            [other],
            (),
            r"other does not fit: its label 1 is spot \(2\), the first adapter's is organ \(1\)",
        ),
        ([bundled], (), "unet is for the backbone phantom_unet, the first adapter for tiny"),
        ([b], (1.0,), "--shares has 1 number for 2 adapters"),
        ([b], (1.0, float("nan")), "--shares are numbers from -10 to 10"),
        ([], (1.0,), "--shares are of several adapters"),
    ]
    for others, shares, said in cases:
        with pytest.raises(UsageError, match=said):
            merge(
                a,
                tmp_path / "m.safetensors",
                NOTHING if bundled in others else typed,
                None,
                others,
                shares,
            )
    assert not list(tmp_path.glob("m.*"))
