"""The fixed topologies: the same units from the first step to the last. Every registered family
gets a uniform topology automatically.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

from sea_peft.adapters import Offer, Unit, families
from sea_peft.errors import BudgetError
from sea_peft.loop.policies import uniform
from sea_peft.loop.policies.registry import Entry, register, register_source
from sea_peft.loop.policy import Allocation, Policy
from sea_peft.loop.rows import Decision
from sea_peft.loop.space import Space

ENCODER, DECODER = ("stem", "encoder", "bottleneck"), ("decoder",)


Choose = Callable[[Space, int], list[Unit]]
"""Space and seed → the units of a topology."""


class Fixed(Policy):
    """The same units from the first step to the last, whatever the loop measures."""

    def __init__(
        self, name: str, space: Space, units: Sequence[Unit], reason: str, outside_budget: bool
    ) -> None:
        super().__init__(name, space)
        self.outside_budget, self.head_alone = outside_budget, not units
        self._units = tuple(units)
        self._reason = reason

    def allocate(self, cycle: int) -> Allocation:
        decision = "add" if cycle == 0 else "keep"
        return Allocation(
            active=tuple(u.id for u in self._units),
            decisions=tuple(Decision(u.id, decision, None, self._reason) for u in self._units),
        )

    def final(self) -> Allocation:
        return self.allocate(1)


def topology(
    name: str,
    about: str,
    choose: Choose,
    *,
    offers: Mapping[str, Offer] | None = None,
    stages: tuple[str, ...] | None = None,
    outside_budget: bool = False,
) -> Entry:
    """A fixed topology as an entry of the registry.

    Args:
        name: of the policy.
        about: what it places, in words.
        choose: space and seed → its units.
        offers: family → the part of it that the policy uses; None for all that the budget profile
            offers.
        stages: where in the network it places units; None for everywhere.
        outside_budget: whether it ignores the budget, for comparisons.
    """

    def make(space: Space, seed: int, _settings: object) -> Policy:
        units = tuple(u for u in space.units if _may_use(u, offers, stages))
        chosen = choose(dataclasses.replace(space, units=units), seed)
        if not chosen and choose is not uniform.nothing:
            raise nothing_fits(name, about, units, space)
        return Fixed(
            name,
            space,
            chosen,
            about if outside_budget else f"fixed topology: {about}",
            outside_budget,
        )

    return Entry(name=name, about=about, make=make, offers=offers, outside_budget=outside_budget)


def nothing_fits(name: str, about: str, units: Iterable[Unit], space: Space) -> BudgetError:
    """The error of a policy that can open none of these units."""
    if not tuple(units):
        return BudgetError(
            f"Policy {name} ({about}) has no place on this backbone; choose another policy.",
            "policy",
        )
    room = f"fits no unit into {space.capacity:,} {space.kind.many} on this backbone and profile"
    return BudgetError(
        f"Policy {name} {room}; raise the budget or choose another policy.", "budget", "policy"
    )


def one_family(
    name: str, family: str, offer: Offer, about: str, stages: tuple[str, ...] | None = None
) -> Entry:
    """A topology of one family at the largest level that fits."""
    said = f"{about}, at the largest level that fits"
    return topology(name, said, uniform.one_family, offers={family: offer}, stages=stages)


def own_size(
    name: str, about: str, offers: Mapping[str, Offer], stages: tuple[str, ...] | None = None
) -> Entry:
    """A topology at the size that its source uses, whatever the budget."""
    said = f"{about}, outside the budget"
    return topology(
        name, said, uniform.everything, offers=offers, stages=stages, outside_budget=True
    )


_CONVOLUTIONS = ("conv", "transposed")

# families whose plain name stands for the places that their papers use, and not for all that they
# offer
_NARROWED = {
    "conv_adapter": Offer(placements=("parallel",), kinds=("block",)),
    "convnext": Offer(placements=("sequential",)),
    "compacter": Offer(kinds=("block",)),
    "houlsby": Offer(kinds=("block",)),
}


@functools.cache
def _everywhere(family: str) -> Entry:
    """The uniform topology of a family."""
    return one_family(family, family, _NARROWED.get(family, Offer()), f"{family} everywhere")


register_source(lambda: {name: _everywhere(name) for name in families() if name != "full"})
for _entry in (
    one_family("lora_linear", "lora", Offer(kinds=("linear",)), "LoRA at every linear layer"),
    one_family("lora_conv", "lora", Offer(kinds=_CONVOLUTIONS), "LoRA at every convolution"),
    one_family("lora_encoder", "lora", Offer(), "LoRA in the encoder", ENCODER),
    one_family("lora_decoder", "lora", Offer(), "LoRA in the decoder", DECODER),
    topology(
        "affine_lora",
        "affine everywhere, LoRA r4 from the cheapest site up",
        uniform.affine_lora,
        offers={"affine": Offer(), "lora": Offer(levels=(4,))},
    ),
    topology("cheapest", "cheapest unit first, over the whole audit space", uniform.cheapest),
    topology(
        "uniform", "an equal share of the budget for every site and family", uniform.equal_shares
    ),
    topology("random", "random subset of the audit space", uniform.random),
    topology("head_only", "the head alone", uniform.nothing, offers={}),
    own_size("full", "full fine-tuning", {"full": Offer(), "affine": Offer()}),
    own_size(
        "decoder_full", "fine-tuning of the decoder", {"full": Offer(), "affine": Offer()}, DECODER
    ),
):
    register(_entry)


def _may_use(
    unit: Unit, offers: Mapping[str, Offer] | None, stages: tuple[str, ...] | None
) -> bool:
    """Whether a topology with these offers and stages may use the unit."""
    if stages is not None and unit.site.stage not in stages:
        return False
    return offers is None or (unit.family in offers and offers[unit.family].holds(unit))
