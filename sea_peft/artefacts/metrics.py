"""What MLflow is told of a run: parameters and metrics as plain data, computed from the history and nothing
else.

Cycles are the steps. Nothing here names a patient or a path: case ids reach MLflow not at all, options by a
list of those that are safe, and a value that looks like a path is withheld.
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
        *("layout", "data_digest", "versions", "time_limit"),
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
    """Every metric that can be known so far, each (key, step) once, in the order of the run."""
    points: dict[tuple[str, int], float] = {}
    total = 0.0
    for cycle in history.cycles:
        for key, value in _of_cycle(cycle):
            points[_key(key), cycle.number] = value
            total += value if key.startswith("time/") else 0.0
        points["time/total", cycle.number] = total
    points.update(_budget(history))
    points.update(_utilities(history))
    if history.compared is not None:
        points.update(
            {(_key(f"val/compared/{name}"), 0): dice for name, dice in history.compared.dice.items()}
        )
    for arm, scored in history.scored.items():
        if scored.dice is not None:
            points[_key(f"test/dice/{arm}"), 0] = scored.dice
        for label, dice in scored.per_label.items():
            points[_key(f"test/label/{label}/{arm}"), 0] = dice
        points[_key(f"time/test/{arm}"), 0] = scored.seconds
    return [Metric(key, value, step) for (key, step), value in points.items()]


def _of_cycle(cycle: Cycle) -> Iterator[tuple[str, float]]:
    seconds: dict[str, float] = {}
    for searched in cycle.searched:
        suffix = "" if searched.phase in ("warmup", "search") else f"_{searched.phase}"
        yield f"train/loss{suffix}", searched.loss
        seconds[f"time/search{suffix}"] = seconds.get(f"time/search{suffix}", 0.0) + searched.seconds
    yield from seconds.items()
    if cycle.promised is not None:
        yield "time/promise", cycle.promised.seconds
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
        yield "time/audit", audited.seconds
    if cycle.allocated is not None:
        allocated = cycle.allocated
        yield "audit/coverage", allocated.coverage
        yield "alloc/units_on", len(allocated.active)
        yield "alloc/probes", len(allocated.probes)
        yield "alloc/changes", allocated.changes
        yield "alloc/optimality_gap", allocated.gap
        yield "time/allocate", allocated.seconds


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
