"""Changes of the recipe, each tried on the development set with everything else left alone: what
paid, and what did not.

`python -m benchmarks ideas` runs what is missing of `results/ideas.json`, a row at a time, and
writes `results/ideas.md`. The development set is three phantom targets and 40 of the hippocampus
cases, on a seed that no table of results has.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.cell import machine
from benchmarks.store import RESULTS
from sea_peft import AdaptOptions
from sea_peft.adapters import families
from sea_peft.jobs.inference import mean_dice
from sea_peft.jobs.scoring import score
from sea_peft.jobs.setup import Setup, prepare_run
from sea_peft.jobs.shots import prepared_shots
from sea_peft.loop.controller import Controller
from sea_peft.loop.events import ignore

STEPS, SEED = 120, 0
HIPPOCAMPUS = "../shared/data/real/msd_hippocampus"
TARGETS: Mapping[str, Mapping[str, Any]] = {
    "phantom:low-dose-ct": {"test": 10},
    "phantom:mr-t1": {"test": 10},
    "phantom:novel-organs": {"test": 10},
    HIPPOCAMPUS: {"test": 40, "spacing": (1.0, 1.0, 1.0)},
}


@dataclasses.dataclass(frozen=True)
class Idea:
    """`about`: what is changed, in words. `settings`: fields of `LoopSettings`. `rate`: factor on
    the learning rates of the units, not on the head's.
    """

    about: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rate: float = 1.0


IDEAS = {
    "as it is": Idea("nothing"),
    "half the rates": Idea("learning rates of all units halved", rate=0.5),
    "double the rates": Idea("learning rates of all units doubled", rate=2.0),
    "long refit": Idea(
        "three quarters of the steps in the refit instead of half", settings={"refit_share": 0.75}
    ),
    "short refit": Idea("a quarter of the steps in the refit", settings={"refit_share": 0.25}),
    "four crops": Idea(
        "batches of four crops, half as many steps", settings={"batch_size": 4, "steps": STEPS // 2}
    ),
    "one crop": Idea(
        "batches of one crop, twice as many steps", settings={"batch_size": 1, "steps": STEPS * 2}
    ),
}


def measure() -> Path:
    """What is missing, and the table. Targets that are not there are left out."""
    path = RESULTS / "ideas.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    done = {(row["idea"], row["data"]) for row in rows}
    for name, idea in IDEAS.items():
        for data, asked in TARGETS.items():
            if (name, data) in done or not (data.startswith("phantom:") or Path(data).is_dir()):
                continue
            rows.append({"idea": name, "data": data, **_run(idea, data, asked)})
            found = {"machine": machine(), "steps": STEPS, "seed": SEED, "rows": rows}
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(_table(rows), encoding="utf-8")
    return path


def _run(idea: Idea, data: str, asked: Mapping[str, Any]) -> dict[str, float]:
    options = AdaptOptions(
        data=data,
        backbone="unet",
        policy="cheapest",
        steps=STEPS,
        shots=5,
        budget="1%",
        seed=SEED,
        mlflow=False,
        **asked,
    )
    setup = prepare_run(options, _unsaid)
    setup = dataclasses.replace(
        setup, settings=dataclasses.replace(setup.settings, **idea.settings)
    )
    with tempfile.TemporaryDirectory() as folder:
        shots = prepared_shots(setup, Path(folder), ignore, _unsaid)
        began = time.process_time()
        with _rates(idea.rate):
            Controller(
                setup.model,
                setup.space,
                setup.fresh_policy(),
                shots,
                setup.settings,
                SEED,
                train_head=setup.space.head > 0,
            ).run()
        seconds = time.process_time() - began
        dice = scored(setup, Path(folder))
    return {"dice": dice, "seconds": round(seconds, 1)}


def scored(setup: Setup, folder: Path) -> float:
    """Mean Dice of the model as it stands, over the labels, on the development cases."""
    scores = score(setup, setup.split.test, None, True, folder, lambda _done, _of: None)
    return round(mean_dice(scores.dice["adapted"], tuple(setup.dataset.labels))[0], 4)


def _unsaid(_sentence: str) -> None:
    """Sentences for a user, of which there is none."""


@contextlib.contextmanager
def _rates(factor: float) -> Iterator[None]:
    """Every family's learning rate times this."""
    before = {family: family.learning_rate for family in families().values()}
    try:
        for family, rate in before.items():
            family.learning_rate = rate * factor
        yield
    finally:
        for family, rate in before.items():
            family.learning_rate = rate


def _table(rows: list[dict[str, Any]]) -> str:
    dice = {(row["idea"], row["data"]): row["dice"] for row in rows}
    first = next(iter(IDEAS))
    lines = [
        "# Changes of the recipe on the development set",
        "",
        (
            f"Made by `python -m benchmarks ideas`: UNet, five shots, 1%, cheapest first, {STEPS}"
            f" steps of two crops, seed {SEED}; mean Dice over labels on 10 phantom or 40"
            " hippocampus cases, and in brackets the difference in points; CPU seconds of a run,"
            " one thread. One seed: a difference below a point says nothing by itself."
        ),
        "",
        "| change | "
        + " | ".join(data.rpartition(":")[2].rpartition("/")[2] for data in TARGETS)
        + " | mean | seconds |",
        "|---|" + "---|" * (len(TARGETS) + 2),
    ]
    for name, idea in IDEAS.items():
        there = [
            (data, dice[name, data])
            for data in TARGETS
            if (name, data) in dice and (first, data) in dice
        ]
        if not there:
            continue
        gains = [100 * (value - dice[first, data]) for data, value in there]
        cells = {
            data: f"{value:.3f} ({gain:+.1f})"
            for (data, value), gain in zip(there, gains, strict=True)
        }
        mean = (
            f"{statistics.fmean(value for _, value in there):.3f} ({statistics.fmean(gains):+.1f})"
        )
        seconds = statistics.fmean(row["seconds"] for row in rows if row["idea"] == name)
        lines.append(
            f"| {idea.about} | "
            + " | ".join(cells.get(data, "–") for data in TARGETS)
            + f" | {mean} | {seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"
