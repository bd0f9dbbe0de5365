"""The conformance checks have teeth: a family that breaks a property is caught by the check of
it.
"""

from __future__ import annotations

import itertools
from typing import ClassVar

import conformance
import pytest
import torch
import torch.nn.functional as F
from benches import Bench, handful, offered
from torch import nn

from sea_peft.adapters import Adapter, CannotMerge, registry


def _per_channel(values: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, 1, 1, 1)


class Sound(Adapter):
    """y ← y + s⊙x̄ at convolutions: nothing wrong with it. Source: these tests. Cost C."""

    family = "sound"
    kinds = frozenset({"conv"})

    def __init__(self, site, module, level, placement, generator):
        super().__init__(site, module, level, placement, generator)
        self.scale = nn.Parameter(torch.zeros(site.out_channels))

    def forward(self, x, y):
        return y + _per_channel(self.scale) * y


class NotIdentity(Sound):
    """Starts with random values, as AdaptFormer with a biased up-projection does."""

    def __init__(self, site, module, level, placement, generator):
        super().__init__(site, module, level, placement, generator)
        self.scale.data = 0.01 * torch.randn(site.out_channels, generator=generator)


class DrawsWhenBuilt(Sound):
    """Starts from torch's global RNG, so that a unit's values depend on what was built before
    it.
    """

    def __init__(self, site, module, level, placement, generator):
        super().__init__(site, module, level, placement, generator)
        self.direction = nn.Parameter(torch.randn(site.out_channels))

    def forward(self, x, y):
        return y + _per_channel(self.scale * self.direction) * y


class WritesToTheBackbone(Sound):
    """Trains the backbone's own weight in place, so that off only stops the training."""

    def __init__(self, site, module, level, placement, generator):
        super().__init__(site, module, level, placement, generator)
        object.__setattr__(self, "module", module)

    def forward(self, x, y):
        self.module.weight.data += self.scale.detach().mean()
        return super().forward(x, y)


class HooksItself(Sound):
    """Acts through a hook of its own, which no gate closes."""

    def __init__(self, site, module, level, placement, generator):
        super().__init__(site, module, level, placement, generator)
        module.register_forward_hook(lambda _m, _i, y: y + _per_channel(self.scale) * y)

    def forward(self, x, y):
        return y + 0 * _per_channel(self.scale)


class Counts(Sound):
    """Every forward of any unit changes the state of all of them."""

    forwards = itertools.count()

    def __init__(self, site, module, level, placement, generator):
        super().__init__(site, module, level, placement, generator)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x, y):
        self.seen.fill_(next(Counts.forwards))
        return super().forward(x, y)


class SharesState(Sound):
    """Siblings share one tensor: what one of them is decides what the others do."""

    newest: ClassVar[dict[int, nn.Parameter]] = {}

    def __init__(self, site, module, level, placement, generator):
        super().__init__(site, module, level, placement, generator)
        self.scale = SharesState.newest.setdefault(site.out_channels, self.scale)


class DrawsGlobally(Sound):
    """Has a dropout: units have no mode, so the RNG moves and no two outputs are the same."""

    def forward(self, x, y):
        return y + _per_channel(self.scale) * F.dropout(y, 0.1, training=self.training)


class NeverActs(Sound):
    """Cancels its own change."""

    def forward(self, x, y):
        return y + 0 * _per_channel(self.scale) * y


class WritesToWhatItIsGiven(Sound):
    """Saves a copy by changing the site's output in place, which a skip connection or a kept
    output may still hold.
    """

    def forward(self, x, y):
        return y.mul_(1.0 + _per_channel(self.scale))


class HidesParameters(Sound):
    """Trains a tensor that `parameters()` does not know, like the units that were booked with a
    cost of 0.
    """

    def __init__(self, site, module, level, placement, generator):
        super().__init__(site, module, level, placement, generator)
        self.hidden = [torch.zeros(site.out_channels, requires_grad=True)]

    def forward(self, x, y):
        return super().forward(x, y) + _per_channel(self.hidden[0])


class ForgetsState(Sound):
    """Multiplies by a random direction that is not saved."""

    def __init__(self, site, module, level, placement, generator):
        super().__init__(site, module, level, placement, generator)
        self.direction = torch.randn(site.out_channels, generator=generator)

    def forward(self, x, y):
        return y + _per_channel(self.scale * self.direction.to(y)) * y


class MergesWrongly(Sound):
    """Forgets that the bias is scaled too."""

    def merged(self, tensors):
        return {"weight": tensors["weight"] * 1.001}


class MergesUnderAnotherName(Sound):
    """Folds into a tensor that its site does not have."""

    def merged(self, tensors):
        return {"weights": tensors["weight"]}


class RefusesWithoutAReason(Sound):
    def merged(self, tensors):
        raise CannotMerge("no")


