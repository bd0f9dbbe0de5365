"""Tables of a grid as Markdown, made of committed rows alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import plots
from benchmarks.gaps import gaps
from benchmarks.grid import REFERENCE, read_grid
from benchmarks.scores import (
    HEAD_ONLY,
    RANDOM_MIX,
    UNADAPTED,
    Results,
    Score,
    Task,
    by_case,
    difference,
    interval,
    ranks,
    read_results,
)
from benchmarks.store import RESULTS, Store

_BASELINES = (UNADAPTED, HEAD_ONLY)


def write(name: str, root: Path = RESULTS) -> list[Path]:
    """`results/<grid>.md` and a box plot per budget beside it."""
    grid = read_grid(name)
    results = read_results(grid, Store(grid.store, root))
    stem = Path(name).stem
    pictures = [
        plots.boxes(results, budget, root / f"{stem}.{budget.replace('%', 'pct')}.png")
        for budget in _budgets(results)
    ]
    path = root / f"{stem}.md"
    path.write_text(document(stem, results, [p.name for p in pictures]), encoding="utf-8")
    return [path, *pictures]


def document(name: str, results: Results, pictures: Sequence[str] = ()) -> str:
    """The whole page."""
    count = sum(len(scores) for arms in results.tables.values() for scores in arms.values())
    lines = [
        f"# Grid {name}",
        "",
        (
            f"Made by `python -m benchmarks run {name}` and `python -m benchmarks table {name}`"
            f" from the rows in `{results.grid.store}/`."
        ),
        "",
        (
            "Dice: mean over labels of the mean over test cases, then the mean over seeds ± half of"
            " its 95 % interval (Student's t; the seed draws the shots, the crops and the initial"
            " values). Parameters: everything trained, the head included. Train: CPU seconds per"
            " training crop, audits counted apart; test: CPU seconds per test volume, reading and"
            " scoring included; run: CPU seconds of a whole cell; memory: largest resident set of"
            " its process. (…): not every seed is there yet, so that the number must not be"
            " compared."
        ),
        "",
        *(f"- Machine: {machine}." for machine in sorted(results.machines)),
        *(
            [
                f"- The rows were made by {len(results.code)} states of the code"
                f" ({', '.join(sorted(results.code))})."
            ]
            if len(results.code) > 1
            else []
        ),
        "",
    ]
    if not count:
        return "\n".join([*lines, "Nothing has been run yet.", ""])
    if REFERENCE in results.grid.policies:
        lines += against(results)
    for task in results.tasks:
        for budget in _budgets(results):
            if (task, budget) in results.tables:
                lines += block(results, task, budget)
    lines += gaps(results)
    lines += [f"![Dice by target and policy]({picture})" for picture in pictures]
    lines += ["", *_absent(results)]
    return "\n".join(lines) + "\n"


def block(results: Results, task: Task, budget: str) -> list[str]:
    """One data set at one number of shots under one budget: every arm, best first, baselines on
    top.
    """
    arms = results.tables[task, budget]
    complete = results.complete(task, budget)
    ranked = ranks({arm: scores for arm, scores in complete.items() if arm not in _BASELINES})
    new = any(s.new is not None for scores in arms.values() for s in scores.values())
    head = [
        "policy",
        "Dice",
        *(["new labels"] if new else []),
        "sens.",
        "spec.",
        "rank",
        "parameters",
        "train",
        "audit",
        "test",
        "run",
        "memory",
    ]
    lines = [f"## {task}, {budget}", "", _line(head), _line(["---"] * len(head))]
    order = sorted(
        arms,
        key=lambda arm: (arm not in _BASELINES, arm not in complete, -_mean(arms[arm].values())),
    )
    for arm in order:
        scores = list(arms[arm].values())
        shown = _with_interval([s.dice for s in scores])
        cells = [
            arm,
            shown if arm in complete else f"({shown}, {len(scores)} of {results.replicates})",
        ]
        cells += [_with_interval([s.new for s in scores if s.new is not None])] if new else []
        cells += [
            *_rates(scores),
            f"{ranked[arm]:.1f}" if arm in ranked else "",
            *_costs(arm, scores),
        ]
        lines.append(_line(cells))
    return [*lines, ""]


def against(results: Results) -> list[str]:
    """Paired differences of the reference to its rivals."""
    budgets = _budgets(results)
    lines = [
        f"## {REFERENCE} against the others",
        "",
        (
            f"Differences in Dice points ({REFERENCE} minus the other), over pairs of runs that"
            " differ in the policy alone: one pair per target, shots, budget and seed where both"
            " are there. p: Wilcoxon's signed-rank test, two-sided, over these pairs. Cases: the"
            " same test over pairs of test cases; cases of one run are not independent, so that"
            " its p is too small. Strongest fixed: the single fixed topology with the highest test"
            f" Dice over all of these runs, which favours it. {RANDOM_MIX}: random subsets with the"
            f" mix of families that {REFERENCE} chose, the mean of all draws as one run. Worst: the"
            " task with the lowest difference, its pairs averaged."
        ),
        "",
        _line(
            [
                "budget",
                "against",
                "pairs",
                "difference",
                "above",
                "p",
                "cases",
                "p (cases)",
                "worst",
            ]
        ),
        _line(["---"] * 9),
    ]
    rivals = [
        p
        for p in (*results.grid.policies, *results.grid.unbound, RANDOM_MIX)
        if p != REFERENCE and not p.startswith(f"{RANDOM_MIX}-")
    ]
    spans = [*([budgets] if len(budgets) > 1 else []), *([budget] for budget in budgets)]
    for span in spans:
        strongest = results.strongest_fixed(span)
        for rival in sorted(rivals, key=lambda r: r != strongest):
            pairs = results.pairs(REFERENCE, rival, span)
            if pairs:
                runs = difference([100 * (a.dice - b.dice) for a, b in pairs])
                cases = difference([100 * d for d in by_case(pairs)])
                named = f"**{rival}** (strongest fixed)" if rival == strongest else rival
                half = "" if runs.interval is None else f" ± {runs.interval:.1f}"
                where = "all" if len(span) > 1 else span[0]
                lines.append(
                    _line(
                        [
                            where,
                            named,
                            str(runs.pairs),
                            f"{runs.mean:+.1f}{half}",
                            f"{runs.above} of {runs.pairs}",
                            _p(runs.p),
                            str(cases.pairs),
                            _p(cases.p),
                            _worst(results, rival, span),
                        ]
                    )
                )
    return [*lines, "", *_per_task(results), *_by_chance(results)]


def _worst(results: Results, rival: str, budgets: Iterable[str]) -> str:
    """The task that speaks most against the reference, with its difference in points."""
    by_task = {
        str(task): statistics.fmean(100 * (a.dice - b.dice) for a, b in pairs)
        for task in results.tasks
        if (pairs := results.pairs(REFERENCE, rival, budgets, task))
    }
    task = min(by_task, key=lambda name: by_task[name])
    return f"{by_task[task]:+.1f} ({task})"


def _per_task(results: Results) -> list[str]:
    """The reference beside the best fixed topology of every single task: the best is chosen
    knowing the test, the reference is not.
    """
    lines = [
        f"The best fixed topology of each task, picked by its test Dice, beside {REFERENCE}:",
        "",
        _line(["task", "budget", "best fixed", "its Dice", REFERENCE, "difference (points)"]),
        _line(["---"] * 6),
    ]
    for task, budget in results.tables:
        complete = results.complete(task, budget)
        fixed = [arm for arm in results.fixed_topologies() if arm in complete]
        if fixed and REFERENCE in complete:
            best = max(fixed, key=lambda arm: _mean(complete[arm].values()))
            theirs, ours = (_mean(complete[arm].values()) for arm in (best, REFERENCE))
            lines.append(
                _line(
                    [
                        str(task),
                        budget,
                        best,
                        f"{theirs:.3f}",
                        f"{ours:.3f}",
                        f"{100 * (ours - theirs):+.1f}",
                    ]
                )
            )
    return [*lines, ""] if len(lines) > 4 else []


def _by_chance(results: Results) -> list[str]:
    """What it is worth to know which units to take: random sets of one mix against each other,
    and the reference beside them.
    """
    lines = [
        (
            f"Random sets of one mix, which spend on every family what {REFERENCE} spent on it,"
            " with the same shots, crops and seed: only places and levels differ. Spread: standard"
            " deviation over the draws. Best: the draw with the highest test Dice, which no rule"
            " that sees the shots alone can know. It says how far sets of one mix differ; it is no"
            " bound on what a rule could find."
        ),
        "",
        _line(
            [
                "task",
                "budget",
                "draws",
                "mean Dice",
                "spread (points)",
                "best − mean",
                "sea − mean",
                "sea − best",
            ]
        ),
        _line(["---"] * 8),
    ]
    for (task, budget), arms in results.tables.items():
        for at, mix in arms.get(RANDOM_MIX, {}).items():
            draws = [100 * row["dice"]["adapted"] for row in mix.rows]
            if len(draws) > 1 and at in arms[REFERENCE]:
                mean, ours = statistics.fmean(draws), 100 * arms[REFERENCE][at].dice
                spread, best = statistics.stdev(draws), max(draws)
                lines.append(
                    _line(
                        [
                            str(task),
                            budget,
                            str(len(draws)),
                            f"{mean / 100:.3f}",
                            f"{spread:.1f}",
                            f"{best - mean:+.1f}",
                            f"{ours - mean:+.1f}",
                            f"{ours - best:+.1f}",
                        ]
                    )
                )
    return [*lines, ""] if len(lines) > 4 else []


def _absent(results: Results) -> list[str]:
    lines = [f"{len(results.missing)} cells have not been run.", ""] if results.missing else []
    if results.failed:
        lines += ["Failed:", "", *(f"- {cell.name}: {error}" for cell, error in results.failed), ""]
    return lines


def _rates(scores: Iterable[Score]) -> list[str]:
    rows = [row for s in scores for row in s.rows]
    return [
        (
            f"{statistics.fmean(statistics.fmean(r[rate].values()) for r in rows):.{digits}f}"
            if rows
            else ""
        )
        for rate, digits in (("sensitivity", 3), ("specificity", 4))
    ]


def _costs(arm: str, scores: Iterable[Score]) -> list[str]:
    """Parameters, seconds and memory; of the baselines only parameters are known."""
    rows = [row for s in scores for row in s.rows]
    if not rows:
        return ["0" if arm == UNADAPTED else "", *[""] * 5]
    tested = [
        r for r in rows if r["seconds"]["baselines"] == "reused"
    ]  # where they were made, the test scored three arms
    return [
        f"{statistics.fmean(r['parameters']['used'] for r in rows):,.0f}",
        f"{statistics.fmean(r['seconds']['cpu_train'] / r['crops'] for r in rows):.3f}",
        f"{statistics.fmean(r['seconds'].get('cpu_audit', 0.0) for r in rows):.0f}",
        (
            f"{statistics.fmean(r['seconds']['cpu_test'] / r['cases']['test'] for r in tested):.2f}"
            if tested
            else ""
        ),
        f"{statistics.fmean(r['seconds']['cpu'] for r in rows):.0f}",
        f"{statistics.fmean(r['peak_memory_bytes'] for r in rows) / 2**20:,.0f} MB",
    ]


def _budgets(results: Results) -> list[str]:
    return list(results.grid.budgets)


def _mean(scores: Iterable[Score]) -> float:
    return statistics.fmean(s.dice for s in scores)


def _with_interval(values: Sequence[float]) -> str:
    if not values:
        return ""
    half = interval(values)
    return f"{statistics.fmean(values):.3f}" + ("" if half is None else f" ± {half:.3f}")


def _p(p: float | None) -> str:
    return "" if p is None else f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
