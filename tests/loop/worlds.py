"""Audit spaces without networks, and the loop's half of the conversation with a policy: for
tests of what decides.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Sequence

import pytest

from sea_peft.adapters import Unit, total_cost
from sea_peft.backbones import Site
from sea_peft.loop.policy import Allocation, Policy
from sea_peft.loop.rows import Ablation, Ranking
from sea_peft.loop.space import Space

STAGES = ("encoder", "bottleneck", "decoder")


def space(
    sites: int = 12,
    levels: Sequence[int] = (1, 2, 4, 8),
    share: float = 0.1,
    head: int = 50,
    seed: int = 0,
) -> Space:
    """Per site a norm (affine), a convolution (LoRA at every level) and, at every third, a block
    (ConvAdapter, both placements).

    Channels double and halve along the network, as costs do. `share`: the budget, of the cost of
    everything.
    """
    rng = random.Random(seed)
    units: list[Unit] = []
    for i in range(sites):
        channels = 8 * 2 ** min(i * 6 // sites, 6 - i * 6 // sites) * rng.choice((1, 1, 2))
        stage = STAGES[i * 3 // sites]

        def at(name: str, kind: str, order: int, c: int = channels, s: str = stage) -> Site:
            return Site(
                path=name,
                kind=kind,
                in_channels=c,
                out_channels=c,
                stride=(1.0, 1.0, 1.0),
                stage=s,
                order=order,
            )

        units.append(
            Unit(
                family="affine",
                level=0,
                placement="",
                site=at(f"norm{i}", "norm", 3 * i),
                cost=2 * channels,
            )
        )
        conv = at(f"conv{i}", "conv", 3 * i + 1)
        units += [
            Unit(family="lora", level=level, placement="", site=conv, cost=level * 28 * channels)
            for level in levels
        ]
        if i % 3 == 0:
            block = at(f"block{i}", "block", 3 * i + 2)
            units += [
                Unit(
                    family="conv_adapter",
                    level=level,
                    placement=placement,
                    site=block,
                    cost=28 * channels + channels**2 // level,
                )
                for placement in ("parallel", "sequential")
                for level in (4, 16)
            ]
    return Space(tuple(units), head + int(share * total_cost(units)), head)


def check_allocation(allocation: Allocation, space: Space) -> None:
    """What must hold of any allocation at any moment."""
    units = space.by_id
    opened = [units[u] for u in allocation.open]
    assert len(set(allocation.open)) == len(opened), "a unit is active and a probe at once"
    assert space.head + total_cost(opened) <= space.limit, "over budget"
    assert len({u.group for u in opened}) == len(opened), "two units of one (site, family) are open"
    decided = {d.unit: d for d in allocation.decisions}
    assert all(d.reason for d in allocation.decisions), "a decision without a reason"
    assert set(allocation.open) <= set(decided), "an open unit without a decision"
    assert all(decided[u].decision in ("keep", "add") for u in allocation.active)
    assert all(decided[u].decision == "probe" for u in allocation.probes)
    if allocation.items:
        chosen = {item.id: item.value for item in allocation.items}
        assert sum(chosen[u] for u in allocation.active) == pytest.approx(allocation.value)


Measure = Callable[[str, Sequence[str]], tuple[float, float]]


@dataclasses.dataclass
class Conversation:
    """What was asked and answered, as JSON types: enough to replay the policy."""

    saliencies: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)
    audits: dict[int, list[Ablation]] = dataclasses.field(default_factory=dict)
    allocations: list[Allocation] = dataclasses.field(default_factory=list)
    ranked: list[list[Ranking]] = dataclasses.field(default_factory=list)

    @property
    def coverage(self) -> list[int]:
        """Units measured so far, after every audit."""
        seen: set[str] = set()
        counts = []
        for rows in self.audits.values():
            seen |= {row.unit for row in rows}
            counts.append(len(seen))
        return counts


def converse(
    policy: Policy, space: Space, cycles: int, saliency: Callable[[str], float], measure: Measure
) -> Conversation:
    """The loop's half: saliencies, allocations and audits in the controller's order.
    `measure(unit, open units)` → (ΔDice, standard error).
    """
    said = Conversation()
    for cycle in range(cycles):
        wanted = policy.needs_saliency(cycle)
        if wanted:
            said.saliencies[cycle] = {unit: saliency(unit) for unit in wanted}
            policy.told_saliency(cycle, said.saliencies[cycle])
        allocation = policy.allocate(cycle)
        check_allocation(allocation, space)
        said.allocations.append(allocation)
        audited = policy.to_audit(cycle)
        assert set(audited) <= set(allocation.open), "only open units can be ablated"
        rows = []
        for unit in audited:
            delta, standard_error = measure(unit, allocation.open)
            rows.append(heard(unit, delta, standard_error))
        said.audits[cycle] = rows
        said.ranked.append(policy.audited(cycle, rows))
    said.allocations.append(policy.final())
    check_allocation(said.allocations[-1], space)
    return said


def replay(policy: Policy, said: Conversation, cycles: int) -> list[Allocation]:
    """The allocations that a fresh policy makes of a recorded conversation, read back from JSON."""
    saliencies = json.loads(json.dumps(said.saliencies))
    audits = json.loads(
        json.dumps(
            {cycle: [dataclasses.asdict(r) for r in rows] for cycle, rows in said.audits.items()}
        )
    )
    allocations = []
    for cycle in range(cycles):
        if str(cycle) in saliencies:
            policy.told_saliency(cycle, saliencies[str(cycle)])
        allocations.append(policy.allocate(cycle))
        policy.audited(cycle, [Ablation(**row) for row in audits[str(cycle)]])
    return [*allocations, policy.final()]


def heard(unit: str, delta: float, standard_error: float) -> Ablation:
    """What an audit of four patches says of a unit."""
    return Ablation(
        unit=unit, delta=delta, standard_error=standard_error, patches=4, deltas=(delta,) * 4
    )


def noisy(seed: int, scale: float = 0.01) -> Measure:
    """Audits that say nothing: noise alone."""
    rng = random.Random(seed)
    return lambda _unit, _open: (rng.gauss(0, scale), abs(rng.gauss(0, scale / 2)))


def constant(value: float) -> Measure:
    """Audits that say the same of every unit."""
    return lambda _unit, _open: (value, 0.0)
