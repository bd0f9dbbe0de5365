"""Sites are found by one probe forward, not by names: kind, stage, order, and whether acting
there changes anything.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sea_peft.adapters import Offer, units_for
from sea_peft.adapters.liveness import acting
from sea_peft.backbones import KINDS, STAGES, Architecture, Site, architectures, find_sites
from sea_peft.backbones.typed import Typed
from sea_peft.errors import WeightsError
from sea_peft.jobs.model import look_at

# backbone → digests of the sites of its small version and of the one that is listed, as every
# version so far has found them
KNOWN = json.loads(Path(__file__).with_name("sites.json").read_text(encoding="utf-8"))


class Block(nn.Module):
    """A residual block whose convolutions stand in a ModuleList."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv3d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x):
        y = x
        for conv in self.convs:
            y = torch.relu(conv(y))
        return x + y


class Odd(nn.Module):
    """A U-Net in miniature with everything that makes finding sites by name or registration go
    wrong.
    """

    def __init__(self) -> None:
        super().__init__()
        # registered in another order than executed
        self.out = nn.Conv3d(4, 2, 1)
        self.up = nn.ConvTranspose3d(8, 4, 2, stride=2)
        self.never_called = nn.Conv3d(4, 4, 3)
        self.called_in_vain = nn.Conv3d(4, 4, 1)
        self.down = nn.Conv3d(4, 8, 3, stride=2, padding=1)
        self.norm = nn.InstanceNorm3d(8, affine=True)
        self.middle = Block(8)
        self.twice = nn.Conv3d(4, 4, 3, padding=1)
        self.by_keyword = nn.Conv3d(4, 4, 1)
        self.first = nn.Conv3d(1, 4, 3, padding=1)
        self.again = self.twice
        self.tokens = nn.Linear(8, 8)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.act(self.first(x))
        self.called_in_vain(x)
        skip = self.twice(self.again(x)) + self.by_keyword(input=x)
        x = self.act(self.norm(self.down(skip)))
        x = self.middle(x)
        x = x + self.tokens(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
        return self.out(self.up(x) + skip)


@pytest.fixture
def odd():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Odd().eval().requires_grad_(False)
    sites = find_sites(
        network, torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    )
    return network, {site.path: site for site in sites}


def test_modules_that_never_fire_or_fire_in_vain_are_no_sites(odd):
    _, sites = odd
    assert "never_called" not in sites
    assert "called_in_vain" not in sites


def test_order_is_that_of_execution(odd):
    _, sites = odd
    leaves = [
        "first",
        "twice",
        "down",
        "norm",
        "middle.convs.0",
        "middle.convs.1",
        "tokens",
        "up",
        "out",
    ]
    assert [path for path in sites if path in leaves] == leaves
    assert [site.order for site in sites.values()] == list(range(len(sites)))


def test_kinds_channels_and_strides(odd):
    _, sites = odd
    found = {
        path: (s.kind, s.in_channels, s.out_channels, s.stride[0]) for path, s in sites.items()
    }
    assert found["first"] == ("conv", 1, 4, 1.0)
    assert found["down"] == ("conv", 4, 8, 2.0)
    assert found["norm"] == ("norm", 8, 8, 1.0)
    assert found["tokens"] == ("linear", 8, 8, 1.0)
    assert found["up"] == ("transposed", 8, 4, 0.5)


def test_stages_come_from_resolution_and_order(odd):
    _, sites = odd
    stages = {path: site.stage for path, site in sites.items()}
    assert stages["first"] == "stem"
    assert stages["twice"] == "encoder"
    assert stages["down"] == stages["middle.convs.1"] == stages["tokens"] == "bottleneck"
    assert stages["up"] == "decoder"
    assert stages["out"] == "head"


def test_a_module_list_does_not_hide_the_block_around_it(odd):
    _, sites = odd
    assert [path for path, site in sites.items() if site.kind == "block"] == ["middle"]


class Tokens(nn.Module):
    """A channel attention, whose linear layers see pooled channels, and an MLP, whose layers
    see each voxel as a token.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 2, 1)
        self.attention, self.mlp = Pooled(8), Perceptron(8)

    def forward(self, x):
        x = self.attention(self.stem(x))
        return self.out(x + self.mlp(x.movedim(1, -1)).movedim(-1, 1))


class Perceptron(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(channels, 16), nn.Linear(16, channels)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


class Pooled(Perceptron):
    def forward(self, x):
        return x * torch.sigmoid(super().forward(x.mean((2, 3, 4))))[:, :, None, None, None]


def test_an_mlp_is_a_block_and_a_channel_attention_is_none():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # as many voxels an axis as channels: the last axis alone does not tell tokens from volumes
        sites = find_sites(Tokens().eval(), torch.rand(1, 1, 8, 8, 8))
    blocks = [site for site in sites if site.kind == "block"]
    assert [(s.path, s.in_channels, s.out_channels, s.stride) for s in blocks] == [
        ("mlp", 8, 8, (1.0, 1.0, 1.0))
    ]
    assert {s.path for s in sites if s.kind == "linear"} == {
        "attention.up",
        "attention.down",
        "mlp.up",
        "mlp.down",
    }


def test_a_site_says_when_a_norm_takes_shifts_and_factors_away(odd):
    assert [path for path, site in odd[1].items() if site.normed] == ["down"]


class HeadInABlock(nn.Module):
    """A stem, and a block whose last convolution is the network's."""

    class Out(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.classes = nn.Conv3d(4, 4, 3, padding=1), nn.Conv3d(4, 3, 1)

        def forward(self, x):
            return self.classes(self.conv(x).relu())

    def __init__(self):
        super().__init__()
        self.stem, self.out = nn.Conv3d(1, 4, 3, padding=1), self.Out()

    def forward(self, x):
        return self.out(self.stem(x).relu())


def test_a_block_around_the_head_is_no_site():
    sites = {site.path: site for site in find_sites(HeadInABlock(), torch.rand(1, 1, 8, 8, 8))}
    assert list(sites) == ["stem", "out.conv", "out.classes"]
    assert sites["out.classes"].stage == "head"


def test_a_shared_module_is_one_site(odd):
    _, sites = odd
    assert "twice" in sites
    assert "again" not in sites


def test_a_module_called_by_keyword_is_passed_over(odd):
    # hooks do not see keyword arguments, so no unit could act on its input
    assert "by_keyword" not in odd[1]


def test_the_backbone_is_left_as_it_was():
    network, x = Odd(), torch.rand(1, 1, 8, 8, 8)
    network.train()
    network.norm.eval()
    network.down.weight.requires_grad_(False)
    modes = {name: module.training for name, module in network.named_modules()}
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    rng = torch.get_rng_state()
    find_sites(network, x)
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in state.items())
    assert not any(module._forward_hooks for module in network.modules())
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), rng)


