"""How much a better choice of units could bring at all.

`python -m benchmarks headroom` writes `results/headroom.md` from the rows of `rivals_unet`,
`targets_unet`, `augment_full_unet` and `targets_240_unet`; it trains nothing. It asks for what no
engine can have, the policy or the recipe that turns out best on a run's own test cases, and for
what more parameters bring.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.grid import read_grid
from benchmarks.scores import Results, interval, read_results
from benchmarks.store import RESULTS, Store

GRIDS = ("rivals_unet", "targets_unet")
RECIPES = {"full augmentation": "augment_full_unet", "twice the steps": "targets_240_unet"}
_OURS, _CHEAPEST = "sea", "cheapest"


def measure() -> Path:
    """The table."""
    rivals, targets = map(_results, GRIDS)
    recipes = {about: _results(name) for about, name in RECIPES.items()}
    path = RESULTS / "headroom.md"
    path.write_text(
        "\n".join([*_best(rivals, targets), "", *_more(rivals), "", *_recipes(targets, recipes)])
        + "\n",
        encoding="utf-8",
    )
    return path


def _results(name: str) -> Results:
    grid = read_grid(name)
    return read_results(grid, Store(grid.store))


def _best(rivals: Results, targets: Results) -> list[str]:
    policies = sorted({p for results in (rivals, targets) for p in results.grid.policies})
    lines = [
        "# What a better choice could bring",
        "",
        (
            "Made by `python -m benchmarks headroom` from the rows of `rivals_unet` (one seed) and,"
            " at 1%, `targets_unet` (three seeds): seven phantom targets, five shots."
        ),
        "",
        "## The best of all policies, by its test Dice",
        "",
        (
            f"For every run the highest *test* Dice of {', '.join(policies)}, as far as they were"
            f" run, less that of `{_OURS}` and of `{_CHEAPEST}`, in Dice points. No engine can"
            " choose by test cases; one that chose perfectly among these sets would gain this"
            " much. ±: 95% interval over runs."
        ),
        "",
        f"| budget | runs | the best less {_OURS} | at most | the best less {_CHEAPEST} |",
        "|---|---|---|---|---|",
    ]
    for budget in rivals.grid.budgets:
        results = targets if budget in targets.grid.budgets else rivals
        over: dict[str, list[float]] = {_OURS: [], _CHEAPEST: []}
        for dice in _runs(results, budget):
            for arm, gains in over.items():
                gains.append(100 * (max(dice.values()) - dice[arm]))
        most = f"{max(over[_OURS]):.1f}"
        lines.append(
            f"| {budget} | {len(over[_OURS])} | {_mean(over[_OURS])} | {most} |"
            f" {_mean(over[_CHEAPEST])} |"
        )
    return lines


def _runs(results: Results, budget: str) -> Iterable[dict[str, float]]:
    """Policy → test Dice, of every run under a budget."""
    for (_task, of), arms in results.tables.items():
        if of == budget:
            bound = {arm: arms[arm] for arm in results.grid.policies}
            for at in set.intersection(*(set(scores) for scores in bound.values())):
                yield {arm: scores[at].dice for arm, scores in bound.items()}


def _more(rivals: Results) -> list[str]:
    budgets = rivals.grid.budgets
    steps = list(itertools.pairwise(budgets))
    lines = [
        "## What more parameters bring",
        "",
        (
            "Dice points gained by the same policy under a larger budget: mean over the targets,"
            " one seed, ± 95% interval over targets."
        ),
        "",
        "| policy | " + " | ".join(f"{a} → {b}" for a, b in steps) + " |",
        "|---|" + "---|" * len(steps),
    ]
    for policy in rivals.grid.policies:
        gains = []
        for less, more in steps:
            gains.append(
                [
                    100 * (rivals.tables[task, more][policy][at].dice - score.dice)
                    for task in rivals.tasks
                    for at, score in rivals.tables[task, less][policy].items()
                ]
            )
        lines.append(f"| {policy} | " + " | ".join(_mean(each) for each in gains) + " |")
    return lines


def _recipes(targets: Results, recipes: Mapping[str, Results]) -> list[str]:
    """Cheapest first with each recipe, where all have run."""
    rows: dict[str, list[float]] = {}
    for key, arms in targets.tables.items():
        others = [results.tables.get(key, {}).get(_CHEAPEST, {}) for results in recipes.values()]
        for at, score in arms[_CHEAPEST].items():
            if all(at in scores for scores in others):
                rows[str(key[0])] = [score.dice, *(scores[at].dice for scores in others)]
    usual, *changed = zip(*rows.values(), strict=True)
    lines = [
        "## What a better recipe could bring",
        "",
        (
            f"`{_CHEAPEST}` at 1%, one seed: test Dice with the usual recipe (120 steps,"
            " augmentation of grey values alone), with the augmentation that real scans get, and"
            " with twice the steps. Last two rows: mean gain in Dice points, and that of whoever"
            " picked the better of it and the usual one for each target, by its test Dice; ± 95%"
            " interval over targets."
        ),
        "",
        "| target | as usual | " + " | ".join(recipes) + " |",
        "|---|---|" + "---|" * len(recipes),
        *(
            f"| {task} | " + " | ".join(f"{v:.3f}" for v in dice) + " |"
            for task, dice in rows.items()
        ),
    ]
    gains = [[100 * (a - b) for a, b in zip(each, usual, strict=True)] for each in changed]
    lines.append("| gain | | " + " | ".join(map(_mean, gains)) + " |")
    picked = [[max(0.0, gain) for gain in each] for each in gains]
    lines.append("| gain of the better of both | | " + " | ".join(map(_mean, picked)) + " |")
    return lines


def _mean(points: Sequence[float]) -> str:
    half = interval(points)
    return f"{statistics.fmean(points):+.1f}" + ("" if half is None else f" ± {half:.1f}")
