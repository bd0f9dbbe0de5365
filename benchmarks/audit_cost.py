"""What audits and allocations cost: ratios in one process of CPU time, with the same numbers out,
and how each cost grows.

`python -m benchmarks audit_cost` writes `results/audit_cost.json` and `.md`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.cell import machine
from benchmarks.store import RESULTS
from sea_peft.adapters import Adapted, Offer, Unit, units_for
from sea_peft.adapters.liveness import acting
from sea_peft.backbones import Site, architecture, find_sites
from sea_peft.data.crops import CropSampler
from sea_peft.data.prepare import prepare
from sea_peft.jobs.options import AdaptOptions
from sea_peft.jobs.setup import Setup, prepare_run
from sea_peft.loop import events, knapsack
from sea_peft.loop.audit import Auditor
from sea_peft.loop.controller import Controller
from sea_peft.loop.knapsack import Item
from sea_peft.loop.policies.sea import Sea, SeaSettings
from sea_peft.loop.rows import Ablation
from sea_peft.loop.settings import Shots
from sea_peft.loop.space import Space
from sea_peft.loop.utility import is_decided

ROUNDS = 2
# ablated per stage, evenly over its open units: what a forward saves depends on where the unit lies
UNITS = 8
SEARCHES = {  # backbone → targets whose audits are recorded in full
    "unet": ("low-dose-ct", "mr-t1", "novel-organs", "paediatric-ct"),
    "segresnet": ("low-dose-ct",),
}
LOOK = 2  # patches between looks, as the controller has it


def measure() -> Path:
    """All of it. Writes JSON and Markdown."""
    found = {
        "machine": machine(),
        "reuse": [*_reuse_of_bundled("segresnet"), *_reuse_of_bundled("unet"), *_reuse_of_swin()],
        "effort": [_effort(backbone, targets) for backbone, targets in SEARCHES.items()],
        "growth": _growth(),
    }
    path = RESULTS / "audit_cost.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(_markdown(found), encoding="utf-8")
    return path


# -- reuse of blocks -------------------------------------------------------------------------------


def _reuse_of_bundled(backbone: str) -> list[dict[str, Any]]:
    """What the default profile opens first, trained a few steps, on the default target's audit
    case.
    """
    setup = prepare_run(AdaptOptions(backbone=backbone, budget="1%"), lambda sentence: None)
    images, labels = CropSampler([_shots(setup).audit[0]], setup.window, 0).fixed(4)
    policy = setup.fresh_policy()
    policy.told_saliency(0, dict.fromkeys(policy.needs_saliency(0), 1.0))
    return _reuse(backbone, setup.model, policy.allocate(0).open, images, labels)


def _reuse_of_swin() -> list[dict[str, Any]]:
    """SwinUNETR with 12 features and random weights: no real ones can be had offline, and time
    does not depend on them.
    """
    network = (
        architecture("swinunetr")
        .build(in_channels=1, out_channels=3, feature_size=12)
        .eval()
        .requires_grad_(False)
    )
    example = torch.randn(1, 1, 64, 64, 64, generator=torch.Generator().manual_seed(0))
    sites = find_sites(network, example)
    units = acting(
        network, units_for(network, sites, {"lora": Offer(levels=(4,)), "affine": Offer()}), example
    )
    model = Adapted(network, sites, units, [1, 2], 3, example)
    labels = torch.randint(0, 3, (1, 64, 64, 64), generator=torch.Generator().manual_seed(1))
    return _reuse("swinunetr", model, [u.id for u in units], example, labels, by_stage=False)


def _reuse(
    name: str,
    model: Adapted,
    opened: Sequence[str],
    images: torch.Tensor,
    labels: torch.Tensor,
    by_stage: bool = True,
) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    with (
        torch.no_grad()
    ):  # trained or not makes no difference to time, but the identity would make equality easy
        for parameter in model.bank.parameters(opened):
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    model.bank.activate(opened)
    stages: dict[str, list[str]] = {"all": list(opened)}
    for unit in opened if by_stage else ():
        stages.setdefault(model.bank.units[unit].site.stage, []).append(unit)
    rows = []
    for stage, of_stage in stages.items():
        ids = dict.fromkeys(of_stage[:: -(-len(of_stage) // UNITS)], 0.0)
        ratios = []
        for _ in range(ROUNDS):
            took, results = {}, {}
            for reuse in (True, False):
                auditor = Auditor(model, images, labels, batch=LOOK, reuse=reuse)
                took[reuse], results[reuse] = _timed(functools.partial(auditor.audit, ids))
            if results[True] != results[False]:
                raise AssertionError(f"reuse changed an audit of {name}, {stage}")
            ratios.append(took[False] / took[True])
        rows.append(
            {
                "backbone": name,
                "units": stage,
                "count": len(ids),
                "ratio_median": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
            }
        )
    return rows


# -- effort where the decision is open -------------------------------------------------------------


def _effort(backbone: str, targets: Sequence[str]) -> dict[str, Any]:
    """Searches with every unit that `sea` audits measured on every patch; the same measurements cut
    off where `is_decided` would have stopped. Counts patch forwards, votes that differ and
    allocations that differ.
    """
    counts: dict[str, int] = defaultdict(int)
    for target in targets:
        options = AdaptOptions(data=f"phantom:{target}", backbone=backbone, budget="1%", seed=1)
        setup = prepare_run(options, lambda sentence: None)
        said: list[events.Event] = []
        everything = dataclasses.replace(setup.settings, audit_error=0.0)
        Controller(
            setup.model,
            setup.space,
            setup.fresh_policy(),
            _shots(setup),
            everything,
            1,
            said.append,
        ).search()
        policy = setup.fresh_policy()
        opened = 0
        for event in said:
            if isinstance(event, events.SaliencyMeasured):
                policy.told_saliency(event.cycle, event.saliency)
            elif isinstance(event, events.Allocated) and not event.final:
                policy.allocate(event.cycle)
                opened = len(event.active) + len(event.probes)
            elif isinstance(event, events.Audited):
                cutoffs = policy.to_audit(event.cycle)
                cut = [
                    _cut(row, cutoffs[row.unit], setup.settings.audit_error) for row in event.rows
                ]
                there = event.naive_patches // (1 + len(setup.space.units))
                counts["all_open"] += there * (1 + opened)
                counts["audited"] += there * (1 + len(event.rows))
                counts["until_decided"] += there + sum(len(row.deltas) for row in cut)
                hysteresis = setup.policy.settings.ranking.hysteresis
                for whole, part in zip(event.rows, cut, strict=True):
                    counts["votes"] += 1
                    counts["votes_equal"] += _vote(whole.delta, hysteresis) == _vote(
                        part.delta, hysteresis
                    )
                spared = copy.deepcopy(policy)
                policy.audited(event.cycle, event.rows)
                spared.audited(event.cycle, cut)
                for next_of in (
                    lambda p, c=event.cycle: copy.deepcopy(p).allocate(c + 1),
                    lambda p: p.final(),
                ):
                    counts["allocations"] += 1
                    counts["allocations_equal"] += set(next_of(policy).open) == set(
                        next_of(spared).open
                    )
    return {
        "backbone": backbone,
        "searches": len(targets),
        "audit_error": setup.settings.audit_error,
        **counts,
    }


def _cut(row: Ablation, cutoff: float, error: float) -> Ablation:
    """The row as it would be had its audit stopped when the unit was decided."""
    deltas = row.deltas
    looks = max(1, -(-len(deltas) // LOOK) - 1)
    seen = next(
        (
            n
            for n in range(LOOK, len(deltas), LOOK)
            if is_decided(deltas[:n], cutoff, error / looks)
        ),
        len(deltas),
    )
    kept = deltas[:seen]
    standard_error = statistics.stdev(kept) / len(kept) ** 0.5 if len(kept) > 1 else None
    return dataclasses.replace(
        row,
        deltas=kept,
        delta=statistics.fmean(kept),
        standard_error=standard_error,
        patches=len(kept),
    )


def _vote(delta: float, hysteresis: float) -> int:
    return (delta > hysteresis) - (delta < -hysteresis)


# -- growth ----------------------------------------------------------------------------------------


def _growth() -> dict[str, Any]:
    """Seconds of one allocation and of the final choice by number of units, and of an audit by
    patches and by edge of the patch.
    """
    allocations = []
    for count in (10, 100, 1000, 10_000):
        space = _space(count)
        policy = Sea(space, SeaSettings(audit_units=count))
        policy.told_saliency(0, {u: 1.0 + i % 7 for i, u in enumerate(policy.needs_saliency(0))})
        first, _ = _timed(functools.partial(policy.allocate, 0))
        for cycle in range(2):
            rows = [
                Ablation(
                    unit=u,
                    delta=0.01 - 0.001 * (i % 13),
                    standard_error=0.001,
                    patches=1,
                    deltas=(0.01,),
                )
                for i, u in enumerate(policy.to_audit(cycle))
            ]
            policy.audited(cycle, rows)
        later, _ = _timed(functools.partial(policy.allocate, 1))
        final, _ = _timed(policy.final)
        items = [
            Item(u.id, u.group, u.cost, (1.0 + i % 997) * u.cost**0.5)
            for i, u in enumerate(space.units)
        ]
        greedy, _ = _timed(functools.partial(knapsack.greedy, items, space.capacity))
        row = {"units": count, "greedy": greedy, "first": first, "later": later, "final": final}
        allocations.append(row)
    setup = prepare_run(AdaptOptions(backbone="unet", budget="1%"), lambda sentence: None)
    opened = [u.id for u in setup.space.units if u.family == "affine"]
    setup.model.bank.activate(opened)
    audits = []
    for patches, edge in ((1, 32), (2, 32), (4, 32), (8, 32), (4, 48), (4, 64)):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(patches, 1, edge, edge, edge, generator=generator)
        labels = torch.randint(0, 3, (patches, edge, edge, edge), generator=generator)
        auditor = Auditor(setup.model, images, labels, batch=LOOK)
        seconds, _ = _timed(functools.partial(auditor.audit, dict.fromkeys(opened[:8], 0.0)))
        audits.append({"units": 8, "patches": patches, "edge": edge, "seconds": seconds})
    return {"allocations": allocations, "audits": audits}


def _space(count: int) -> Space:
    """That many units: four LoRA levels at every site, a tenth of their cost as budget."""
    units = [
        Unit(
            family="lora",
            level=level,
            placement="",
            site=Site(
                path=f"site{i}",
                kind="conv",
                in_channels=16,
                out_channels=16,
                stride=(1.0, 1.0, 1.0),
                stage="encoder",
                order=i,
            ),
            cost=level * 28 * (16 + i % 5),
        )
        for i in range(-(-count // 4))
        for level in (1, 2, 4, 8)
    ][:count]
    return Space(tuple(units), sum(u.cost for u in units) // 10, 0)


# -- what they share -------------------------------------------------------------------------------


def _shots(setup: Setup) -> Shots:
    def prepared(cases: Any) -> tuple[Any, ...]:
        return tuple(
            prepare(c, setup.recipe, setup.dataset.channels, setup.dataset.labels) for c in cases
        )

    return Shots.of(prepared(setup.split.support), prepared(setup.split.audit))


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, which other programs on the machine do not lengthen much,
    and what came out.
    """
    began = time.process_time()
    done = work()
    return time.process_time() - began, done


