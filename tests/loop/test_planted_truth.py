"""Where the useful units are known, the engine finds them more often than chance, through noise
like that of a 1-shot audit.

A synthetic objective: of 24 sites, six sites of the costly families are useful and the others worth
nothing on average. What a unit brings grows with the root of its level; in an audit it shows only
as far as the unit has been trained, under noise. Sizes as measured on phantoms:
|ΔDice| 0.004–0.011 on average and up to 0.04–0.08, standard error over crops 0.002–0.005.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Callable, Iterable

import pytest
from worlds import Conversation, converse, space

from sea_peft.adapters import total_cost
from sea_peft.errors import BudgetError
from sea_peft.jobs.optimum import optimum
from sea_peft.loop.knapsack import Item
from sea_peft.loop.policies import make_policy
from sea_peft.loop.policies.sea import Sea, SeaSettings
from sea_peft.loop.policy import Policy
from sea_peft.loop.space import Space

CYCLES = 6
SEEDS = range(10)
NOISE = 0.004
USEFUL_SITES = 6


@dataclasses.dataclass(frozen=True)
class World:
    """`truth`: unit → what it brings once trained, in Dice."""

    space: Space
    truth: dict[str, float]
    useful: frozenset[str]
    seed: int

    @classmethod
    def planted(cls, seed: int) -> World:
        audit_space = space(sites=24, share=0.05, seed=seed)
        rng = random.Random(seed)
        costly = sorted({u.site.path for u in audit_space.units if u.family != "affine"})
        chosen = frozenset(rng.sample(costly, USEFUL_SITES))
        by_site = {
            path: rng.uniform(0.01, 0.04) if path in chosen else rng.gauss(0, 0.001)
            for path in costly
        }
        truth = {}
        for unit in audit_space.units:
            if unit.family == "affine":
                truth[unit.id] = rng.gauss(0.001, 0.001)
            else:
                smallest = min(u.cost for u in audit_space.units if u.group == unit.group)
                truth[unit.id] = by_site[unit.site.path] * (unit.cost / smallest) ** 0.5 / 2
        return cls(audit_space, truth, chosen, seed)

    def saliency(self, faith: float) -> Callable[[str], float]:
        """The size of a gradient: it sees usefulness with `faith`, and something else for the
        rest; never the sign.
        """
        rng = random.Random(self.seed + 1)
        typical = statistics.mean(abs(t) for t in self.truth.values())
        return lambda unit: (
            faith * abs(self.truth[unit]) + (1 - faith) * typical * rng.lognormvariate(0, 1)
        )

    def run(self, policy: Policy, faith: float, noise: float = NOISE) -> Conversation:
        rng = random.Random(self.seed + 2)
        cycles_open: dict[str, int] = {}

        def measure(unit: str, opened: Iterable[str]) -> tuple[float, float]:
            learnt = min(1.0, cycles_open[unit] / 2)
            return learnt * self.truth[unit] + rng.gauss(0, noise), abs(rng.gauss(0, noise))

        class Trained:
            """The policy, its open units counted as they are trained."""

            def __getattr__(self, name):
                return getattr(policy, name)

            def allocate(self, cycle: int):
                allocation = policy.allocate(cycle)
                for unit in allocation.open:
                    cycles_open[unit] = cycles_open.get(unit, 0) + 1
                return allocation

        return converse(Trained(), self.space, CYCLES, self.saliency(faith), measure)

    def found(self, active: Iterable[str]) -> float:
        """Share of the budget that lies at useful sites."""
        units = [self.space.by_id[u] for u in active]
        return total_cost(u for u in units if u.site.path in self.useful) / self.space.capacity

    def worth(self, active: Iterable[str]) -> float:
        """True Dice of the set, of the best set under the budget."""
        items = [Item(u.id, u.group, u.cost, self.truth[u.id]) for u in self.space.units]
        return sum(self.truth[u] for u in active) / optimum(items, self.space.capacity)


def _rates(choose: Callable[[World], Iterable[str]]) -> tuple[float, float]:
    found, worth = [], []
    for seed in SEEDS:
        world = World.planted(seed)
        active = list(choose(world))
        found.append(world.found(active))
        worth.append(world.worth(active))
    return statistics.mean(found), statistics.mean(worth)


def _fixed(name: str) -> Callable[[World], Iterable[str]]:
    def choose(world: World) -> Iterable[str]:
        try:
            return make_policy(name, world.space, seed=world.seed, cycles=1).final().active
        except BudgetError:
            return ()

    return choose


def _sea(faith: float, noise: float = NOISE, **settings) -> Callable[[World], Iterable[str]]:
    rules = dataclasses.replace(SeaSettings(), **settings)
    return lambda world: world.run(Sea(world.space, rules), faith, noise).allocations[-1].active


def _table(rates: dict[str, tuple[float, float]]) -> str:
    return "; ".join(
        f"{name}: {found:.2f} of the budget, {worth:.2f} of the Dice"
        for name, (found, worth) in rates.items()
    )


@pytest.mark.parametrize("faith", [0.0, 0.3, 0.7])
def test_the_engine_finds_the_planted_units_more_often_than_chance_and_uniform_choice(faith):
    """Measured over 30 worlds, share of the budget at useful sites (of the best Dice): random 0.15
    (0.20), cheapest first 0.15 (0.47), LoRA everywhere 0.17 (0.29), ConvAdapter everywhere 0.10
    (0.12), affine with LoRA r4 0.17 (0.41); sea 0.33 (0.66) when saliencies say nothing, 0.40
    (0.73) when they say a little, 0.50 (0.80) when they say much.
    """
    rates = {
        name: _rates(_fixed(name))
        for name in ("random", "cheapest", "lora", "conv_adapter", "affine_lora")
    }
    ours = _rates(_sea(faith))
    baselines = [max(column) for column in zip(*rates.values(), strict=True)]
    message = _table(rates | {"sea": ours})
    assert ours[0] > baselines[0] + 0.1, message
    assert ours[1] > baselines[1] + 0.05, message


def test_more_noise_finds_less_but_still_more_than_chance():
    quiet, loud, chance = (
        _rates(_sea(0.3, 0.001)),
        _rates(_sea(0.3, 0.01)),
        _rates(_fixed("random")),
    )
    message = _table({"quiet": quiet, "loud": loud, "random": chance})
    assert quiet[1] > loud[1] > chance[1] + 0.1, message


def test_audits_add_to_what_saliencies_say():
    """Against the same engine without audits. Measured over 30 worlds: 0.40 of the budget (0.73
    of the Dice) with, 0.25 (0.60) without.
    """
    told, not_told = _rates(_sea(0.3)), _rates(_sea(0.3, audit_units=0))
    assert told[1] > not_told[1] + 0.1, _table({"with audits": told, "without": not_told})
