"""Dice against parameters: the score of the thesis "PEFT of CNN-based 3D CT segmentation
models" and the front.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks import plots
from benchmarks.grid import read_grid
from benchmarks.plots import Point
from benchmarks.scores import HEAD_ONLY, UNADAPTED, Results, Score, Task, read_results
from benchmarks.store import RESULTS, Store


def points(results: Results, weight: float = 0.5) -> tuple[list[Point], int, int]:
    """Every arm that was trained, cheapest first, scored by eq. 4.1 of the thesis: w·D + (1 − w)·(1
    − P), Dice D and parameters P min-max normalised over these arms, w = 0.5.

    Only arms that have every budget's runs somewhere count, over the (task, replicate) in which all
    of them are there: a mean over other runs would compare other things. Returns the points, how
    many such comparisons there are, and out of how many.
    """
    arms: dict[tuple[str, str | None], dict[tuple[Task, object], Score]] = {}
    for (task, budget), table in results.tables.items():
        for arm, by_replicate in table.items():
            if arm not in (UNADAPTED, HEAD_ONLY):
                bound = None if arm in results.grid.unbound else budget
                arms.setdefault((arm, bound), {}).update(
                    {(task, at): score for at, score in by_replicate.items()}
                )
    everywhere = set.union(*(set(a) for a in arms.values())) if arms else set()
    whole = sorted(
        (at for at in everywhere if all(at in scores for scores in arms.values())), key=str
    )
    if not whole:
        return [], 0, len(everywhere)
    means = {
        key: (
            statistics.fmean(row["parameters"]["used"] for at in whole for row in scores[at].rows),
            statistics.fmean(scores[at].dice for at in whole),
        )
        for key, scores in arms.items()
    }
    costs, dice = zip(*means.values(), strict=True)
    made, best = [], float("-inf")
    for (arm, bound_by), (cost, d) in sorted(
        means.items(), key=lambda item: (item[1][0], -item[1][1])
    ):
        score = weight * _normal(d, dice) + (1 - weight) * (1 - _normal(cost, costs))
        made.append(Point(arm, bound_by, cost, d, score, front=d > best))
        best = max(best, d)
    return made, len(whole), len(everywhere)


def write(name: str, root: Path = RESULTS) -> list[Path]:
    """`results/<grid>.pareto.md` and its picture."""
    grid = read_grid(name)
    found, whole, of = points(read_results(grid, Store(grid.store, root)))
    stem = Path(name).stem
    lines = [
        f"# Pareto front of grid {stem}",
        "",
        (
            f"Made by `python -m benchmarks pareto {stem}`. Means over the {whole} of {of}"
            " comparisons (target, shots, seed) that every arm took part in. Score: half the Dice"
            " plus half of one minus the parameters, both min-max normalised over these arms (eq."
            " 4.1 of the thesis); front: beats everything cheaper."
        ),
        "",
        "| policy | parameters | Dice | score | front |",
        "|---|---|---|---|---|",
        *(
            f"| {p.name} | {p.parameters:,.0f} | {p.dice:.3f} | {p.score:.3f} |"
            f" {'yes' if p.front else ''} |"
            for p in found
        ),
        "",
    ]
    path, picture = root / f"{stem}.pareto.md", root / f"{stem}.pareto.png"
    if found:
        plots.front(found, picture)
        lines += [f"![Parameters against Dice]({picture.name})", ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    return [path, picture] if found else [path]


def _normal(value: float, values: Sequence[float]) -> float:
    """0 for the smallest of the values, 1 for the largest; 0 where all are equal."""
    return (value - min(values)) / ((max(values) - min(values)) or 1.0)
