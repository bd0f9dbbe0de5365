"""What the registered architectures promise: sizes, tensors under several names, packages that
may be missing.
"""

from __future__ import annotations

import itertools

import pytest
import safetensors.torch
import torch
from foreign import network
from torch import nn

from sea_peft.backbones import Architecture, architecture, architectures
from sea_peft.backbones.registry import Needed
from sea_peft.backbones.typed import Typed
from sea_peft.backbones.unet3d import BatchStatisticsNorm
from sea_peft.backbones.weights import (
    first_names,
    load_typed,
    tensor_hash,
    unique_tensors,
    untrained,
)
from sea_peft.errors import UsageError
from sea_peft.jobs.weights_file import save_weights

THIN = (1, (1, 2, 2), (1, 2, 2), (1, 2, 2), (1, 2, 2), 2, 2)
"""Strides of a plan for thin scans: pooled twice across the slices and six times in their plane."""
SHARING = ("dynunet", "nnunet_plain", "nnunet_resenc")


def _small(name: str, **changes) -> nn.Module:
    arch = architecture(name)
    if not arch.installed:
        pytest.skip(f"{name} needs {arch.needs.package}")
    return network(name, **{**arch.small, **changes})


@pytest.mark.parametrize("name", SHARING)
def test_tensors_under_several_names_are_kept_and_counted_once(name, tmp_path):
    of = _small(name)
    own = unique_tensors(of)
    assert len(own) < len(of.state_dict())
    assert sum(t.numel() for t in own.values()) == sum(
        t.numel() for t in [*of.parameters(), *of.buffers()]
    )
    assert set(first_names(of).values()) == own.keys()
    card = {
        "name": "toy",
        "architecture": name,
        "kwargs": dict(architecture(name).small),
        "labels": ["background", "a", "b"],
        "channels": ["CT"],
        "recipe": {},
        "patch": [8, 8, 8],
        "licence": "CC0-1.0",
    }
    path = save_weights(tmp_path, of, card, half=False)
    assert safetensors.torch.load_file(path.with_suffix(".safetensors")).keys() == own.keys()
    loaded = load_typed(Typed(weights=str(path)))
    assert loaded.sha256 == tensor_hash(of)
    with torch.no_grad():
        assert torch.equal(loaded.network(loaded.example), of(loaded.example))


@pytest.mark.parametrize(
    ("name", "kwargs", "good", "bad", "sentence"),
    [
        ("swinunetr", {}, (64, 96, 128), (32, 64, 64), "multiples of 32 and at least 64"),
        ("unet3d", {}, (16, 24, 32), (20, 16, 16), "multiples of 8 and at least 16"),
        ("mednext_s", {}, (16, 48, 64), (40, 32, 32), "sides are multiples of 16, not 40,32,32"),
        (
            "mednext_s",
            {},
            (32, 32, 16),
            (16, 16, 32),
            "shrinks patches by 16 and needs 3 voxels at its bottom, which 16,16,32 does not",
        ),
        (
            "dynunet",
            {"strides": (1, 2, (1, 2, 2))},
            (6, 8, 12),
            (7, 8, 8),
            "multiples of 2, 4 and 4 along D, H and W, not 7,8,8",
        ),
        (
            "nnunet_plain",
            {},
            (64, 64, 32),
            (32, 32, 32),
            "shrinks patches by 32 and needs 3 voxels",
        ),
        (
            "nnunet_plain",
            {"strides": THIN},
            (20, 320, 256),
            (4, 64, 128),
            "by 4, 64 and 64 along D, H and W and needs 3 voxels",
        ),
        (
            "unetr",
            {},
            (96, 96, 96),
            (64, 64, 64),
            "takes patches of 96,96,96 only, .* give a patch of 96,96,96",
        ),
        (
            "unetr",
            {"img_size": [64, 64, 32]},
            (64, 64, 32),
            (96, 96, 96),
            "takes patches of 64,64,32 only",
        ),
    ],
)
def test_sizes_are_checked_up_front_for_the_network_as_it_was_built(
    name, kwargs, good, bad, sentence
):
    arch = architecture(name)
    arch.check_size(good, kwargs)
    with pytest.raises(UsageError, match=sentence):
        arch.check_size(bad, kwargs)


