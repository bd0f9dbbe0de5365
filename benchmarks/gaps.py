"""How far each target lies from the source, how much of that comes back, and whether the
targets differ in what helps.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.scores import HEAD_ONLY, UNADAPTED, Results, Score, Task

# what the targets were built for: a gap of this size, of which this share comes back, on so many
# targets
GAP, RECOVERED, TARGETS, SOURCE = 0.15, 0.5, 4, 0.92


@dataclasses.dataclass(frozen=True)
class _Gap:
    """One target under one budget. `source`: over its labels, `card`: over all of the source's.
    `arms`: arm → Dice. `best_topology`: the best fixed topology within the budget; `head`: Dice of
    the head alone.
    """

    task: Task
    budget: str
    source: float
    card: float
    unadapted: float | None
    arms: Mapping[str, float]
    best_topology: str
    head: float | None

    @property
    def best(self) -> str:
        """The best arm, outside the budget too."""
        return max(self.arms, key=self.arms.__getitem__)

    @property
    def gap(self) -> float:
        """From unadapted to source."""
        return self.source - (self.unadapted or 0.0)

    @property
    def recovered(self) -> float:
        """The best arm's share of the way from unadapted to source."""
        return (self.arms[self.best] - (self.unadapted or 0.0)) / self.gap if self.gap else 0.0


def gaps(results: Results) -> list[str]:
    """A table of source Dice, unadapted Dice and the best arm per phantom target, and what it
    amounts to; nothing for other data.

    Source: the Dice on the weights' card, over the labels of the target. Where the weights know
    none of the target's labels there is no unadapted Dice: the gap is the source's whole Dice.
    """
    rows = []
    for task, budget in results.tables:
        complete = results.complete(task, budget)
        arms = {arm: _mean(scores) for arm, scores in complete.items() if arm != UNADAPTED}
        if not task.data.startswith("phantom:") or not arms.keys() - {HEAD_ONLY}:
            continue
        a_row = next(row for arm in arms for s in complete[arm].values() for row in s.rows)
        source, card = _source_dice(a_row)
        unadapted = _mean(complete[UNADAPTED]) if UNADAPTED in complete else None
        bound = [arm for arm in results.fixed_topologies() if arm in arms]
        best = max(bound, key=arms.__getitem__, default="")
        rows.append(_Gap(task, budget, source, card, unadapted, arms, best, arms.get(HEAD_ONLY)))
    if not rows:
        return []
    lines = [
        "## Targets and their source",
        "",
        (
            "Source: test Dice on the source that the weights were trained for (from their card)."
            " Recovered: the best arm's share of the way from unadapted to source."
        ),
        "",
        (
            "| target | budget | source | unadapted | gap | best arm | Dice | recovered | best"
            " fixed topology within the budget |"
        ),
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {row.task} | {row.budget} | {row.source:.3f} |"
            f" {'cannot' if row.unadapted is None else f'{row.unadapted:.3f}'} | {row.gap:.3f} |"
            f" {row.best} | {row.arms[row.best]:.3f} | {row.recovered:.0%} | {row.best_topology} |"
            for row in rows
        ),
        "",
    ]
    return [*lines, *_verdict(rows), ""]


def _verdict(rows: Sequence[_Gap]) -> list[str]:
    told = [row.task.target for row in rows if row.gap >= GAP and row.recovered >= RECOVERED]
    lines = [
        (
            f"- Source Dice (mean of the card) at least {SOURCE}:"
            f" {'yes' if all(row.card >= SOURCE for row in rows) else 'no'}"
            f" ({', '.join(f'{dice:.3f}' for dice in sorted({row.card for row in rows}))})."
        ),
        (
            f"- Targets at least {GAP} below their source of which at least {RECOVERED:.0%} is"
            f" recovered: {len(set(told))} ({', '.join(dict.fromkeys(told))}); asked for:"
            f" {TARGETS}."
        ),
    ]
    for budget in dict.fromkeys(row.budget for row in rows):
        own = [row for row in rows if row.budget == budget and row.best_topology]
        if not own:
            continue
        best = {str(row.task): row.best_topology for row in own}
        by_arm = "; ".join(
            f"{arm}: {' and '.join(t for t, a in best.items() if a == arm)}"
            for arm in dict.fromkeys(best.values())
        )
        said = (
            "the same on every target"
            if len(set(best.values())) == 1
            else "not the same everywhere"
        )
        alone = [
            f"{row.task} ({row.head:.3f} against {row.arms[row.best_topology]:.3f})"
            for row in own
            if row.head is not None and row.head > row.arms[row.best_topology]
        ]
        lines.append(
            f"- Best fixed topology within {budget}: {said} ({by_arm}). The head alone is ahead of"
            f" it on {', '.join(alone) or 'no target'}."
        )
    return lines


def _source_dice(row: Mapping[str, Any]) -> tuple[float, float]:
    """Test Dice on the card of the weights: over the target's labels (over all where it knows
    none of them), and over all.
    """
    from sea_peft.backbones.weights import cards, read_card

    dice = read_card(cards()[row["weights"]]).dice
    own = [dice[name] for name in row["labels"] if name in dice]
    return statistics.fmean(own) if own else dice["mean"], dice["mean"]


def _mean(scores: Mapping[Any, Score]) -> float:
    return statistics.fmean(s.dice for s in scores.values())