def test_the_probe_is_repeatable_and_leaves_no_hook_behind_when_the_network_fails():
    network, x = Odd().eval(), torch.rand(1, 1, 8, 8, 8)
    assert find_sites(network, x) == find_sites(network, x)
    with pytest.raises(RuntimeError):
        find_sites(network, torch.rand(1, 2, 8, 8, 8))
    assert not any(module._forward_hooks for module in network.modules())


def test_a_network_without_any_known_module_has_no_sites():
    class Doubled(nn.Module):
        def forward(self, x):
            return 2 * x

    assert find_sites(Doubled(), torch.ones(1, 1, 4, 4, 4, requires_grad=True)) == ()


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda y: (y, y), "tuple"),
        (lambda y: y[:, :, ::2], r"\[1, 1, 2, 4, 4\]"),
        (lambda y: y.mean((2, 3, 4)), r"\[1, 1\]"),
    ],
)
def test_a_network_that_does_not_segment_is_refused(spoil, found):
    class Spoilt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(1, 1, 1)

        def forward(self, x):
            return spoil(self.conv(x))

    network = Spoilt()
    with pytest.raises(WeightsError, match=rf"maps \[1, 1, 4, 4, 4\] to {found}, not to"):
        find_sites(network, torch.rand(1, 1, 4, 4, 4))
    assert not network.conv._forward_hooks


