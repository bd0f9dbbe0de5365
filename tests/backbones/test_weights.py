"""Weights and cards: whatever is wrong with them is one sentence, never a network with half of
its tensors.
"""

from __future__ import annotations

import json
import sys
import types

import pytest
import safetensors.torch
import torch
from torch import nn

from sea_peft.backbones import Architecture, architecture, architectures, register
from sea_peft.backbones.typed import Typed
from sea_peft.backbones.weights import (
    BUNDLED,
    cards,
    load_pretrained,
    load_strictly,
    load_typed,
    read_card,
    tensor_hash,
)
from sea_peft.errors import UsageError, WeightsError
from sea_peft.jobs.weights_file import save_weights

CARD = {
    "name": "toy",
    "architecture": "segresnet",
    "kwargs": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "labels": ["background", "liver"],
    "channels": ["CT"],
    "recipe": {},
    "patch": [16, 16, 16],
    "licence": "CC0-1.0",
}


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return architecture("segresnet").build(in_channels=1, out_channels=2, **CARD["kwargs"])


@pytest.fixture
def card(tmp_path, network):
    return save_weights(tmp_path, network, CARD, half=False)


def _refused(path) -> str:
    with pytest.raises(WeightsError) as caught:
        load_typed(Typed(weights=str(path)))
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def _rewrite(card, change) -> None:
    """Change the tensors and make the card's hash agree again."""
    file = card.with_suffix(".safetensors")
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file(tensors, file)
    import hashlib

    text = json.loads(card.read_text())
    card.write_text(json.dumps(text | {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}))


def test_saved_and_loaded_weights_are_the_same_frozen_network(card, network):
    loaded = load_typed(Typed(weights=str(card)))
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded.network(x), network.eval()(x))
    assert loaded.sha256 == tensor_hash(network)
    assert not loaded.network.training
    assert not any(p.requires_grad for p in loaded.network.parameters())
    assert loaded.parameters == sum(p.numel() for p in network.parameters())
    assert load_typed(Typed(weights=str(card.with_suffix(".safetensors")))).card == loaded.card


def test_half_precision_on_disk_is_float32_in_memory(tmp_path, network):
    loaded = load_typed(Typed(weights=str(save_weights(tmp_path, network, CARD, half=True))))
    assert {p.dtype for p in loaded.network.parameters()} == {torch.float32}
    for ours, theirs in zip(loaded.network.parameters(), network.parameters(), strict=True):
        assert torch.equal(ours, theirs.half().float())


def test_the_tensor_hash_sees_names_shapes_and_values(network):
    before = tensor_hash(network)
    assert tensor_hash(network) == before
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1e-3
    assert tensor_hash(network) != before
    assert tensor_hash(nn.Linear(2, 3)) != tensor_hash(nn.Linear(3, 2))


def test_a_tampered_file_is_refused(card):
    file = card.with_suffix(".safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    assert "do not match their card" in _refused(card)


def test_a_truncated_or_foreign_file_is_refused(card):
    file = card.with_suffix(".safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    assert "not a readable safetensors file" in _refused(card)
    torch.save({"weight": torch.zeros(2)}, file)
    assert "not a readable safetensors file" in _refused(card)
    file.unlink()
    assert "is missing beside its card" in _refused(card)


def test_a_missing_tensor_is_named(card):
    _rewrite(card, lambda tensors: tensors.pop("convInit.conv.weight"))
    assert (
        "1 tensors missing, 0 unexpected, 0 of another shape (first: convInit.conv.weight)"
        in _refused(card)
    )


def test_an_unexpected_tensor_is_named(card):
    _rewrite(card, lambda tensors: tensors.update(extra=torch.zeros(1)))
    assert "0 tensors missing, 1 unexpected, 0 of another shape (first: extra)" in _refused(card)


def test_a_tensor_of_another_shape_is_named(card):
    _rewrite(
        card, lambda tensors: tensors.update({"convInit.conv.weight": torch.zeros(8, 2, 3, 3, 3)})
    )
    assert "1 of another shape (first: convInit.conv.weight)" in _refused(card)


def test_nothing_is_loaded_by_halves(network):
    before = tensor_hash(network)
    tensors = {key: torch.zeros_like(t) for key, t in network.state_dict().items()}
    tensors.pop("convInit.conv.weight")
    with pytest.raises(WeightsError):
        load_strictly(network, tensors, "toy")
    assert tensor_hash(network) == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"architecture": "segresnett"},
            "No backbone is called 'segresnett'. Did you mean 'segresnet'?",
        ),
        ({"patch": [16, 16]}, "not valid: patch"),
        ({"labels": None}, "not valid: labels"),
        ({"sha256": None}, "not valid: sha256"),
    ],
)
def test_a_wrong_card_is_refused_with_its_field(card, change, sentence):
    card.write_text(json.dumps(json.loads(card.read_text()) | change))
    with pytest.raises((WeightsError, UsageError)) as caught:
        load_typed(Typed(weights=str(card)))
    assert sentence in str(caught.value)


def test_a_card_that_does_not_fit_its_architecture_is_refused(card):
    text = json.loads(card.read_text())
    card.write_text(json.dumps(text | {"kwargs": text["kwargs"] | {"no_such_width": 3}}))
    assert "no_such_width" in _refused(card)


def test_a_card_that_is_not_json_is_refused(card):
    card.write_text("{")
    assert "is not valid: Invalid JSON" in _refused(card)


