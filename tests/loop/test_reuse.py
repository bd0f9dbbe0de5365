"""Reuse of blocks is exact: bit-equal to plain forwards, for every registered backbone and for
wiring made to trip it.
"""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn

from sea_peft.adapters import Bank, Offer, units_for
from sea_peft.backbones import architectures, find_sites
from sea_peft.loop.audit import _off
from sea_peft.loop.reuse import BlockReuse, reusable


class Residual(nn.Module):
    """Activation first, and a skip that is added in place: the block's input may be written to
    once it has been used.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = (
            nn.Conv3d(channels, channels, 3, padding=1),
            nn.Conv3d(channels, channels, 3, padding=1),
        )
        self.act = nn.LeakyReLU(0.1, inplace=True)

    def forward(self, x):
        y = self.two(self.act(self.one(torch.relu(x))))
        y += x
        return y


class WritesItsInput(Residual):
    """Adds to its own input in place before it uses it."""

    def forward(self, x):
        x += 0.5
        return super().forward(x)


class Tangled(nn.Module):
    """In-place operations on what blocks return and take, a skip over two blocks, a block used
    twice, a shared activation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 4, 3, padding=1)
        self.blocks = nn.ModuleList(Residual(4) for _ in range(3))
        self.writer = WritesItsInput(4)
        self.norm = nn.InstanceNorm3d(4, affine=True)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Conv3d(4, 2, 1)

    def forward(self, x):
        first = self.stem(x)
        a = self.blocks[0](first)
        skip = a.clone()
        a *= 1.5  # written after the block returned it
        b = self.act(self.norm(self.blocks[1](a)))
        first.mul_(0.5)  # written after a block has taken it
        c = self.blocks[2](b) + self.blocks[2](first)  # one block, two inputs
        c = self.writer(c)
        return self.head(self.act(c + skip))


def _tangled():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Tangled().eval().requires_grad_(False)
        x = torch.randn(2, 1, 8, 8, 8)
    return network, find_sites(network, x), x


