"""What should choose the units? Every way of valuing them chooses a set under the budget; the set is trained from scratch and tested.

An audit is worth what the Dice after a refit of its choice shows, not how well it repeats itself. Per target and seed one state is
measured: all candidates (one level per site and family) trained jointly, far over budget, by which promises, early and settled
leave-one-out audits and a step-by-step pruning are told apart. `python -m benchmarks what_predicts` writes one JSON per target and
seed in `results/what_predicts/`, runs only what is missing, and makes `results/what_predicts.md`.
"""

from __future__ import annotations

import functools
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cell import machine
from benchmarks.store import RESULTS
from sea_peft.adapters import Unit, total_cost
from sea_peft.data.crops import CropSampler
from sea_peft.data.prepare import Scan, prepare, restore
from sea_peft.jobs.inference import dice_per_label, mean_dice, probabilities
from sea_peft.jobs.setup import AdaptOptions, Setup, prepare_run
from sea_peft.loop.audit import HARD, SOFT, Auditor
from sea_peft.loop.policies import Space, fixed_policy
from sea_peft.loop.sea import Sea, SeaSettings
from sea_peft.loop.training import Trainer, warm_up, warm_up_cosine

TARGETS = ("low-dose-ct", "mr-t1", "novel-organs")
SEEDS = (1, 2, 3)
SHARES = (0.001, 0.003, 0.01)
WARM_UP, EARLY, SETTLED, REFIT = 10, 30, 90, 60  # steps
PRUNE_STEPS = 15
PATCHES = 6
TEST_CASES = 10
FOLDER = RESULTS / "what_predicts"


def measure() -> Path:
    """Run what is missing and make the table."""
    FOLDER.mkdir(exist_ok=True)
    for seed in SEEDS:
        for target in TARGETS:
            path = FOLDER / f"{target}.seed-{seed}.json"
            if not path.exists():
                rows = Study(target, seed).rows()
                path.write_text(
                    json.dumps({"target": target, "seed": seed, "machine": machine(), "rows": rows}, indent=1) + "\n",
                    encoding="utf-8",
                )
                print(path.name, flush=True)
    return _table()


