"""The rows of a grid as comparisons: what every arm scored where everything but the arm was the
same.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.grid import REFERENCE, Cell, Grid
from benchmarks.store import Store

UNADAPTED, HEAD_ONLY = "unadapted", "head_only"
RANDOM_MIX = "random_mix"
_LOOKING = ("adalora", "arena", "spt")  # policies that choose by gradients
_DRAW = re.compile(rf"{RANDOM_MIX}-\d+")


@dataclasses.dataclass(frozen=True)
class Task:
    """What a table is about: one data set at one number of shots."""

    data: str
    shots: int

    @property
    def target(self) -> str:
        """The data set without its path."""
        return self.data.removeprefix("phantom:").rstrip("/").rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.target}, {self.shots} shot{'s' if self.shots != 1 else ''}"


@dataclasses.dataclass(frozen=True)
class Score:
    """What one arm scored in one replicate of a task. `dice`: mean over labels of the mean over
    test cases. `new`: the same over labels that the weights do not know, None where there are none.
    `cases`: test case → mean over its labels. `rows`: of the cells it came from, none for a
    baseline, several for a mean over draws.
    """

    dice: float
    new: float | None
    cases: Mapping[str, float]
    rows: tuple[Mapping[str, Any], ...]


@dataclasses.dataclass
class Results:
    """Scores by (task, budget), arm and replicate (seed, fold), with what is missing. Arms that no
    budget binds, and the two baselines, stand under every budget.
    """

    grid: Grid
    replicates: int
    tables: dict[tuple[Task, str], dict[str, dict[tuple[int, int | None], Score]]]
    failed: list[tuple[Cell, str]]
    missing: list[Cell]
    machines: set[str]
    code: set[str]

    def complete(self, task: Task, budget: str) -> dict[str, dict[tuple[int, int | None], Score]]:
        """The arms that have a score in every replicate of this task: what may be averaged and
        ranked.
        """
        arms = self.tables[task, budget]
        return {arm: scores for arm, scores in arms.items() if len(scores) == self.replicates}

    def pairs(
        self, ours: str, theirs: str, budgets: Iterable[str], of: Task | None = None
    ) -> list[tuple[Score, Score]]:
        """The scores of two arms wherever both have one: over tasks (or of one), budgets and
        replicates.
        """
        return [
            (arms[ours][at], arms[theirs][at])
            for (task, budget), arms in self.tables.items()
            if budget in budgets and of in (None, task) and ours in arms and theirs in arms
            for at in sorted(arms[ours].keys() & arms[theirs].keys(), key=str)
        ]

    def strongest_fixed(self, budgets: Iterable[str]) -> str | None:
        """The single fixed topology with the highest mean under these budgets, over the comparisons
        that all of them took part in; those that failed somewhere (nothing of them fits) are no
        candidates. None where there is no such comparison.
        """
        under = set(budgets)
        failed = {
            cell.policy
            for cell, _ in self.failed
            if cell.budget is not None and cell.budget in under
        }
        candidates = [arm for arm in self.fixed_topologies() if arm not in failed]
        dice: dict[str, list[float]] = defaultdict(list)
        for (_task, budget), arms in self.tables.items():
            if budget not in under:
                continue
            for at in (
                set.intersection(*(set(arms.get(arm, {})) for arm in candidates))
                if candidates
                else ()
            ):
                for arm in candidates:
                    dice[arm].append(arms[arm][at].dice)
        return max(dice, key=lambda arm: statistics.fmean(dice[arm]), default=None)

    @property
    def tasks(self) -> list[Task]:
        """In the grid's order."""
        return list(dict.fromkeys(task for task, _ in self.tables))

    def fixed_topologies(self) -> list[str]:
        """The grid's bound arms that choose without looking and without luck."""
        return [p for p in self.grid.policies if not p.startswith((REFERENCE, "random", *_LOOKING))]


