"""Policies that exist for papers' comparisons alone: adapters at their papers' own sizes,
ConvAdapter in its other places, random mixes of families, `sea` without each of its parts; and,
from modules of their own, how other papers choose. Importing this registers them, as a package of
one's own would.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# imported for what they register
from benchmarks import adaptive_rank, l1_ranks, published_sea, sensitivity  # noqa: F401
from sea_peft.adapters import Offer, Unit, families
from sea_peft.errors import UsageError
from sea_peft.loop.policies import Entry, register, register_described
from sea_peft.loop.policies.fixed import ENCODER, one_family, own_size, topology
from sea_peft.loop.policies.sea import Sea, SeaSettings, settings_for
from sea_peft.loop.policies.uniform import affine_then_lora, shuffled
from sea_peft.loop.ranking import RankingSettings
from sea_peft.loop.space import Space
from sea_peft.loop.utility import UtilitySettings


def _lora_then_full(space: Space, seed: int) -> list[Unit]:
    """LoRA up to the bottleneck, everything after it."""
    return [u for u in space.units if (u.family == "lora") == (u.site.stage in ENCODER)]


def _affine_lora_lowest(space: Space, seed: int) -> list[Unit]:
    """Affine everywhere and LoRA at its lowest rank everywhere, or from the cheapest site up
    where not all of it fits.
    """
    return affine_then_lora(
        space, min((u.level for u in space.units if u.family == "lora"), default=0)
    )


def _conv_adapter(
    where: str, placement: str, kind: str, about: str, stages: tuple[str, ...] | None = None
) -> Entry:
    offer = Offer(placements=(placement,), kinds=(kind,))
    return one_family(
        f"conv_adapter_{where}", "conv_adapter", offer, f"ConvAdapter {about}", stages
    )


TOPOLOGIES = (
    _conv_adapter("encoder", "parallel", "block", "beside the encoder's blocks", ENCODER),
    _conv_adapter("block_sequential", "sequential", "block", "after every block"),
    _conv_adapter("conv_parallel", "parallel", "conv", "beside every convolution"),
    _conv_adapter("conv_sequential", "sequential", "conv", "after every convolution"),
    topology(
        "affine_lora_lowest",
        "affine everywhere, LoRA at its lowest rank everywhere that fits",
        _affine_lora_lowest,
        offers={"affine": Offer(), "lora": Offer()},
    ),
)

PAPERS = (
    own_size(
        "lora_paper",
        "LoRA r16 at every convolution and linear layer (thesis)",
        {"lora": Offer(levels=(16,))},
    ),
    topology(
        "lora_encoder_full_decoder",
        "LoRA r16 in the encoder and fine-tuning of the decoder (thesis), outside the budget",
        _lora_then_full,
        offers={"lora": Offer(levels=(16,)), "full": Offer(), "affine": Offer()},
        outside_budget=True,
    ),
    own_size(
        "conv_adapter_paper",
        "ConvAdapter, reduction 2, beside every residual block (thesis)",
        {"conv_adapter": Offer(levels=(2,), placements=("parallel",), kinds=("block",))},
    ),
    own_size(
        "convnext_paper",
        "a MedNeXt block of expansion 2 after every block (PEFT-MedNeXt)",
        {"convnext": Offer(levels=(2,), placements=("sequential",))},
    ),
    own_size(
        "adaptformer_paper",
        "AdaptFormer of width 16 beside every MLP (FSEFT)",
        {"adaptformer": Offer(levels=(16,))},
    ),
    own_size(
        "compacter_paper",
        "Compacter, n = 4, after every block (FSEFT)",
        {"compacter": Offer(levels=(4,), kinds=("block",))},
    ),
    own_size("tsa_paper", "a 1×1×1 convolution beside every convolution (FSEFT)", {"tsa": Offer()}),
    own_size("black_box_paper", "two convolutions before the head (FSEFT)", {"black_box": Offer()}),
)


@dataclasses.dataclass(frozen=True)
class SameMix:
    """Random units in a given mix of families: what another policy spent on each family, spent at
    random places and levels.

    `draw`: which of several draws. `mix`: family → parameters; where the sum is above the capacity,
    all are scaled down alike. What a family leaves over (its last unit rarely fits exactly) goes to
    random units of any family of the mix.
    """

    draw: int
    mix: Mapping[str, int]

    def __call__(self, space: Space, seed: int) -> list[Unit]:
        """The subset of this draw under this seed."""
        order = shuffled(space.units, [seed, 7, self.draw])
        asked = sum(self.mix.values())
        share = min(1.0, space.capacity / asked) if asked else 0.0
        chosen: list[Unit] = []
        for family in sorted(self.mix):
            own = [u for u in order if u.family == family]
            chosen += space.room(int(self.mix[family] * share)).fill(own)
        return chosen + space.room(taken=chosen).fill(u for u in order if u.family in self.mix)


_MIX = re.compile(r"random_mix\((?P<fields>\w+=\d+(,\w+=\d+)*)\)")


def random_mix(name: str) -> Entry:
    """What a `random_mix(draw=1,affine=2400,lora=38000)` describes. Raises UsageError."""
    described = _MIX.fullmatch(name)
    fields = described["fields"].split(",") if described is not None else ()
    mix = {key: int(value) for key, value in (field.split("=") for field in fields)}
    draw = mix.pop("draw", None)
    unknown = [family for family in mix if family not in families()]
    if draw is None or not mix or unknown:
        wrong = (
            f"no adapter family is called {unknown[0]!r}"
            if unknown
            else "it needs draw=N and at least one FAMILY=PARAMETERS"
        )
        raise UsageError(
            f"Policy {name!r} cannot be read: {wrong}; write"
            " random_mix(draw=1,affine=2400,lora=38000)."
        )
    return topology(
        name, f"random subset, draw {draw}, of a given mix of families", SameMix(draw, mix)
    )


@dataclasses.dataclass(frozen=True)
class Variant:
    """`sea` without a part: a part is worth what is lost without it. `changes`: to `SeaSettings`.
    `cycles`: of the search, None for as many as the run has.
    """

    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cycles: int | None = None

    def settings(self, cycles: int, steps: int | None) -> SeaSettings:
        """The settings of the whole `sea`, changed."""
        return dataclasses.replace(settings_for(cycles, steps), **self.changes)


SEA_VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        # the last audit alone speaks: no average, no median over a window, no penalty for scatter
        "sea_no_smoothing": Variant(
            {"utility": UtilitySettings(decay=0.0, window=1, iqr_weight=0.0, exploration=0.0)}
        ),
        # one audit promotes or demotes, whatever its size, and at once
        "sea_no_ranking": Variant({"ranking": RankingSettings(votes=1, guard=0, hysteresis=0.0)}),
        # no share of the budget is kept for units that were never tried
        "sea_no_probes": Variant({"probe_share": 0.0}),
        # everything that is open makes room in every cycle, until all on trial was tried
        "sea_in_turn": Variant({"probe_share": 1.0}),
        # cost and saliency alone choose
        "sea_no_audits": Variant({"audit_units": 0}),
        # until audits say otherwise, cost alone chooses
        "sea_no_promise": Variant({"saliency": 0.0}),
        # trained once, audited once, chosen from once
        "sea_one_shot": Variant(cycles=1),
    }
)
"""Policy name → what it changes."""

for _entry in (*TOPOLOGIES, *PAPERS):
    register(_entry)
register_described("random_mix", random_mix)
for _name, _variant in SEA_VARIANTS.items():
    register(
        Entry(
            name=_name,
            about="sea without one of its parts",
            make=lambda space, _seed, settings: Sea(space, settings),
            settings=_variant.settings,
            cycles=_variant.cycles,
        )
    )
