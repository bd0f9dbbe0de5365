"""Tables from result files: mean and standard deviation over seeds, per data set and policy. Nothing is typed in by hand."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.grid import RESULTS


def rows_of(name: str) -> list[dict[str, Any]]:
    """Every result of a grid, in the order of file names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((RESULTS / name).glob("*.json"))]


def table(name: str) -> str:
    """The grid as Markdown: one block per data set and shots, policies by Dice, unadapted and head-only on top."""
    blocks: dict[tuple[str, int], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    failures = []
    for row in rows_of(name):
        cell = row["cell"]
        if "result" in row:
            blocks[cell["data"], cell["shots"]][cell["policy"]].append(row["result"])
        else:
            failures.append(f"- {cell['data']}, {cell['shots']} shots, seed {cell['seed']}, {cell['policy']}: {row['error'][0]}")
    lines = []
    for (data, shots), policies in sorted(blocks.items()):
        lines += [f"### {data}, {shots} shots", "", "| policy | Dice | seeds | parameters | seconds |", "|---|---|---|---|---|"]
        everything = [result for results in policies.values() for result in results]
        for arm in ("unadapted", "head_only"):
            by_seed = {r["seed"]: r["dice"][arm] for r in everything if r["dice"][arm] is not None}
            if by_seed:
                head = everything[0]["budget"]["head"] if arm == "head_only" else 0
                lines.append(f"| {arm} | {_spread(list(by_seed.values()))} | {len(by_seed)} | {head:,} | |")
        for policy, results in sorted(policies.items(), key=lambda item: -_mean(item[1])):
            dice = [r["dice"]["adapted"] for r in results]
            used = statistics.mean(r["budget"]["used"] for r in results)
            seconds = statistics.mean(r["seconds"]["total"] for r in results)
            lines.append(f"| {policy} | {_spread(dice)} | {len(dice)} | {used:,.0f} | {seconds:.0f} |")
        lines.append("")
    if failures:
        lines += ["Failed:", "", *failures, ""]
    return "\n".join(lines)


def pareto(name: str, weight: float = 0.5) -> str:
    """The thesis's Pareto score (eq. 4.1), w·D + (1 − w)·(1 − P) with Dice D and parameters P min-max normalised over the grid's policies
    (means over data sets and seeds), sorted by parameters; `front` marks what beats everything cheaper. Only comparisons that every
    policy of the grid took part in count: a mean over other cells would compare other things."""
    done = [row for row in rows_of(name) if "result" in row]
    policies = {row["cell"]["policy"] for row in done}
    present: dict[tuple[str, int, int], set[str]] = defaultdict(set)
    for row in done:
        present[_comparison(row)].add(row["cell"]["policy"])
    by_policy: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for row in done:
        if present[_comparison(row)] == policies:
            result = row["result"]
            by_policy[row["cell"]["policy"]].append((result["dice"]["adapted"], result["budget"]["used"]))
    whole = sum(have == policies for have in present.values())
    means = {p: (statistics.mean(d for d, _ in v), statistics.mean(n for _, n in v)) for p, v in by_policy.items()}
    dice, parameters = zip(*means.values(), strict=True)

    def normal(value: float, values: tuple[float, ...]) -> float:
        return (value - min(values)) / ((max(values) - min(values)) or 1.0)

    lines = [f"Means over the {whole} comparisons (data set, shots, seed) that are whole.", ""]
    lines += ["| policy | parameters | Dice | score | front |", "|---|---|---|---|---|"]
    best = float("-inf")
    for policy, (d, n) in sorted(means.items(), key=lambda item: item[1][1]):
        score = weight * normal(d, dice) + (1 - weight) * (1 - normal(n, parameters))
        lines.append(f"| {policy} | {n:,.0f} | {d:.3f} | {score:.3f} | {'yes' if d > best else ''} |")
        best = max(best, d)
    return "\n".join(lines) + "\n"


def write_table(name: str) -> Path:
    """`benchmarks/results/<name>.md`: both tables, with the machines and the command that makes them."""
    machines = {json.dumps(row["machine"], sort_keys=True) for row in rows_of(name)}
    text = "\n".join(
        [
            f"# Grid {name}",
            "",
            f"Made by `python -m benchmarks run {name}` and `python -m benchmarks table {name}` from the files in `{name}/`.",
            "Dice: mean ± standard deviation over seeds of the test Dice (mean over labels); parameters: everything trained, the head included;",
            "seconds: the whole run with its three arms and scoring, on a machine that other programs shared.",
            *(f"Machine: `{m}`." for m in sorted(machines)),
            "",
            table(name),
            "## Parameters against Dice (all data sets)",
            "",
            pareto(name),
        ]
    )
    path = RESULTS / f"{name}.md"
    path.write_text(text, encoding="utf-8")
    return path


def _comparison(row: dict[str, Any]) -> tuple[str, int, int]:
    return row["cell"]["data"], row["cell"]["shots"], row["cell"]["seed"]


def _mean(results: list[dict[str, Any]]) -> float:
    return statistics.mean(r["dice"]["adapted"] for r in results)


def _spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"