class Study:
    """One target and one seed."""

    def __init__(self, target: str, seed: int) -> None:
        options = AdaptOptions(data=f"phantom:{target}", backbone="unet", budget="1%", seed=seed)
        self.setup: Setup = prepare_run(options, lambda sentence: None)
        self.model, self.seed = self.setup.model, seed
        channels, labels = self.setup.dataset.channels, self.setup.dataset.labels

        def prepared(cases: Any) -> list[Scan]:
            return [prepare(case, self.setup.recipe, channels, labels) for case in cases]

        support, audit = prepared(self.setup.split.support), prepared(self.setup.split.audit)
        self.search = CropSampler(support, self.setup.settings.patch, seed)
        self.all_shots = CropSampler([*support, *audit], self.setup.settings.patch, seed + 1)
        self.patches = CropSampler(audit, self.setup.settings.patch, seed + 2).fixed(PATCHES)
        units = self.setup.space.by_id
        starting = Sea(self.setup.space, SeaSettings()).to_promise(0)
        self.candidates = [units[u] for u in starting]
        self.tested: dict[frozenset[str], tuple[float, float]] = {}

    def rows(self) -> list[dict[str, Any]]:
        """One row per way of choosing and budget: Dice on test cases after training the choice from scratch, and its mean training loss."""
        values, pruned = self._measured()
        rows = []
        for share in SHARES:
            space = Space(
                self.setup.space.units,
                int(share * self.setup.backbone.pretrained.parameters),
                self.setup.space.head,
            )
            sets: dict[str, Sequence[str]] = {
                name: _filled(self.candidates, value, space.capacity) for name, value in values.items()
            }
            sets["pruned step by step"] = pruned[share]
            sets["affine + LoRA r4, cheapest first"] = fixed_policy("affine_lora", space, self.seed).final().active
            for draw in (1, 2):
                sets[f"random, mix of promise, draw {draw}"] = self._random(
                    sets["promise per parameter"], space.capacity, draw
                )
            for name, chosen in sets.items():
                dice, loss = self._refitted(chosen)
                rows.append(
                    {
                        "share": share,
                        "by": name,
                        "dice": dice,
                        "loss": loss,
                        "units": len(chosen),
                        "parameters": total_cost(space.by_id[u] for u in chosen),
                    }
                )
        return rows

    def _measured(self) -> tuple[dict[str, Mapping[str, float]], dict[float, list[str]]]:
        """What every way of valuing says of the candidates (higher goes first), and the sets that pruning step by step leaves."""
        ids, cost = [u.id for u in self.candidates], {u.id: u.cost for u in self.candidates}
        trainer = self._fresh()
        self._train(trainer, (), 0, WARM_UP)
        promise = trainer.promise(ids, self.search, 0, 4)
        self._train(trainer, ids, WARM_UP, EARLY)
        early = self._audit(ids, SOFT)
        self._train(trainer, ids, WARM_UP + EARLY, SETTLED - EARLY)
        soft, hard = self._audit(ids, SOFT), self._audit(ids, HARD)
        values = {
            "cost, cheapest first": {u: -cost[u] for u in ids},
            "promise per parameter": {u: promise[u] / cost[u] for u in ids},
            "early soft ΔDice per parameter": {u: early[u] / cost[u] for u in ids},
            "soft ΔDice per parameter": {u: soft[u] / cost[u] for u in ids},
            "soft ΔDice": soft,
            "hard ΔDice per parameter": {u: hard[u] / cost[u] for u in ids},
        }
        return values, self._pruned(trainer, soft)

    def _pruned(self, trainer: Trainer, first: Mapping[str, float]) -> dict[float, list[str]]:
        """Drop the third of the parameters that brings least Dice for its cost, train on, audit again, until each budget is met."""
        units = self.setup.space.by_id
        opened, delta, step = list(first), dict(first), WARM_UP + SETTLED
        left: dict[float, list[str]] = {}
        for share in sorted(SHARES, reverse=True):
            capacity = int(share * self.setup.backbone.pretrained.parameters) - self.setup.space.head
            while total_cost(units[u] for u in opened) > capacity:
                target = max(capacity, total_cost(units[u] for u in opened) * 2 // 3)
                density = {u: delta[u] / units[u].cost for u in opened}
                opened = _filled([units[u] for u in opened], density, target)
                self._train(trainer, opened, step, PRUNE_STEPS)
                step += PRUNE_STEPS
                delta = self._audit(opened, SOFT)
            left[share] = list(opened)
        return left

    def _random(self, like: Sequence[str], capacity: int, draw: int) -> list[str]:
        """A random set of candidates that spends on every family what `like` spends on it."""
        units = self.setup.space.by_id
        budget: dict[str, int] = defaultdict(int)
        for unit in like:
            budget[units[unit].family] += units[unit].cost
        chosen = []
        for i in np.random.default_rng([self.seed, draw]).permutation(len(self.candidates)):
            unit = self.candidates[i]
            if unit.cost <= budget[unit.family]:
                chosen.append(unit.id)
                budget[unit.family] -= unit.cost
        assert total_cost(units[u] for u in chosen) <= capacity
        return chosen

    def _refitted(self, chosen: Sequence[str]) -> tuple[float, float]:
        key = frozenset(chosen)
        if key not in self.tested:
            trainer = self._fresh()
            schedule = functools.partial(warm_up_cosine, total=REFIT, over=REFIT // 10)
            loss = trainer.train(chosen, self.all_shots, 0, REFIT, schedule, lambda step, loss: None)
            self.tested[key] = self._dice(), loss
        return self.tested[key]

    def _dice(self) -> float:
        setup, step = self.setup, self.setup.backbone.pretrained.limits.step
        per_case = {}
        for case in setup.split.test[:TEST_CASES]:
            scan = prepare(case, setup.recipe, setup.dataset.channels)
            output = probabilities(self.model, scan, setup.settings.patch, step, torch.device("cpu"))[0]
            stored = case.label()
            assert stored is not None
            per_case[case.id] = dice_per_label(restore(output, scan.geometry), stored.array, setup.dataset.labels)
        return mean_dice(per_case, tuple(setup.dataset.labels))[0]

    def _fresh(self) -> Trainer:
        self.model.bank.forget()
        self.model.head.load_state_dict({name: torch.zeros_like(t) for name, t in self.model.head.state_dict().items()})
        return Trainer(self.model, self.setup.settings.batch_size)

    def _train(self, trainer: Trainer, units: Sequence[str], first: int, count: int) -> None:
        trainer.train(units, self.search, first, count, lambda i: warm_up(i, 5), lambda step, loss: None)

    def _audit(self, units: Sequence[str], kind: str) -> dict[str, float]:
        result = Auditor(self.model, *self.patches, batch=2, dice=kind).audit(dict.fromkeys(units, 0.0))
        return {row.unit: row.delta for row in result.rows}


def _filled(units: Sequence[Unit], value: Mapping[str, float], capacity: int) -> list[str]:
    """In the order of value what still fits."""
    chosen, left = [], capacity
    for unit in sorted(units, key=lambda u: (-value[u.id], u.cost, u.id)):
        if unit.cost <= left:
            chosen.append(unit.id)
            left -= unit.cost
    return chosen


def _table() -> Path:
    studies = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))]
    found: dict[tuple[str, float], dict[tuple[str, int], float]] = defaultdict(dict)
    for study in studies:
        for row in study["rows"]:
            name = row["by"].partition(", draw")[0]
            before = found[name, row["share"]].get((study["target"], study["seed"]))
            both = row["dice"] if before is None else (before + row["dice"]) / 2
            found[name, row["share"]][study["target"], study["seed"]] = both
    names = sorted({name for name, _ in found}, key=lambda n: -statistics.mean(_mean(found[n, s]) for s in SHARES))
    lines = [
        "# What should choose the units?",
        "",
        f"Made by `python -m benchmarks what_predicts`: UNet, 5 shots, {len(studies)} pairs of target and seed, candidates of the default "
        f"profile at one level per site and family; every choice trained from scratch for {REFIT} steps; {TEST_CASES} test cases.",
        "Dice, and in brackets its paired difference to promise per parameter, ± its standard error over the pairs.",
        f"Machine: `{json.dumps(studies[0]['machine'], sort_keys=True)}`.",
        "",
        "| chosen by | " + " | ".join(f"{s:.1%}" for s in SHARES) + " |",
        "|---|" + "---|" * len(SHARES),
    ]
    shown: Callable[[str, float], str] = functools.partial(_cell, found)
    lines += [f"| {name} | " + " | ".join(shown(name, s) for s in SHARES) + " |" for name in names]
    path = RESULTS / "what_predicts.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _cell(found: Mapping[tuple[str, float], Mapping[tuple[str, int], float]], name: str, share: float) -> str:
    own, reference = found[name, share], found["promise per parameter", share]
    differences = [own[pair] - reference[pair] for pair in own]
    spread = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
    return f"{_mean(own):.3f} ({statistics.mean(differences):+.3f} ± {spread:.3f})"


def _mean(values: Mapping[Any, float]) -> float:
    return statistics.mean(values.values())