def test_weights_without_a_card_and_unknown_names_are_refused(card):
    card.unlink()
    assert "has no card toy.json beside it" in _refused(card.with_suffix(".safetensors"))
    assert "No weights are called 'nothing'" in _refused("nothing")


def test_the_users_weights_are_found_but_cannot_shadow_bundled_ones(tmp_path, monkeypatch, network):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    folder = tmp_path / "sea_peft" / "weights"
    save_weights(folder, network, CARD, half=False)
    save_weights(folder, network, CARD | {"name": "phantom_segresnet"}, half=False)
    assert cards()["toy"].parent == folder
    assert cards()["phantom_segresnet"].parent == BUNDLED
    assert load_pretrained("toy").card.name == "toy"


@pytest.mark.parametrize("path", sorted(BUNDLED.glob("*.json")), ids=lambda path: path.stem)
def test_bundled_weights_load_and_belong_to_their_architecture(path):
    loaded = load_pretrained(path.stem)
    assert loaded.card == read_card(path)
    assert loaded.card.labels[0] == "background"
    assert loaded.card.licence
    loaded.architecture.check_size(loaded.card.patch)
    assert path.with_suffix(".safetensors").stat().st_size < 25e6


@pytest.mark.parametrize("name", architectures())
def test_default_weights_of_an_architecture_are_bundled_for_it(name):
    weights = architectures()[name].weights
    if weights is not None:
        assert load_pretrained(weights).architecture.name == name


def typed_architecture(spec):
    return Typed(spec).architecture()


# -- architectures ---------------------------------------------------------------------------------


def test_an_unknown_backbone_is_refused_with_the_nearest_name():
    with pytest.raises(
        UsageError, match=r"No backbone is called 'segresnt'. Did you mean 'segresnet'\?"
    ):
        architecture("segresnt")


@pytest.mark.parametrize("size", [(20, 16, 16), (8, 16, 16)])
def test_a_patch_that_does_not_go_through_is_refused(size):
    with pytest.raises(UsageError, match="multiples of 8 and at least 16"):
        architecture("segresnet").check_size(size)


def test_an_architecture_cannot_be_registered_twice():
    with pytest.raises(ValueError, match="twice"):
        register(architecture("segresnet"))


@pytest.fixture
def module(monkeypatch):
    """A module of the user's own, importable as `usernet`."""
    made = types.ModuleType("usernet")

    def flexible(**kwargs):
        return nn.Conv3d(kwargs["in_channels"], kwargs["out_channels"], 1)

    def fixed():
        """Without arguments: the channels are what they are."""
        return nn.Conv3d(1, 2, 1)

    fixed.divisor, fixed.minimum, fixed.licence = 4, 8, "MIT"

    def thin():
        return nn.Conv3d(1, 2, 1)

    thin.divisor, thin.minimum = (1, 8, 8), 8
    made.thin = thin

    def broken():
        return nn.Conv3d(1, 2, 1)

    broken.divisor = (8, 8)
    made.broken = broken
    made.flexible, made.fixed, made.wrong, made.text = flexible, fixed, lambda: "no network", "text"
    monkeypatch.setitem(sys.modules, "usernet", made)


@pytest.mark.usefixtures("module")
def test_a_users_own_factory_is_an_architecture():
    flexible = typed_architecture("usernet:flexible")
    assert isinstance(flexible, Architecture)
    assert flexible.build(in_channels=2, out_channels=5).weight.shape[:2] == (5, 2)
    assert flexible.weights is None
    fixed = typed_architecture("usernet:fixed")
    assert fixed.build(in_channels=2, out_channels=5).weight.shape[:2] == (2, 1)
    assert (fixed.divisor, fixed.minimum, fixed.licence) == (4, 8, "MIT")
    fixed.check_size((8, 12, 8))


@pytest.mark.usefixtures("module")
def test_a_users_own_factory_may_state_sizes_for_each_axis():
    thin = typed_architecture("usernet:thin")
    assert thin.limits_of({}).divisor == (1, 8, 8)
    assert thin.limits_of({}).minimum == (8, 8, 8)
    thin.check_size((9, 16, 8))
    with pytest.raises(
        UsageError,
        match=(
            r"multiples of 1, 8 and 8 along D, H and W and at least 8, not 7,8,8; choose another"
            r" patch"
        ),
    ):
        thin.check_size((7, 8, 8))
    assert thin.example(1).shape[2:] == (8, 16, 16)


def test_code_in_the_current_folder_is_not_imported_unasked_and_the_way_is_said(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    (tmp_path / "net_of_mine.py").write_text("raise SystemExit")
    with pytest.raises(
        WeightsError, match=r"net_of_mine lies in this folder: start with PYTHONPATH=\.\.$"
    ):
        typed_architecture("net_of_mine:factory")


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("usernet:nothing", "could not be imported"),
        ("no_such_package:factory", "could not be imported"),
        (":factory", "could not be imported"),
        ("usernet:", "could not be imported"),
        ("usernet:text", "is not a function"),
        (
            "usernet:broken",
            (
                r"divisor of usernet:broken is \(8, 8\); set a whole number from 1 up, or one for"
                r" each of D, H and W"
            ),
        ),
    ],
)
def test_a_factory_that_is_not_there_is_refused(spec, sentence):
    with pytest.raises(WeightsError, match=sentence):
        typed_architecture(spec)


@pytest.mark.usefixtures("module")
def test_a_factory_that_makes_no_network_is_refused():
    with pytest.raises(WeightsError, match=r"returned str, not a torch\.nn\.Module"):
        typed_architecture("usernet:wrong").build()
