"""How units act at their site: the choice of form, and that folded weights are seen by one
forward alone.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sea_peft.adapters import Bank, Offer, units_for
from sea_peft.adapters.acting import Branch, worth_folding
from sea_peft.backbones import find_sites

OFFERS = {
    "affine": Offer(),
    "lora": Offer(levels=(2,)),
    "conv_adapter": Offer(levels=(2,), placements=("parallel",)),
    "tsa": Offer(),
}


class Small(nn.Module):
    """A convolution and a norm, each used twice, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 4, 3, padding=1)
        self.conv, self.norm = nn.Conv3d(4, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.head = nn.Conv3d(4, 2, 1)
        self.watch = lambda: None

    def forward(self, x):
        x = self.first(x)
        for _ in range(2):
            x = x + torch.relu(self.norm(self.conv(x)))
            self.watch()
        return self.head(x)


def _bank(
    network: nn.Module | None = None, form="cheapest"
) -> tuple[Bank, list[str], torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = (network or Small()).eval().requires_grad_(False)
        x = torch.randn(1, 1, 6, 6, 6)
    units = units_for(network, find_sites(network, x), OFFERS)
    bank = Bank(network, units, form=form)
    ids = [unit.id for unit in units]
    generator = torch.Generator().manual_seed(1)
    for p in bank.parameters(ids):
        p.data += 0.1 * torch.randn(p.shape, generator=generator)
    bank.activate(ids)
    return bank, ids, x


# -- the rule --------------------------------------------------------------------------------------


def _lora(out: int, into: int, rank: int = 4) -> Branch:
    return Branch(((rank, into, 3, 3, 3), (out, rank)), True)


def _tsa(out: int, into: int) -> Branch:
    return Branch(((out, into),), True)


def _bias(channels: int) -> Branch:
    return Branch(((channels,),), False)


def _scale(channels: int) -> Branch:
    return Branch(((channels,),), True)


@pytest.mark.parametrize(
    ("weight", "branches", "stride", "folded"),
    [
        pytest.param(
            (16, 16, 3, 3, 3),
            [_lora(16, 16)],
            1,
            1,
            id="a branch of few channels is as dear as the convolution",
        ),
        pytest.param(
            (128, 128, 3, 3, 3),
            [_lora(128, 128)],
            1,
            0,
            id="beside many channels it is hardly anything",
        ),
        pytest.param(
            (64, 64, 3, 3, 3),
            [_lora(64, 64)],
            1,
            0,
            id="one unit does not pay for the gradient of the weight",
        ),
        pytest.param((64, 64, 3, 3, 3), [_lora(64, 64), _tsa(64, 64)], 1, 2, id="two share it"),
        pytest.param((32, 32, 3, 3, 3), [_tsa(32, 32)], 1, 0, id="a pointwise branch is cheap"),
        pytest.param(
            (32, 16, 3, 3, 3),
            [_tsa(32, 16)],
            8,
            1,
            id="but not over the input of a strided convolution",
        ),
        pytest.param(
            (256, 256, 3, 3, 3), [Branch(((256, 256, 3, 3, 3),), True)], 1, 1, id="all of a weight"
        ),
        pytest.param(
            (256, 256, 3, 3, 3), [_bias(256)], 1, 1, id="a bias needs no gradient of the weight"
        ),
        pytest.param(
            (256, 256, 3, 3, 3),
            [_lora(256, 256), _bias(256)],
            1,
            0,
            id="what follows a branch is one too",
        ),
        pytest.param((64, 64, 3, 3, 3), [_scale(64)], 1, 0, id="a factor is one pass"),
        pytest.param((64,), [Branch(((64,), (64,)), True)], 1, 1, id="at a norm"),
    ],
)
def test_the_cheaper_form(weight, branches, stride, folded):
    assert worth_folding(weight, branches, stride) == folded


def test_a_transposed_convolution_has_its_outputs_on_the_second_axis():
    down = Branch(((128, 4, 3, 3, 3), (8, 4)), True)
    assert worth_folding((128, 8, 3, 3, 3), [down], 1 / 8, transposed=True) == 1
    assert (
        worth_folding(
            (64, 128, 3, 3, 3), [Branch(((64, 4, 3, 3, 3), (128, 4)), True)], 1 / 8, transposed=True
        )
        == 0
    )


# -- folded weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("gradients", [True, False])
def test_the_network_is_what_it_was_while_units_act_through_its_weights(gradients):
    bank, _, x = _bank(form="folded")
    network = bank.backbone
    before = {
        key: (tensor.data_ptr(), tensor.clone()) for key, tensor in network.state_dict().items()
    }
    parameters = [id(p) for p in network.parameters()]
    shadowed = []

    def watch(module, _inputs, _output):
        shadowed.append("weight" in vars(module))
        assert [id(p) for p in network.parameters()] == parameters
        now = network.state_dict()
        assert list(now) == list(before)
        for key, (place, tensor) in before.items():
            assert now[key].data_ptr() == place
            assert torch.equal(now[key], tensor)

    class Watched(type(network.conv)):
        forward = nn.Conv3d.forward

        def _conv_forward(self, *args):
            watch(self, None, None)
            return super()._conv_forward(*args)

    network.conv.__class__ = Watched
    network.watch = lambda: shadowed.append("weight" in vars(network.conv))
    with torch.set_grad_enabled(gradients):
        network(x)
    assert shadowed == [True, False] * 2, "folded for each of the two calls, and for them alone"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_in_a_forward_leaves_nothing(error):
    bank, ids, x = _bank()
    network = bank.backbone
    expected = network(x)
    plain = {path: set(vars(module)) for path, module in network.named_modules()}

    def fail(_x):
        raise error

    network.conv.forward = fail
    with pytest.raises(error):
        network(x)
    del network.conv.forward
    if (
        error is KeyboardInterrupt
    ):  # torch calls no hook then; the next forward folds anew, and closing cleans up
        with bank.only(()):
            assert {path: set(vars(module)) for path, module in network.named_modules()} == plain
    assert {path: set(vars(module)) for path, module in network.named_modules()} == plain
    assert torch.equal(network(x), expected)
    assert bank.active == set(ids)


def test_a_module_with_a_forward_of_its_own_keeps_its_branches():
    class Standardised(nn.Conv3d):
        """Uses its weight in another way than a convolution does."""

        def forward(self, x):
            return self._conv_forward(x, 3.0 * self.weight, self.bias)

    network = Small()
    network.conv = Standardised(4, 4, 3, padding=1)
    outputs = []
    for form in ("branches", "folded"):
        bank, _, x = _bank(network, form)
        with torch.no_grad():
            outputs.append(network(x))
        bank.activate(())
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)


def test_which_units_act_before_the_output_is_there():
    bank, ids, _ = _bank()
    at_conv = {bank.units[u].family: u for u in ids if bank.units[u].site.path == "conv"}
    assert sorted(at_conv) == ["conv_adapter", "lora", "tsa"]
    assert bank.acts_before(at_conv["lora"]), "it is in the weights"
    assert bank.acts_before(at_conv["conv_adapter"]), "without it tsa is in the weights too"
    assert not bank.acts_before(at_conv["tsa"]), "it acts on what conv_adapter returns"
    branches, _, _ = _bank(form="branches")
    assert not any(branches.acts_before(u) for u in ids)


def test_weights_that_are_held_give_the_same_bits_until_gates_move_and_leave_gradients_alone():
    bank, ids, x = _bank()
    ids = [
        unit_id for unit_id in ids if bank.units[unit_id].family != "conv_adapter"
    ]  # all that can be folded
    bank.activate(ids)
    with torch.no_grad():
        before = bank.backbone(x)
    bank.hold()
    for p in bank.parameters(ids):
        p.data *= 2  # held weights know nothing of it, which shows that they are used
    with torch.no_grad():
        assert torch.equal(bank.backbone(x), before)
    bank.backbone(x).sum().backward()
    assert any(p.grad is not None for p in bank.parameters(ids))
    for p in bank.parameters(ids):
        p.data /= 2
    with torch.no_grad():
        bank.activate(())
        plain = bank.backbone(x)
        bank.activate(ids)
        assert torch.equal(bank.backbone(x), before)
    assert not torch.equal(plain, before)