def test_a_head_followed_by_something_keeps_its_stage_only_at_full_resolution():
    class Upsampled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.classifier = nn.Conv3d(1, 4, 3, stride=2, padding=1), nn.Conv3d(4, 2, 1)

        def forward(self, x):
            return F.interpolate(self.classifier(self.body(x)), scale_factor=2.0)

    sites = find_sites(Upsampled().eval(), torch.rand(1, 1, 8, 8, 8))
    assert [site.stage for site in sites] == ["stem", "bottleneck"]


# -- liveness --------------------------------------------------------------------------------------


def test_a_bias_in_front_of_an_instance_norm_is_not_offered(odd):
    network, sites = odd
    x = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    units = units_for(network, tuple(sites.values()), {"bias": Offer(), "lora": Offer(levels=(2,))})
    alive = {unit.id for unit in acting(network, units, x)}
    assert "bias@down" not in alive
    assert {"bias@norm", "bias@first", "bias@up", "lora-2@down"} <= alive


def test_levels_live_or_die_together_and_order_is_kept(odd):
    network, sites = odd
    x = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    units = units_for(network, tuple(sites.values()), {"lora": Offer(), "bias": Offer()})
    alive = acting(network, units, x)
    assert [unit for unit in units if unit in alive] == list(alive)
    assert {u.group for u in units if u.family == "lora"} == {
        u.group for u in alive if u.family == "lora"
    }
    assert sum(u.family == "lora" for u in units) == sum(u.family == "lora" for u in alive)
    assert acting(network, (), x) == ()


# -- every registered backbone ---------------------------------------------------------------------


def _small(architecture: Architecture) -> nn.Module:
    if not architecture.installed:
        pytest.skip(f"{architecture.name} needs {architecture.needs.package}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return architecture.build(in_channels=2, out_channels=3, **architecture.small).eval()


@pytest.mark.parametrize("name", architectures())
def test_every_backbone_keeps_its_grid_and_has_sites_in_order(name):
    architecture = architectures()[name]
    network, x = _small(architecture), architecture.example(2, architecture.small)
    with torch.no_grad():
        assert network(x).shape == (1, 3, *x.shape[2:])
    sites = find_sites(network, x)
    assert {site.kind for site in sites} <= set(KINDS)
    stages = {site.stage for site in sites}
    assert stages | {"encoder"} == set(
        STAGES
    )  # a transformer that works at one resolution is all bottleneck
    assert [site.stage for site in sites].count("head") == 1
    firsts = [
        min(s.order for s in sites if s.stage == stage) for stage in STAGES if stage in stages
    ]
    assert firsts == sorted(firsts)
    assert any(site.kind == "block" for site in sites) == (
        name not in ("meshnet", "obelisk", "hippodeep")
    )  # these have convolutions and norms, and no module around them
    assert not any(module.training for module in network.modules())
    assert len({site.path for site in sites}) == len(sites)


def _digest(sites: tuple[Site, ...]) -> str:
    """Of everything that is known of them."""
    return hashlib.sha256(
        json.dumps([list(dataclasses.asdict(site).values()) for site in sites]).encode()
    ).hexdigest()[:16]


@pytest.mark.parametrize("name", architectures())
def test_every_backbone_has_the_sites_that_it_always_had(name):
    architecture = architectures()[name]
    sites = find_sites(_small(architecture), architecture.example(2, architecture.small))
    assert _digest(sites) == KNOWN[name]["small"]


@pytest.mark.slow
@pytest.mark.parametrize("name", architectures())
def test_every_backbone_at_full_size_has_the_sites_that_it_always_had(name):
    _small(architectures()[name])  # skips it if its package is missing
    assert _digest(look_at(Typed(backbone=name)).sites) == KNOWN[name]["full"]


@pytest.mark.parametrize("name", architectures())
def test_every_backbone_names_its_paper_licence_and_weights(name):
    architecture = architectures()[name]
    assert architecture.name == name
    assert len(architecture.paper) > 10
    assert architecture.licence
    assert architecture.build.__doc__
