"""What MLflow is told of a run: parameters and metrics as plain data, functions of the history and nothing
else.

Cycles are the steps (of the refit: optimizer steps). Nothing here names a patient or a path: case ids do not
reach MLflow at all, options by a list of those that are safe, and a value that looks like a path is withheld.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sea_peft.artefacts.history import Cycle, History
from sea_peft.artefacts.privacy import paths_in

_PUBLIC_OPTIONS = frozenset(
    {
        *("shots", "budget", "profile", "backbone", "architecture", "weights", "backbone_sha256", "labels"),
        *("channels", "policy", "seed", "steps", "cycles", "patch", "batch_size", "device", "recipe"),
        *("layout", "data_digest", "versions", "time_limit", "test"),
    }
)
_MOST_UTILITIES = 100


class Metric(NamedTuple):
    """One point of a chart."""

    key: str
    value: float
    step: int


def params(history: History, config: Mapping[str, Any]) -> dict[str, str]:
    """Parameters of the run: what `RunStarted` says, every setting of the scorer, and the public options of
    `config`."""
    started = history.started
    values: dict[str, Any] = {
        **{key: value for key, value in config.items() if key in _PUBLIC_OPTIONS},
        "policy": started.policy,
        "seed": started.seed,
        "budget_limit": started.limit,
        "head_parameters": started.head,
        "backbone_parameters": started.backbone_parameters,
        "units_offered": len(started.units),
        "settings": started.settings,
        **{f"{role}_cases": len(cases) for role, cases in started.split.items()},
    }
    return {_key(key): _text(value) for key, value in _flat(values)}


def metrics(history: History) -> list[Metric]:
    """Every metric that is settled, each (key, step) once; what is told for a part of a run stays true."""
    points: dict[tuple[str, int], float] = {}
    total = 0.0
    for cycle in history.cycles:
        points.update({(_key(key), cycle.number): value for key, value in _of_cycle(cycle)})
        for searched in cycle.searched:
            if searched.phase == "refit":
                points["refit/loss", searched.last_step] = searched.loss
        if _is_over(cycle, history):
            for key, seconds in _times(cycle).items():
                points[key, cycle.number] = seconds
                total += seconds
            points["time/total", cycle.number] = total
    points.update(_budget(history))
    points.update(_utilities(history))
    if history.compared is not None:
        points.update({(_key(f"val/compared/{name}"), 0): dice for name, dice in history.compared.dice.items()})
    for arm, scored in history.held_out.items():
        if scored.dice is not None:
            points[_key(f"val/held_out/{arm}"), 0] = scored.dice
    for arm, scored in history.scored.items():
        if scored.dice is not None:
            points[_key(f"test/dice/{arm}"), 0] = scored.dice
        for label, dice in scored.per_label.items():
            points[_key(f"test/label/{label}/{arm}"), 0] = dice
        points[_key(f"time/test/{arm}"), 0] = scored.seconds
    return [Metric(key, value, step) for (key, step), value in points.items()]


def _is_over(cycle: Cycle, history: History) -> bool:
    """Whether no more events of this cycle can come."""
    last = cycle is history.cycles[-1]
    return not last or cycle.ranked is not None or bool(history.scored) or history.finished is not None


def _times(cycle: Cycle) -> dict[str, float]:
    refit = [searched.seconds for searched in cycle.searched if searched.phase == "refit"]
    search = [searched.seconds for searched in cycle.searched if searched.phase != "refit"]
    times = {"time/refit": sum(refit)} if refit else {}
    times.update({"time/search": sum(search)} if search else {})
    for key, event in (("promise", cycle.promised), ("audit", cycle.audited), ("allocate", cycle.allocated)):
        if event is not None:
            times[f"time/{key}"] = event.seconds
    return times


def _of_cycle(cycle: Cycle) -> Iterator[tuple[str, float]]:
    for searched in cycle.searched:
        if searched.phase != "refit":
            yield "train/loss", searched.loss
    if cycle.audited is not None:
        audited = cycle.audited
        yield "val/dice", audited.dice_on
        yield "val/hard_dice", audited.hard_dice
        spreads = [row["spread"] for row in audited.rows if row["spread"] is not None]
        if spreads:
            yield "audit/noise", statistics.median(spreads)
        yield "audit/units", len(audited.rows)
        yield "audit/patches", audited.patches
        yield "audit/naive_patches", audited.naive_patches
    if cycle.allocated is not None:
        allocated = cycle.allocated
        yield "audit/coverage", allocated.coverage
        yield "alloc/units_on", len(allocated.active)
        yield "alloc/probes", len(allocated.probes)
        yield "alloc/changes", allocated.changes
        yield "alloc/optimality_gap", allocated.gap


def _budget(history: History) -> dict[tuple[str, int], float]:
    points: dict[tuple[str, int], float] = {}
    for allocated in history.allocations:
        points["budget/used", allocated.cycle] = allocated.used
        points["budget/used_fraction", allocated.cycle] = allocated.used / allocated.limit
    return points


def _utilities(history: History) -> dict[tuple[str, int], float]:
    """Utility of every measured unit where at most 100 are on offer; else of the first 100 that were ever
    on."""
    units = list(history.units)
    if len(units) > _MOST_UTILITIES:
        units = list(dict.fromkeys(unit for a in history.allocations for unit in a.active))[:_MOST_UTILITIES]
    shown = set(units)
    return {
        (_key(f"utility/{row['unit']}"), cycle.number): row["ema"]
        for cycle in history.cycles
        for row in (cycle.ranked.rows if cycle.ranked is not None else ())
        if row["unit"] in shown and row["ema"] is not None
    }


def _key(name: str) -> str:
    """`name` with what MLflow's keys cannot hold replaced by `_`."""
    return re.sub(r"[^A-Za-z0-9_\-. :/]", "_", name)[:250]


def _text(value: Any) -> str:
    if any(paths_in(value)):
        return "(a path, withheld)"
    return value if isinstance(value, str) else json.dumps(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
