"""The fixed topologies by name: one table of what each may use and how it chooses. A registered family has its uniform topology by itself."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

from sea_peft.adapters import Offer, Unit, families
from sea_peft.errors import BudgetError, UsageError
from sea_peft.loop.policies import uniform
from sea_peft.loop.policies.adaptive_rank import AdaptiveRank
from sea_peft.loop.policies.base import Fixed, Policy, Space
from sea_peft.loop.policies.random_subsets import SameMix, unrestricted

ENCODER, DECODER = ("stem", "encoder", "bottleneck"), ("decoder",)


@dataclasses.dataclass(frozen=True)
class Topology:
    """`about`: what it places, in words. `choose`: its units out of a space and a seed. `offers`: family → what of it the space holds;
    None for what the budget profile offers. `stages`: where, None for everywhere. `outside_budget`: a comparison that no budget binds.
    """

    about: str
    choose: Callable[[Space, int], list[Unit]]
    offers: Mapping[str, Offer] | None = None
    stages: tuple[str, ...] | None = None
    outside_budget: bool = False


def _one(family: str, offer: Offer, about: str, stages: tuple[str, ...] | None = None) -> Topology:
    """One family at the largest level that fits."""
    return Topology(f"{about}, at the largest level that fits", uniform.one_family, {family: offer}, stages)


def _own_size(about: str, stages: tuple[str, ...] | None = None, **offers: Offer) -> Topology:
    """At the size that its source gives it, whatever the budget."""
    return Topology(f"{about}, outside the budget", uniform.everything, offers, stages, outside_budget=True)


_BLOCKS = Offer(placements=("parallel",), kinds=("block",))
_CONVOLUTIONS = ("conv", "transposed")
_AFFINE_LORA = {"affine": Offer(), "lora": Offer()}

# families whose plain name stands for less than all that they offer: where their papers have them
_NARROWED = {
    "conv_adapter": _BLOCKS,
    "convnext": Offer(placements=("sequential",)),
    "compacter": Offer(kinds=("block",)),
    "houlsby": Offer(kinds=("block",)),
}


def _lora_then_full(space: Space, seed: int) -> list[Unit]:
    """LoRA up to the bottleneck, everything after it."""
    return [u for u in space.units if (u.family == "lora") == (u.site.stage in ENCODER)]


_TABLE: dict[str, Topology] = {
    **{name: _one(name, _NARROWED.get(name, Offer()), f"{name} everywhere") for name in families() if name != "full"},
    "lora_linear": _one("lora", Offer(kinds=("linear",)), "LoRA at every linear layer"),
    "lora_conv": _one("lora", Offer(kinds=_CONVOLUTIONS), "LoRA at every convolution"),
    "lora_encoder": _one("lora", Offer(), "LoRA in the encoder", ENCODER),
    "lora_decoder": _one("lora", Offer(), "LoRA in the decoder", DECODER),
    "conv_adapter_encoder": _one("conv_adapter", _BLOCKS, "ConvAdapter beside the encoder's blocks", ENCODER),
    "conv_adapter_block_sequential": _one(
        "conv_adapter", Offer(placements=("sequential",), kinds=("block",)), "ConvAdapter after every block"
    ),
    "conv_adapter_conv_parallel": _one(
        "conv_adapter", Offer(placements=("parallel",), kinds=("conv",)), "ConvAdapter beside every convolution"
    ),
    "conv_adapter_conv_sequential": _one(
        "conv_adapter", Offer(placements=("sequential",), kinds=("conv",)), "ConvAdapter after every convolution"
    ),
    "affine_lora": Topology(
        "affine everywhere, LoRA r4 from the cheapest site up",
        uniform.affine_lora,
        {"affine": Offer(), "lora": Offer(levels=(4,))},
    ),
    "affine_lora_lowest": Topology(
        "affine everywhere, LoRA at its lowest rank everywhere that fits", uniform.affine_lora_lowest, _AFFINE_LORA
    ),
    "cheapest": Topology("cheapest unit first, over the whole audit space", uniform.cheapest),
    "uniform": Topology("the same number of parameters for every site and family", uniform.equal_shares),
    "random": Topology("random subset of the audit space", unrestricted),
    "head_only": Topology("the head alone", uniform.nothing, {}),
    # outside the budget: fine-tuning, and adapters at their papers' own sizes
    "full": _own_size("full fine-tuning", full=Offer(), affine=Offer()),
    "decoder_full": _own_size("fine-tuning of the decoder", DECODER, full=Offer(), affine=Offer()),
    "lora_paper": _own_size("LoRA r16 at every convolution and linear layer (thesis)", lora=Offer(levels=(16,))),
    "lora_encoder_full_decoder": Topology(
        "LoRA r16 in the encoder and fine-tuning of the decoder (thesis), outside the budget",
        _lora_then_full,
        {"lora": Offer(levels=(16,)), "full": Offer(), "affine": Offer()},
        outside_budget=True,
    ),
    "conv_adapter_paper": _own_size(
        "ConvAdapter, reduction 2, beside every residual block (thesis)",
        conv_adapter=Offer(levels=(2,), placements=("parallel",), kinds=("block",)),
    ),
    "convnext_paper": _own_size(
        "a MedNeXt block of expansion 2 after every block (PEFT-MedNeXt)",
        convnext=Offer(levels=(2,), placements=("sequential",)),
    ),
    "adaptformer_paper": _own_size("AdaptFormer of width 16 beside every MLP (FSEFT)", adaptformer=Offer(levels=(16,))),
    "compacter_paper": _own_size(
        "Compacter, n = 4, after every block (FSEFT)", compacter=Offer(levels=(4,), kinds=("block",))
    ),
    "tsa_paper": _own_size("a 1×1×1 convolution beside every convolution (FSEFT)", tsa=Offer()),
    "black_box_paper": _own_size("two convolutions before the head (FSEFT)", black_box=Offer()),
}

FIXED_POLICIES = (*_TABLE, AdaptiveRank.name)
OUTSIDE_BUDGET = frozenset(name for name, topology in _TABLE.items() if topology.outside_budget)


def simple_topology(space: Space) -> str:
    """The fixed topology that what `sea` found is held against: affine with LoRA r4 from the cheapest site up, where the
    space has both; else the cheapest units. `sea` itself starts from cheap units, so that another set is the better check; at 0.1% and 0.3%
    the cheapest units are the stronger rule (`python -m benchmarks run rivals_unet`)."""
    on_offer = {(unit.family, unit.level) for unit in space.units}
    return "affine_lora" if {("affine", 0), ("lora", 4)} <= on_offer else "cheapest"


_MIX = re.compile(r"random_mix\((?P<fields>\w+=\d+(,\w+=\d+)*)\)")


def _topology(name: str) -> Topology:
    """The entry called `name`, or what a `random_mix(draw=1,affine=2400,lora=38000)` describes. Raises UsageError."""
    if name in _TABLE:
        return _TABLE[name]
    described = _MIX.fullmatch(name)
    if described is None:
        raise UsageError(
            f"No policy is called {name!r}; there are sea, {', '.join(FIXED_POLICIES)}, and "
            "random_mix(draw=1,FAMILY=PARAMETERS,...)."
        )
    mix = {key: int(value) for key, value in (field.split("=") for field in described["fields"].split(","))}
    draw = mix.pop("draw", None)
    unknown = [family for family in mix if family not in families()]
    if draw is None or not mix or unknown:
        wrong = (
            f"no adapter family is called {unknown[0]!r}"
            if unknown
            else "it needs draw=N and at least one FAMILY=PARAMETERS"
        )
        raise UsageError(f"Policy {name!r} cannot be read: {wrong}; write random_mix(draw=1,affine=2400,lora=38000).")
    return Topology(f"random subset, draw {draw}, of a given mix of families", SameMix(draw, mix))


def _may_use(topology: Topology, unit: Unit) -> bool:
    """Whether the topology is about this unit: its family, level, placement and kind of site, and where it stands."""
    if topology.stages is not None and unit.site.stage not in topology.stages:
        return False
    if topology.offers is None:
        return True
    offer = topology.offers.get(unit.family)
    return offer is not None and all(
        allowed is None or own in allowed
        for own, allowed in (
            (unit.level, offer.levels),
            (unit.placement, offer.placements),
            (unit.site.kind, offer.kinds),
        )
    )


def policy_offers(name: str) -> Mapping[str, Offer] | None:
    """What the policy's audit space is made of, or None for what the budget profile offers. Raises UsageError for an unknown name."""
    return _AFFINE_LORA if name == AdaptiveRank.name else _topology(name).offers


def fixed_policy(name: str, space: Space, seed: int) -> Policy:
    """The rival called `name` under the space's budget. Raises UsageError for an unknown name, BudgetError when none of it fits."""
    policy: Policy
    if name == AdaptiveRank.name:
        units = [unit for unit in space.units if unit.family in _AFFINE_LORA]
        policy, about = AdaptiveRank(space), "affine and LoRA ranks by importance"
        empty = all(unit.cost > space.capacity for unit in units)
    else:
        topology = _topology(name)
        about = topology.about
        units = [unit for unit in space.units if _may_use(topology, unit)]
        chosen = topology.choose(dataclasses.replace(space, units=tuple(units)), seed)
        reason = about if topology.outside_budget else f"fixed topology: {about}"
        policy = Fixed(name, chosen, reason, topology.outside_budget)
        empty = not chosen and topology.choose is not uniform.nothing
    if empty and not units:
        raise BudgetError(f"Policy {name} ({about}) has no place on this backbone; choose another --policy.")
    if empty:
        raise BudgetError(
            f"Policy {name} fits no unit into {space.capacity:,} parameters on this backbone and profile; "
            "raise --budget or choose another --policy."
        )
    return policy