class InheritsHalf(Sound):
    """Has two levels, of which the larger takes over half of what the smaller one learnt."""

    levels = (1, 2)

    def __init__(self, site, module, level, placement, generator):
        super().__init__(site, module, level, placement, generator)
        self.more = nn.Parameter(torch.zeros(level))

    def forward(self, x, y):
        return super().forward(x, y) + self.more.mean()

    def inherit(self, smaller):
        self.scale.data = smaller.scale.data / 2


class InheritsByReference(InheritsHalf):
    """Goes on training the smaller unit's own tensor."""

    def inherit(self, smaller):
        self.scale, self.more.data = smaller.scale, self.more.data + smaller.more.data


class DeadTensor(Sound):
    """Holds, counts and saves a parameter that its forward does not use."""

    def __init__(self, site, module, level, placement, generator):
        super().__init__(site, module, level, placement, generator)
        self.unused = nn.Parameter(torch.zeros(3))


class CountsAShiftThatIsNormedAway(Sound):
    """Has a bias wherever it stands, in front of an instance norm too, where it is paid for and
    does nothing.
    """

    def __init__(self, site, module, level, placement, generator):
        super().__init__(site, module, level, placement, generator)
        self.kernel = nn.Parameter(torch.zeros(site.out_channels, 1, 3, 3, 3))
        self.shift = nn.Parameter(torch.zeros(site.out_channels))

    def forward(self, x, y):
        bent = F.conv3d(y, self.kernel, self.shift, padding=1, groups=len(self.shift))
        return super().forward(x, y) + bent


class TrainsTheBackbone(Sound):
    """Asks for gradients of the backbone's weight."""

    def __init__(self, site, module, level, placement, generator):
        super().__init__(site, module, level, placement, generator)
        module.weight.requires_grad_(True)


class TwoConvolutions(nn.Module):
    """The smallest network with more than one site."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 3, 3, padding=1)
        self.second = nn.Conv3d(3, 3, 3, padding=1)
        self.last = nn.Conv3d(3, 2, 1)

    def forward(self, x):
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


class Normed(TwoConvolutions):
    """The same with an instance norm after each of the first two, which takes away whatever is
    added to a channel.
    """

    def forward(self, x):
        for layer in (self.first, self.second):
            x = torch.relu(F.instance_norm(layer(x)))
        return self.last(x)


@pytest.fixture
def caught(monkeypatch):
    """Run one check on a family that is registered for this test only."""

    def run(family: type[Adapter], check: str, network: type[nn.Module] = TwoConvolutions) -> None:
        monkeypatch.setitem(registry._FAMILIES, family.family, family)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            bench = Bench.of(network(), torch.rand(1, 1, 6, 6, 6))
            # a dead family has no unit that acts: the check gets what it would have put on offer
            units = handful(bench, [family.family]) or registry.units_for(
                bench.network, bench.sites, {family.family: registry.Offer()}
            )
            getattr(conformance, check)(bench, units)

    return run


EVERY_CHECK = tuple(check.__name__ for check in conformance.CHECKS)

BROKEN = [
    (NotIdentity, "check_identity"),
    (DrawsWhenBuilt, "check_identity"),
    (WritesToTheBackbone, "check_off"),
    (HooksItself, "check_off"),
    (Counts, "check_toggle"),
    (SharesState, "check_toggle"),
    (DrawsGlobally, "check_toggle"),
    (NeverActs, "check_acts"),
    (WritesToWhatItIsGiven, "check_acts"),
    (HidesParameters, "check_cost"),
    (ForgetsState, "check_roundtrip"),
    (MergesWrongly, "check_merge"),
    (MergesUnderAnotherName, "check_merge"),
    (RefusesWithoutAReason, "check_merge"),
    (InheritsHalf, "check_inherit"),
    (InheritsByReference, "check_inherit"),
    (DeadTensor, "check_gradients"),
    (TrainsTheBackbone, "check_gradients"),
    (HidesParameters, "check_gradients"),
]


@pytest.mark.parametrize("check", EVERY_CHECK)
def test_a_sound_family_passes(caught, check):
    caught(Sound, check)


@pytest.mark.parametrize(
    ("family", "check"), BROKEN, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_broken_family_is_caught(caught, family, check):
    with pytest.raises(AssertionError, match="sound"):
        caught(family, check)


def test_a_family_that_cannot_act_is_not_offered(monkeypatch):
    monkeypatch.setitem(registry._FAMILIES, "sound", NeverActs)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bench = Bench.of(TwoConvolutions(), torch.rand(1, 1, 6, 6, 6))
    assert offered(bench, "sound") == ()


def test_a_bias_that_a_norm_takes_away_is_caught(caught):
    caught(CountsAShiftThatIsNormedAway, "check_gradients")
    with pytest.raises(AssertionError, match="shift of sound"):
        caught(CountsAShiftThatIsNormedAway, "check_gradients", Normed)