@pytest.mark.parametrize(
    ("strides", "patch"),
    [
        ((1, (1, 2, 2), (1, 2, 2), 2, 2, 2), (48, 192, 192)),
        ((1, 2, 2, 2, 2, (1, 2, 2)), (80, 192, 160)),
        ((1, 2, 2, 2, 2, (1, 2, 2)), (112, 160, 128)),
        (THIN, (20, 320, 256)),
    ],
)
@pytest.mark.parametrize("name", ["dynunet", "nnunet_plain", "nnunet_resenc"])
def test_patches_of_anisotropic_plans_are_taken(name, strides, patch):
    arch = architecture(name)
    arch.check_size(patch, {"strides": strides})
    with pytest.raises(UsageError, match="along D, H and W"):
        arch.check_size((patch[0] - 2, *patch[1:]), {"strides": strides})


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("unet", None),
        ("mednext_s", None),
        *itertools.product(
            ("dynunet", "nnunet_plain", "nnunet_resenc"),
            ((1, 2, 2), (1, (1, 2, 2), 2), (1, (1, 2, 2), (1, 2, 2))),
        ),
    ],
)
def test_a_network_runs_at_the_least_sizes_that_it_is_said_to_take(name, strides):
    arch = architecture(name)
    kwargs = {**arch.small, **({} if strides is None else {"strides": strides})}
    of = _small(name, **kwargs)
    d, h, w = arch.limits_of(kwargs).divisor
    with torch.no_grad():
        for size in ((d, 2 * h, 2 * w), (d, h, 3 * w)):
            arch.check_size(size, kwargs)
            assert of(torch.randn(1, 1, *size)).shape[2:] == size
    for voxels in (1, 2):
        with pytest.raises(UsageError, match="needs 3 voxels"):
            arch.check_size((d, h, voxels * w), kwargs)
    with torch.no_grad(), pytest.raises(ValueError, match="Expected more than 1"):
        of(torch.randn(1, 1, d, h, w))


def test_of_two_voxels_an_instance_norm_leaves_nothing():
    norm = nn.InstanceNorm3d(4)
    two, three = (
        torch.randn(1, 4, 1, 1, n, generator=torch.Generator().manual_seed(0)) for n in (2, 3)
    )
    torch.testing.assert_close(norm(two).abs(), torch.ones_like(two), atol=0.01, rtol=0)
    assert norm(three).abs().std() > 0.1


@pytest.mark.parametrize("name", architectures())
def test_the_input_for_probing_is_one_that_is_taken(name):
    arch = architecture(name)
    for kwargs in ({}, dict(arch.small)):
        limits = arch.limits_of(kwargs)
        assert all(
            n % d == 0
            for n, d in zip(arch.example(1, kwargs).shape[2:], limits.divisor, strict=True)
        )
        arch.check_size(limits.small, kwargs)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("segresnet", 4.70),
        ("unet3d", 19.07),
        ("swinunetr", 62.19),
        ("dynunet", 16.54),
        ("unetr", 92.78),
        ("mednext_s", 5.55),
        ("mednext_b", 10.51),
        ("mednext_m", 17.53),
        ("mednext_l", 61.73),
        ("nnunet_plain", 31.20),
        ("nnunet_resenc", 102.35),
    ],
)
def test_full_sizes_are_the_published_ones(name, millions):
    if not architecture(name).installed:
        pytest.skip(f"{name} needs {architecture(name).needs.package}")
    assert round(architecture(name).parameters({}) / 1e6, 2) == millions


@pytest.mark.parametrize("name", architectures())
def test_the_small_version_is_small(name):
    if not architecture(name).installed:
        pytest.skip(f"{name} needs {architecture(name).needs.package}")
    # a SwinUNETR's width is a multiple of 12, and its convolutions are what counts
    most = 4_000_000 if name == "swinunetr" else 140_000
    assert architecture(name).parameters(architecture(name).small) < most


def test_the_batch_norm_of_unet3d_uses_the_batch_in_every_mode_and_leaves_its_statistics():
    norm = BatchStatisticsNorm(3)
    x = 5 + 2 * torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    before = {key: tensor.clone() for key, tensor in norm.state_dict().items()}
    expected = (x - x.mean((0, 2, 3, 4), keepdim=True)) / (
        x.var((0, 2, 3, 4), keepdim=True, unbiased=False) + 1e-5
    ).sqrt()
    for mode in (True, False):
        torch.testing.assert_close(norm.train(mode)(x), expected)
    assert all(torch.equal(tensor, before[key]) for key, tensor in norm.state_dict().items())


def test_a_package_that_is_missing_is_named_with_the_way_to_get_it():
    needs = Needed("no_such_module", "no-such-package")
    assert not needs.installed
    with pytest.raises(UsageError, match="install it with `pip install --no-deps no-such-package`"):
        needs.require("toynet")
    arch = Architecture(
        name="toynet",
        build=lambda: nn.Identity(),
        divisor=1,
        minimum=1,
        paper="no paper",
        licence="none",
        small={},
        needs=needs,
    )
    assert not arch.installed


def test_an_untrained_network_is_the_same_every_time():
    torch.manual_seed(1)
    rng = torch.get_rng_state()
    first = untrained(architecture("mednext_s"))
    assert torch.equal(torch.get_rng_state(), rng)
    assert tensor_hash(first.network) == tensor_hash(untrained(architecture("mednext_s")).network)
    assert not first.card.sha256