@torch.no_grad()
def _compare(network: nn.Module, bank: Bank, x: torch.Tensor, most: int = 1000) -> int:
    """At most that many open units, evenly over the network, toggled with and without reuse.
    Returns how many blocks were reused.
    """
    opened = sorted(bank.active, key=lambda u: (bank.units[u].site.order, u))
    opened = opened[:: -(-len(opened) // most)]
    plain = {}
    for unit in opened:
        with bank.without(unit):
            plain[unit] = network(x)
    baseline = network(x)
    with BlockReuse(network, reusable(network)) as reuse:
        assert torch.equal(network(x), baseline)
        for unit in [*opened, *reversed(opened)]:
            before = bank.acts_before(unit)
            with bank.without(unit), reuse.toggled(bank.units[unit].site.path, before):
                assert torch.equal(network(x), plain[unit]), unit
        assert torch.equal(network(x), baseline)
        return reuse.reused


@pytest.mark.parametrize(
    "backbone", [name for name, architecture in architectures().items() if architecture.installed]
)
def test_every_backbone_gives_the_same_bits_with_reuse(backbone):
    # one family that acts on every kind of site, and the one that acts on what a site is given
    adapted = tiny.model(backbone, ("affine", "lora", "conv_adapter", "adaptformer", "black_box"))
    opened = tiny.one_per_group(adapted)
    tiny.train(adapted, opened)
    adapted.bank.activate(opened)
    architecture = architectures()[backbone]
    x = architecture.example(1, architecture.small)
    assert _compare(adapted.backbone, adapted.bank, x, most=10) > 0, (
        "nothing was reused: the comparison shows nothing"
    )


def test_a_network_that_maps_its_input_gives_the_same_bits_with_reuse():
    """As nnU-Net's for CT do: every forward then runs on a tensor of its own."""
    adapted = tiny.model("segresnet")
    opened = tiny.one_per_group(adapted)
    tiny.train(adapted, opened)
    adapted.bank.activate(opened)
    adapted.backbone.register_forward_pre_hook(lambda _network, inputs: (2.0 * inputs[0] - 0.5,))
    x = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    assert _compare(adapted.backbone, adapted.bank, x, most=10) > 0


def test_tangled_wiring_gives_the_same_bits_with_reuse():
    network, sites, x = _tangled()
    units = units_for(
        network, sites, {"lora": Offer(levels=(2,)), "affine": Offer(), "bias": Offer()}
    )
    assert {site.kind for site in sites} == {"conv", "norm", "block"}
    bank = Bank(network, units)
    generator = torch.Generator().manual_seed(1)
    for p in bank.parameters([u.id for u in units]):
        p.data += 0.1 * torch.randn(p.shape, generator=generator)
    bank.activate([u.id for u in units])
    assert _compare(network, bank, x) > 0


class Chain(nn.Module):
    """A block between a stem that can be swapped and an operation in place on the block's input."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv3d(1, 4, 3, padding=1), block, nn.Conv3d(4, 2, 1)
        self.before = lambda y: y

    def forward(self, x):
        y = self.before(self.stem(x))
        z = self.block(y)
        return self.head(z + y.relu_())


@pytest.mark.parametrize(
    ("block", "before"),
    [
        # what the block was given in the baseline has since become what it is given now
        pytest.param(Residual(4), torch.relu, id="input written after the block"),
        pytest.param(
            WritesItsInput(4), lambda y: (y + 0.5).relu(), id="input written by the block"
        ),
    ],
)
@torch.no_grad()
def test_an_input_that_was_written_to_is_not_taken_for_what_it_was(block, before):
    network, x = (
        Chain(block).eval().requires_grad_(False),
        torch.randn(1, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0)),
    )
    with BlockReuse(network, reusable(network)) as reuse:
        network(x)
        network.before = before
        with reuse.toggled("stem"):
            found = network(x)
    assert torch.equal(found, network(x))


@torch.no_grad()
def test_a_change_inside_a_block_is_seen_only_where_it_is_declared():
    network, _, x = _tangled()
    with BlockReuse(network, reusable(network)) as reuse:
        network(x)
        assert reuse.reused == 0
        network(x)
        everything = reuse.reused
        with reuse.toggled("norm"):
            network(x)
        assert 0 < reuse.reused - everything < everything


def test_forward_is_the_classs_own_again_afterwards_also_after_an_exception():
    network, _, x = _tangled()
    before = {name: dict(module.__dict__) for name, module in network.named_modules()}
    with torch.no_grad(), BlockReuse(network, reusable(network)) as reuse:
        network(x)
        assert any("forward" in module.__dict__ for module in network.modules())
    for fail in (lambda: network(torch.zeros(1, 3, 8, 8, 8)), lambda: 1 / 0):
        with (
            pytest.raises((RuntimeError, ZeroDivisionError)),
            torch.no_grad(),
            BlockReuse(network, reusable(network)) as reuse,
        ):
            fail()
    assert not any("forward" in module.__dict__ for module in network.modules())
    assert {name: module.__dict__.keys() for name, module in network.named_modules()} == {
        name: held.keys() for name, held in before.items()
    }
    assert not reuse._kept, "kept tensors would hold memory"


def test_toggled_is_undone_by_an_exception():
    network, _, x = _tangled()
    with torch.no_grad(), BlockReuse(network, reusable(network)) as reuse:
        network(x)
        with pytest.raises(InterruptedError), reuse.toggled("blocks.0.one"):
            raise InterruptedError
        network(x)
        everything = reuse.reused
        network(x)
        assert reuse.reused == 2 * everything


@torch.no_grad()
def test_without_paths_nothing_is_kept():
    network, _, x = _tangled()
    with BlockReuse(network, ()) as reuse:
        network(x)
        network(x)
        assert reuse.reused == 0


@torch.no_grad()
def test_kept_outputs_stay_within_the_limit_and_are_counted():
    network, _, x = _tangled()
    one = 2 * 4 * 8**3 * 4  # float32 [2, 4, 8, 8, 8]
    with BlockReuse(network, reusable(network)) as reuse:
        network(x)
        everything = reuse.kept_bytes
    with BlockReuse(network, reusable(network), limit=one) as reuse:
        network(x)
        assert one == reuse.kept_bytes < everything


@torch.no_grad()
def test_another_input_is_refused():
    network, _, x = _tangled()
    with BlockReuse(network, reusable(network)) as reuse:
        network(x)
        with pytest.raises(ValueError, match="one input"), reuse.toggled("norm"):
            network(x.clone())


def test_two_units_toggled_together_give_the_same_bits_with_reuse():
    """Nested contexts: a block that holds either of the two toggled modules runs. Remembering
    the inner one alone was silently wrong.
    """
    adapted = tiny.model("segresnet", ("affine", "lora", "conv_adapter"))
    opened = tiny.one_per_group(adapted)
    tiny.train(adapted, opened)
    bank = adapted.bank
    bank.activate(opened)
    x = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    some = sorted(opened, key=lambda u: (bank.units[u].site.order, u))
    some = some[:: -(-len(some) // 8)]
    pairs = [(one, other) for one in some for other in some]
    with torch.no_grad():
        _compare_pairs(adapted, pairs, x)


def _compare_pairs(adapted, pairs, x) -> None:
    bank, network = adapted.bank, adapted.backbone
    plain = []
    for pair in pairs:
        with bank.without(*pair):
            plain.append(network(x))
    with BlockReuse(network, reusable(network)) as reuse:
        network(x)
        for pair, expected in zip(pairs, plain, strict=True):
            with _off(adapted, reuse, *pair):
                assert torch.equal(network(x), expected), pair
        assert reuse.reused