def read_results(grid: Grid, store: Store) -> Results:
    """Everything that is there of a grid."""
    results = Results(
        grid,
        len(grid.seeds) * (grid.leave_one_out or 1),
        defaultdict(lambda: defaultdict(dict)),
        [],
        [],
        set(),
        set(),
    )
    for cell in grid.cells():
        row = store.row(cell)
        if row is None:
            results.missing.append(cell)
            continue
        if row["exit_code"] != 0:
            results.failed.append((cell, row["error"]))
            continue
        results.machines.add(_described(row["machine"]))
        results.code.add(row["code"])
        task, at = Task(cell.data, cell.shots), (cell.seed, cell.fold)
        arms: dict[str, Score] = {cell.policy: _score(row, row["dice"]["adapted"], row["per_case"])}
        for arm, scored in (store.baselines(cell) or {}).items():
            if scored["dice"] is not None:
                per_case = {
                    case: [by.get(name) for name in row["labels"]]
                    for case, by in scored["per_case"].items()
                }
                arms[arm] = dataclasses.replace(_score(row, scored["dice"], per_case), rows=())
        for budget in grid.budgets if cell.budget is None else [cell.budget]:
            for arm, score in arms.items():
                results.tables[task, budget][arm][at] = score
    for table in results.tables.values():
        _join_draws(table, sum(bool(_DRAW.fullmatch(policy)) for policy in grid.policies))
    return results


def _score(
    row: Mapping[str, Any], dice: float, per_case: Mapping[str, Sequence[float | None]]
) -> Score:
    new = [i for i, name in enumerate(row["labels"]) if name in row["new_labels"]]
    return Score(
        dice,
        _mean_over_labels(per_case.values(), new) if new else None,
        {
            case: statistics.fmean(d for d in by if d is not None)
            for case, by in per_case.items()
            if any(d is not None for d in by)
        },
        (row,),
    )


def _mean_over_labels(per_case: Iterable[Sequence[float | None]], places: Sequence[int]) -> float:
    """Mean over these labels of the mean over cases."""
    by_case = list(per_case)
    columns = [[dice for by in by_case if (dice := by[i]) is not None] for i in places]
    return statistics.fmean(statistics.fmean(c) for c in columns if c) if any(columns) else 0.0


def _join_draws(table: dict[str, dict[Any, Score]], draws: int) -> None:
    """The draws of the random mix as one arm, their mean; only in replicates that have every
    draw.
    """
    arms = [arm for arm in table if _DRAW.fullmatch(arm)]
    found: dict[Any, list[Score]] = defaultdict(list)
    for arm in arms:
        for at, score in table.pop(arm).items():
            found[at].append(score)
    for at, scores in found.items():
        if len(scores) == draws:
            new = [s.new for s in scores if s.new is not None]
            table[RANDOM_MIX][at] = Score(
                statistics.fmean(s.dice for s in scores),
                statistics.fmean(new) if new else None,
                {case: statistics.fmean(s.cases[case] for s in scores) for case in scores[0].cases},
                tuple(row for s in scores for row in s.rows),
            )


def _described(machine: Mapping[str, Any]) -> str:
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    return (
        f"{machine['system']}, {machine['cpus']} CPUs, {machine['threads']} thread(s) a cell{gpu},"
        f" Python {machine['python']}, torch {machine['torch']}"
    )


# -- numbers ---------------------------------------------------------------------------------------


def interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of the mean (Student's t over independent values);
    None for fewer than two.
    """
    if len(values) < 2:
        return None
    return float(
        stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    )


@dataclasses.dataclass(frozen=True)
class Difference:
    """Paired differences.

    Attributes:
        pairs: how many.
        mean: of all.
        interval: half the width of the mean's 95% interval; None for a single pair.
        above: how many are above 0.
        p: two-sided, of Wilcoxon's signed-rank test. None below 6 pairs, which cannot be
            significant even if all agree.
    """

    pairs: int
    mean: float
    interval: float | None
    above: int
    p: float | None


def difference(values: Sequence[float]) -> Difference:
    """Of at least one paired difference."""
    p = None
    if len(values) >= 6:
        p = float(stats.wilcoxon(values).pvalue) if any(values) else 1.0
    return Difference(
        len(values), statistics.fmean(values), interval(values), sum(v > 0 for v in values), p
    )


def ranks(arms: Mapping[str, Mapping[Any, Score]]) -> dict[str, float]:
    """Mean rank of every arm over replicates, 1 the best; equal Dice share a rank. Every arm
    must have every replicate.
    """
    names = list(arms)
    each = [
        stats.rankdata([-arms[name][at].dice for name in names])
        for at in sorted(next(iter(arms.values()), {}), key=str)
    ]
    return dict(zip(names, np.mean(each, axis=0).tolist(), strict=True)) if each else {}


def by_case(pairs: Iterable[tuple[Score, Score]]) -> Iterator[float]:
    """Differences test case by test case."""
    for ours, theirs in pairs:
        for case in ours.cases.keys() & theirs.cases.keys():
            yield ours.cases[case] - theirs.cases[case]
