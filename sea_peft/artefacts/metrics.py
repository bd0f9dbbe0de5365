"""The parameters and metrics of a run in MLflow, as plain data: functions of the history alone.

Cycles are the steps (of the refit: optimizer steps). Nothing here names a patient or a path: case
ids never reach MLflow, only options on a list of safe ones do, and a value that looks like a path
is withheld.
"""

import json
import posixpath
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from sea_peft.artefacts.history import Cycle, History
from sea_peft.artefacts.privacy import paths_in

_PUBLIC_OPTIONS = frozenset(
    {
        *(
            "shots",
            "budget",
            "profile",
            "backbone",
            "architecture",
            "weights",
            "backbone_sha256",
            "labels",
        ),
        *(
            "channels",
            "policy",
            "seed",
            "steps",
            "cycles",
            "patch",
            "batch_size",
            "device",
            "recipe",
        ),
        *("layout", "data_digest", "versions", "time_limit", "test"),
    }
)
_MOST_UTILITIES = 100
# MLflow's own rule (`肝` is fine, `@` is not), shortened to leave room for affixes, and without
# spaces at the ends
_IN_KEYS = re.compile(r"(?! )[\w\-.:/ ]{1,200}(?<! )")
_LONGEST_PARAM = 6000


class Metric(NamedTuple):
    """One point of a chart."""

    key: str
    value: float
    step: int


def names_in_keys(what: str, names: Iterable[str]) -> dict[str, str]:
    """Name → its stand-in in MLflow's keys, each different.

    This is the name itself (with ` at ` for `@`), or for a name that a key cannot hold `label 2`,
    if `what` is `label` and it is the second.
    """
    keys = {}
    for n, name in enumerate(names, start=1):
        key = _in_key(name)
        stands = _IN_KEYS.fullmatch(key) and posixpath.normpath(f"x/{key}") == f"x/{key}"
        taken = " at " in name or re.fullmatch(rf"{what} \d+", key)
        keys[name] = key if stands and not taken else f"{what} {n}"
    return keys


def _in_key(name: str) -> str:
    return name.replace("@", " at ")


def _labels(history: History, config: Mapping[str, Any]) -> dict[str, str]:
    given = config.get("labels", {})
    scored = (label for arm in history.scored.values() for label in arm.per_label)
    return names_in_keys("label", dict.fromkeys((*given, *scored)))


def params(history: History, config: Mapping[str, object]) -> dict[str, str]:
    """Parameters of the run: the content of `RunStarted`, every setting of the scorer, the public
    options of `config`, and the names behind stand-ins in metrics (`label 2`: the name of the
    second label).
    """
    started = history.started
    numbered = [*_labels(history, config).items(), *names_in_keys("unit", history.units).items()]
    values: dict[str, object] = {
        **{key: value for key, value in config.items() if key in _PUBLIC_OPTIONS},
        "labels": json.dumps(config.get("labels", {}), ensure_ascii=False),
        **{key: name for name, key in numbered if key != _in_key(name)},
        "policy": started.policy,
        "seed": started.seed,
        "budget_limit": started.limit,
        f"head_{started.cost_kind.many}": started.head,
        f"backbone_{started.cost_kind.many}": started.backbone_parameters,
        "units_offered": len(started.units),
        "settings": {part: _without_units(of) for part, of in started.settings.items()},
        **({} if started.begun_from is None else {"begun_from": started.begun_from}),
        **{f"{role}_cases": len(cases) for role, cases in started.split.items()},
    }
    flat = dict(_flat(values))
    keys = names_in_keys("param", flat)
    told = {
        keys[name]: f"{name}: " * (keys[name] != _in_key(name)) + _text(value)
        for name, value in flat.items()
    }
    return {key: text[:_LONGEST_PARAM] for key, text in told.items()}


def _without_units(settings: Any) -> Any:
    """A part's settings without what was carried over from an earlier run: that is no setting, and
    a dozen numbers per unit.
    """
    return (
        {key: value for key, value in settings.items() if key != "carried"}
        if isinstance(settings, dict)
        else settings
    )


def metrics(history: History, config: Mapping[str, object]) -> list[Metric]:
    """Every metric that will not change any more, each (key, step) once, so that an unfinished run
    can be logged too. `config`: the run's; it gives the order of the labels.
    """
    points: dict[tuple[str, int], float] = {}
    total = 0.0
    for cycle in history.cycles:
        points.update({(key, cycle.number): value for key, value in _of_cycle(cycle)})
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
        points.update(
            {(f"val/compared/{name}", 0): dice for name, dice in history.compared.dice.items()}
        )
    for arm, scored in history.held_out.items():
        if scored.dice is not None:
            points[f"val/held_out/{arm}", 0] = scored.dice
    labels = _labels(history, config)
    for arm, scored in history.scored.items():
        if scored.dice is not None:
            points[f"dice/{arm}", 0] = scored.dice
        for label, dice in scored.per_label.items():
            points[f"label/{labels[label]}/{arm}", 0] = dice
        points[f"time/test/{arm}", 0] = scored.seconds
    return [Metric(key, value, step) for (key, step), value in points.items()]


def _is_over(cycle: Cycle, history: History) -> bool:
    """Whether no more events of this cycle can come."""
    last = cycle is history.cycles[-1]
    return (
        not last or cycle.ranked is not None or bool(history.scored) or history.finished is not None
    )


def _times(cycle: Cycle) -> dict[str, float]:
    refit = [searched.seconds for searched in cycle.searched if searched.phase == "refit"]
    search = [searched.seconds for searched in cycle.searched if searched.phase != "refit"]
    times = {"time/refit": sum(refit)} if refit else {}
    times.update({"time/search": sum(search)} if search else {})
    for key, event in (
        ("saliency", cycle.saliency_measured),
        ("audit", cycle.audited),
        ("allocate", cycle.allocated),
    ):
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
        errors = [row.standard_error for row in audited.rows if row.standard_error is not None]
        if errors:
            yield "audit/noise", statistics.median(errors)
        yield "audit/units", len(audited.rows)
        yield "audit/patches", audited.patches
        yield "audit/naive_patches", audited.naive_patches
    if cycle.allocated is not None:
        allocated = cycle.allocated
        yield "audit/coverage", allocated.coverage
        yield "alloc/units_on", len(allocated.active)
        yield "alloc/probes", len(allocated.probes)
        yield "alloc/changes", allocated.changes


def _budget(history: History) -> dict[tuple[str, int], float]:
    points: dict[tuple[str, int], float] = {}
    for allocated in history.allocations:
        points["budget/used", allocated.cycle] = allocated.used
        points["budget/used_fraction", allocated.cycle] = allocated.used / allocated.limit
    return points


def _utilities(history: History) -> dict[tuple[str, int], float]:
    """Utility of each measured unit if at most 100 are on offer; otherwise of the first 100
    that were ever on.
    """
    units = list(history.units)
    if len(units) > _MOST_UTILITIES:
        units = list(dict.fromkeys(unit for a in history.allocations for unit in a.active))[
            :_MOST_UTILITIES
        ]
    shown, keys = set(units), names_in_keys("unit", history.units)
    return {
        (f"utility/{keys[row.unit]}", cycle.number): row.ema
        for cycle in history.cycles
        for row in (cycle.ranked.rows if cycle.ranked is not None else ())
        if row.unit in shown and row.ema is not None
    }


def _text(value: object) -> str:
    if any(paths_in(value)):
        return "(a path, withheld)"
    return value if isinstance(value, str) else json.dumps(value)


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
