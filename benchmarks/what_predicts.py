"""What should choose the units? Every way of valuing them chooses a set under the budget; the set
is trained from scratch and tested.

An audit is worth what the Dice after a refit of its choice shows, not how well it repeats itself.
Per target, seed and budget the candidates are the cheapest units (one level per site and family,
families side by side) that together cost twice the budget: nothing else is in question. Cost,
saliencies, and leave-one-out audits of several kinds (early or settled, soft or hard, per parameter
or not, trained jointly or in turn, on one case or two, step by step) each choose a half of them.
`python -m benchmarks what_predicts` writes one JSON per target and seed in
`results/what_predicts/`, runs only what is missing, and makes `results/what_predicts.md`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cell import machine
from benchmarks.scoring import mean_test_dice
from benchmarks.store import RESULTS
from sea_peft.adapters import Unit, total_cost
from sea_peft.data.crops import CropSampler
from sea_peft.data.prepare import Scan, prepare
from sea_peft.jobs.options import AdaptOptions
from sea_peft.jobs.setup import Setup, prepare_run
from sea_peft.loop.audit import HARD, SOFT, Auditor
from sea_peft.loop.policies import make_policy
from sea_peft.loop.space import Space
from sea_peft.loop.training import Trainer, warm_up, warm_up_cosine
from sea_peft.loop.trial import prior

Patches = tuple[torch.Tensor, torch.Tensor]
"""Images and labels."""

TARGETS = ("low-dose-ct", "mr-t1", "novel-organs")
SEEDS = (1, 2, 3)
SHARES = (0.001, 0.003, 0.01)
WARM_UP, EARLY, SETTLED, REFIT = 10, 20, 50, 40  # steps
PRUNE_STEPS = 10
PATCHES = 4
TEST_CASES = 5
FOLDER = RESULTS / "what_predicts"


def measure() -> Path:
    """Run what is missing and make the table."""
    FOLDER.mkdir(exist_ok=True)
    for seed in SEEDS:
        for target in TARGETS:
            path = FOLDER / f"{target}.seed-{seed}.json"
            if not path.exists():
                study = Study(target, seed)
                found = {"target": target, "seed": seed, "machine": machine(), "rows": study.rows()}
                path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
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

        first, *others = prepared((*self.setup.split.audit, *self.setup.split.support))
        self.all_shots = CropSampler([first, *others], self.setup.window, seed + 1)
        # the case that a run audits on, and the rest; then the same with another case held out
        self.held_out = self._held_out(first, others)
        self.held_out_next = self._held_out(others[0], [first, *others[1:]])
        self.tested: dict[frozenset[str], tuple[float, float]] = {}

    def rows(self) -> list[dict[str, Any]]:
        """One row per way of choosing and budget: Dice on test cases after training the choice
        from scratch, and its mean training loss.
        """
        rows = []
        for share in SHARES:
            limit = int(share * self.setup.backbone.pretrained.parameters)
            space = Space(self.setup.space.units, limit, self.setup.space.head)
            candidates = [space.by_id[u] for u in cheapest_twice(space)]
            sets = self._choices(candidates, space)
            sets["affine + LoRA r4, cheapest first"] = (
                make_policy("affine_lora", space, seed=self.seed, cycles=1).final().active
            )
            sets["random, mix of cheapest first"] = self._random(
                candidates, sets["cost: cheapest first"]
            )
            for by, chosen in sets.items():
                dice, loss = self._refitted(chosen)
                cost = total_cost(space.by_id[u] for u in chosen)
                rows.append(
                    {
                        "share": share,
                        "by": by,
                        "dice": dice,
                        "loss": loss,
                        "units": len(chosen),
                        "parameters": cost,
                    }
                )
        return rows

    def _choices(self, candidates: Sequence[Unit], space: Space) -> dict[str, Sequence[str]]:
        """What every way of valuing the candidates chooses of them, the most valued first."""
        ids, cost = [u.id for u in candidates], {u.id: u.cost for u in candidates}
        trainer = self._fresh()
        self._train(trainer, (), 0, WARM_UP)
        saliency = trainer.saliency(ids, self.held_out[0], 0, 4)
        self._train(trainer, ids, WARM_UP, EARLY)
        early = self._audit(ids, SOFT)
        self._train(trainer, ids, WARM_UP + EARLY, SETTLED - EARLY)
        soft, hard = self._audit(ids, SOFT), self._audit(ids, HARD)
        pruned = self._pruned(trainer, candidates, soft, space.capacity)
        family = {u.id: u.family for u in candidates}
        prior_of = prior(space.by_id, saliency, 0.5)
        size_of = {
            f: statistics.fmean(abs(soft[u]) for u in ids if family[u] == f)
            for f in family.values()
        }
        typical = statistics.median(abs(soft[u]) for u in ids)
        values: dict[str, Mapping[str, float]] = {
            "cost: cheapest first": dict.fromkeys(ids, 1.0),
            "saliency": saliency,
            "saliency within its family, half of it (`trial.prior`)": prior_of,
            "early soft ΔDice": early,
            "soft ΔDice": soft,
            "hard ΔDice": hard,
            "soft ΔDice within its family": {u: soft[u] / size_of[family[u]] for u in ids},
            "soft ΔDice, units trained in turn": self._in_turn(ids),
            "soft ΔDice, mean over two held-out cases": self._over_two_cases(ids, soft),
            "typical + √(typical · ΔDice)": {
                u: typical + (typical * max(0.0, soft[u])) ** 0.5 for u in ids
            },
            "typical · prior + √(typical · ΔDice) (`final_choice`)": {
                u: typical * prior_of[u] + (typical * max(0.0, soft[u])) ** 0.5 for u in ids
            },
        }
        chosen: dict[str, Sequence[str]] = {
            f"{name}, per parameter" if name != "cost: cheapest first" else name: _filled(
                candidates, {u: value[u] / cost[u] for u in ids}, space.capacity
            )
            for name, value in values.items()
        }
        chosen["soft ΔDice, whatever the cost"] = _filled(candidates, soft, space.capacity)
        chosen["soft ΔDice per parameter, pruned step by step"] = pruned
        chosen["saliency per parameter, grown in two steps"] = self._grown(
            candidates, {u: saliency[u] / cost[u] for u in ids}, space.capacity
        )
        return chosen

    def _in_turn(self, ids: Sequence[str]) -> dict[str, float]:
        """ΔDice of units that were trained and audited in two random halves, each beside
        nothing else.
        """
        order = np.random.default_rng(self.seed).permutation(len(ids))
        measured: dict[str, float] = {}
        for half in (order[::2], order[1::2]):
            opened = [ids[i] for i in sorted(half)]
            trainer = self._fresh()
            self._train(trainer, opened, 0, WARM_UP + SETTLED)
            measured |= self._audit(opened, SOFT)
        return measured

    def _over_two_cases(self, ids: Sequence[str], first: Mapping[str, float]) -> dict[str, float]:
        """`first` averaged with what another training says, which holds out the next case."""
        trainer = self._fresh()
        crops, patches = self.held_out_next
        trainer.train(
            ids, crops, 0, WARM_UP + SETTLED, lambda i: warm_up(i, 5), lambda step, loss: None
        )
        second = self._audit(ids, SOFT, patches)
        return {u: (first[u] + second[u]) / 2 for u in ids}

    def _grown(
        self, candidates: Sequence[Unit], density: Mapping[str, float], capacity: int
    ) -> list[str]:
        """Half of the budget by saliency, trained; the other half by what promises most beside
        it.
        """
        half = _filled(candidates, density, capacity // 2)
        trainer = self._fresh()
        self._train(trainer, half, 0, EARLY)
        rest = [u for u in candidates if u.id not in half]
        saliency = trainer.saliency([u.id for u in rest], self.held_out[0], 1, 4)
        left = capacity - total_cost(self.setup.space.by_id[u] for u in half)
        return half + _filled(rest, {u.id: saliency[u.id] / u.cost for u in rest}, left)

    def _pruned(
        self,
        trainer: Trainer,
        candidates: Sequence[Unit],
        first: Mapping[str, float],
        capacity: int,
    ) -> list[str]:
        """Drop the parameters that bring least Dice for their cost, a quarter of what is too much
        at first and then the rest by halves, and train on in between.
        """
        units = self.setup.space.by_id
        opened, measured, step = [u.id for u in candidates], first, WARM_UP + SETTLED
        while (cost := total_cost(units[u] for u in opened)) > capacity:
            target = capacity if cost < 1.3 * capacity else (cost + capacity) // 2
            density = {u: measured[u] / units[u].cost for u in opened}
            opened = _filled([units[u] for u in opened], density, target)
            self._train(trainer, opened, step, PRUNE_STEPS)
            step += PRUNE_STEPS
            measured = self._audit(opened, SOFT)
        return opened

    def _random(self, candidates: Sequence[Unit], like: Sequence[str]) -> list[str]:
        """A random set of candidates that spends on every family what `like` spends on it."""
        units = self.setup.space.by_id
        budget: dict[str, int] = defaultdict(int)
        for unit in like:
            budget[units[unit].family] += units[unit].cost
        chosen = []
        for i in np.random.default_rng(self.seed).permutation(len(candidates)):
            unit = candidates[i]
            if unit.cost <= budget[unit.family]:
                chosen.append(unit.id)
                budget[unit.family] -= unit.cost
        return chosen

    def _refitted(self, chosen: Sequence[str]) -> tuple[float, float]:
        key = frozenset(chosen)
        if key not in self.tested:
            trainer = self._fresh()
            schedule = functools.partial(warm_up_cosine, total=REFIT, over=REFIT // 10)
            loss = trainer.train(
                chosen, self.all_shots, 0, REFIT, schedule, lambda step, loss: None
            )
            self.tested[key] = mean_test_dice(self.setup, TEST_CASES), loss
        return self.tested[key]

    def _fresh(self) -> Trainer:
        self.model.bank.forget()
        self.model.head.load_state_dict(
            {name: torch.zeros_like(t) for name, t in self.model.head.state_dict().items()}
        )
        return Trainer(self.model, self.setup.settings.batch_size)

    def _held_out(self, case: Scan, others: Sequence[Scan]) -> tuple[CropSampler, Patches]:
        """Crops of the others to train on, and patches of the case to audit on."""
        window = self.setup.window
        return CropSampler(others, window, self.seed), CropSampler(
            [case], window, self.seed + 2
        ).fixed(PATCHES)

    def _train(self, trainer: Trainer, units: Sequence[str], first: int, count: int) -> None:
        trainer.train(
            units, self.held_out[0], first, count, lambda i: warm_up(i, 5), lambda step, loss: None
        )

    def _audit(
        self, units: Sequence[str], kind: str, patches: Patches | None = None
    ) -> dict[str, float]:
        """ΔDice of each of the open units."""
        images, labels = patches or self.held_out[1]
        result = Auditor(self.model, images, labels, batch=2, dice=kind).audit(
            dict.fromkeys(units, 0.0)
        )
        return {row.unit: row.delta for row in result.rows}


def cheapest_twice(space: Space) -> list[str]:
    """The cheapest units, one per (site, family, placement), that fit into twice the capacity."""
    twice = dataclasses.replace(space, limit=space.head + 2 * space.capacity)
    return list(make_policy("cheapest", twice, seed=0, cycles=1).final().active)


def _filled(units: Sequence[Unit], value: Mapping[str, float], capacity: int) -> list[str]:
    """In the order of value what still fits."""
    chosen, left = [], capacity
    for unit in sorted(units, key=lambda u: (-value[u.id], u.cost, u.id)):
        if unit.cost <= left:
            chosen.append(unit.id)
            left -= unit.cost
    return chosen


def _table() -> Path:
    studies = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))
    ]
    found: dict[tuple[str, float], dict[tuple[str, int], float]] = defaultdict(dict)
    for study in studies:
        for row in study["rows"]:
            found[row["by"], row["share"]][study["target"], study["seed"]] = row["dice"]
    names = sorted(
        {name for name, _ in found},
        key=lambda n: -statistics.mean(_mean(found[n, s]) for s in SHARES),
    )
    lines = [
        "# What should choose the units?",
        "",
        (
            f"Made by `python -m benchmarks what_predicts`: UNet, 5 shots, {len(studies)} pairs of"
            " target and seed, candidates of the default profile at one level per site and family,"
            f" twice the budget; every choice trained from scratch for {REFIT} steps; {TEST_CASES}"
            " test cases."
        ),
        (
            "Dice, and in brackets its paired difference to cheapest first, ± its standard error"
            " over the pairs (in the first column over pairs and budgets)."
        ),
        f"Machine: `{json.dumps(studies[0]['machine'], sort_keys=True)}`.",
        "",
        "| chosen by | all | " + " | ".join(f"{s:.1%}" for s in SHARES) + " |",
        "|---|---|" + "---|" * len(SHARES),
    ]
    lines += [
        f"| {name} | "
        + " | ".join(_cell(found, name, s) for s in (SHARES, *((s,) for s in SHARES)))
        + " |"
        for name in names
    ]
    path = RESULTS / "what_predicts.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _cell(
    found: Mapping[tuple[str, float], Mapping[tuple[str, int], float]],
    name: str,
    shares: Sequence[float],
) -> str:
    own = {(pair, s): dice for s in shares for pair, dice in found[name, s].items()}
    differences = [dice - found["cost: cheapest first", s][pair] for (pair, s), dice in own.items()]
    spread = (
        statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
    )
    return f"{_mean(own):.3f} ({statistics.mean(differences):+.3f} ± {spread:.3f})"


def _mean(values: Mapping[Any, float]) -> float:
    return statistics.mean(values.values())
