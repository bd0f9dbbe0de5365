"""Pictures of a grid: box plots by target and policy, and the Pareto front."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.grid import REFERENCE
from benchmarks.scores import HEAD_ONLY, UNADAPTED, Results

_OURS, _OTHERS, _BASELINE = "#D55E00", "#56B4E9", "#BBBBBB"
# more names than this would cover each other: then only those of the front and of the reference are
# shown
_ALL_NAMED = 15


@dataclasses.dataclass(frozen=True)
class Point:
    """One arm under one budget (None: no budget binds it): means over the whole comparisons.
    `front`: it beats everything cheaper.
    """

    arm: str
    budget: str | None
    parameters: float
    dice: float
    score: float
    front: bool

    @property
    def name(self) -> str:
        """As shown."""
        return self.arm if self.budget is None else f"{self.arm} {self.budget}"


def boxes(results: Results, budget: str, path: Path) -> Path:
    """One panel a task, one box a policy: Dice of every test case of every seed; the triangle
    is the mean. Written as PNG.
    """
    from matplotlib.figure import Figure

    tasks = [task for task in results.tasks if (task, budget) in results.tables]
    arms = {
        task: {
            a: [d for s in by.values() for d in s.cases.values()]
            for a, by in results.tables[task, budget].items()
        }
        for task in tasks
    }
    columns = min(3, max(1, len(tasks)))
    rows = math.ceil(len(tasks) / columns) or 1
    tall = max((len(a) for a in arms.values()), default=1)
    figure = Figure(figsize=(4.6 * columns, (0.9 + 0.24 * tall) * rows), layout="constrained")
    for place, task in enumerate(tasks):
        axes = figure.add_subplot(rows, columns, place + 1)
        by_mean = sorted(arms[task], key=lambda arm: sum(arms[task][arm]) / len(arms[task][arm]))
        drawn = axes.boxplot(
            [arms[task][arm] for arm in by_mean],
            orientation="horizontal",
            tick_labels=by_mean,
            patch_artist=True,
            showmeans=True,
            widths=0.65,
            flierprops={"markersize": 2},
            medianprops={"color": "black"},
            meanprops={"markersize": 4},
        )
        for arm, box in zip(by_mean, drawn["boxes"], strict=True):
            box.set_facecolor(
                _OURS
                if arm == REFERENCE
                else _BASELINE
                if arm in (UNADAPTED, HEAD_ONLY)
                else _OTHERS
            )
        axes.set_title(f"{task}, {budget}", fontsize=9)
        axes.tick_params(labelsize=7)
        axes.set_xlabel("Dice of a test case", fontsize=8)
        axes.grid(axis="x", alpha=0.3)
    return _saved(figure, path)


def front(points: Sequence[Point], path: Path) -> Path:
    """Parameters (logarithmic) against Dice, the front as a line. Written as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.add_subplot()
    for point in points:
        axes.plot(
            point.parameters,
            point.dice,
            "o",
            color=_OURS if point.arm == REFERENCE else _OTHERS,
            markersize=6 if point.front else 4,
        )
        if len(points) <= _ALL_NAMED or point.front or point.arm == REFERENCE:
            axes.annotate(
                point.name,
                (point.parameters, point.dice),
                fontsize=6.5,
                xytext=(3, 3),
                textcoords="offset points",
            )
    on_front = [point for point in points if point.front]
    axes.step(
        [p.parameters for p in on_front],
        [p.dice for p in on_front],
        where="post",
        color="#888888",
        linewidth=1,
        zorder=0,
    )
    axes.set_xscale("log")
    axes.set_xlabel("trained parameters")
    axes.set_ylabel("Dice, mean over the whole comparisons")
    axes.grid(alpha=0.3)
    return _saved(figure, path)


def _saved(figure, path: Path) -> Path:  # type: ignore[no-untyped-def]
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return path