def _markdown(found: dict[str, Any]) -> str:
    effort = {e["backbone"]: e for e in found["effort"]}
    allocations, same = (
        sum(e[key] for e in effort.values()) for key in ("allocations", "allocations_equal")
    )
    together = [
        (r["backbone"], e["until_decided"] / e["all_open"] / r["ratio_median"], e["backbone"])
        for r in found["reuse"]
        if r["units"] == "all"
        for e in (effort.get(r["backbone"], effort["segresnet"]),)
    ]
    return "\n".join(
        [
            "# Cost of audits and allocations",
            "",
            (
                "Made by `python -m benchmarks audit_cost`. CPU time, in one process. Machine:"
                f" `{json.dumps(found['machine'], sort_keys=True)}`."
            ),
            "",
            "## Reuse of what a toggled unit cannot have changed",
            "",
            (
                "Time of an audit without over with reuse, in turn; the two give the same numbers"
                " bit for bit (checked in the run)."
            ),
            "",
            "| backbone | units toggled | count | without / with reuse: median (min–max) |",
            "|---|---|---|---|",
            *(
                f"| {r['backbone']} | {r['units']} | {r['count']} | {r['ratio_median']:.2f}"
                f" ({r['ratio_min']:.2f}–{r['ratio_max']:.2f}) |"
                for r in found["reuse"]
            ),
            "",
            "## Effort where the decision is open",
            "",
            (
                "Searches at 1%, every audit recorded in full and then cut off where it would have"
                f" stopped, with {found['effort'][0]['audit_error']} as the probability of stopping"
                " on the wrong side. Patch forwards:"
            ),
            "",
            (
                "| backbone | searches | every open unit, every patch | units whose audit decides"
                " something | until decided | of all | votes as in full | next and final sets as in"
                " full |"
            ),
            "|---|---|---|---|---|---|---|---|",
            *(
                f"| {e['backbone']} | {e['searches']} | {e['all_open']:,} | {e['audited']:,} |"
                f" {e['until_decided']:,} | {e['until_decided'] / e['all_open']:.0%} |"
                f" {e['votes_equal']} of {e['votes']} | {e['allocations_equal']} of"
                f" {e['allocations']} |"
                for e in effort.values()
            ),
            "",
            f"Sets as in full, in all: {same} of {allocations} ({same / allocations:.0%}).",
            "Together with reuse, in the time of a naive audit of every open unit on every patch: "
            + ", ".join(
                f"{name} {share:.0%}" + f" (effort as on the {source})" * (name != source)
                for name, share, source in together
            )
            + ".",
            "",
            "## Growth",
            "",
            (
                "The greedy knapsack alone over as many items; then whole allocations with"
                " everything audited, which also solve it exactly to say how far greedy stays"
                " behind, and give every unit its reason."
            ),
            "",
            (
                "| units on offer | greedy knapsack, s | first allocation, s | later allocation, s"
                " | final choice, s |"
            ),
            "|---|---|---|---|---|",
            *(
                f"| {r['units']:,} | {r['greedy']:.3f} | {r['first']:.3f} | {r['later']:.3f} |"
                f" {r['final']:.3f} |"
                for r in found["growth"]["allocations"]
            ),
            "",
            "| audit of 8 units: patches | edge of a patch, voxels | s |",
            "|---|---|---|",
            *(
                f"| {r['patches']} | {r['edge']} | {r['seconds']:.2f} |"
                for r in found["growth"]["audits"]
            ),
            "",
        ]
    )
