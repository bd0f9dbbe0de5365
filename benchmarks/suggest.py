"""`seapeft suggest` against chance: is an adapter better when it chose which scans were labelled?

`python -m benchmarks suggest` runs what is missing of `results/suggest.json`, one adaptation at a
time, and writes `results/suggest.md`. From one shot, the same for both, each way of choosing adds
scans of the same pool until there are three, five and ten; each time a new adapter is made from all
shots so far and scored on test cases that nobody chooses from.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cell import machine
from benchmarks.scores import interval
from benchmarks.store import RESULTS
from sea_peft import AdaptOptions, adapt, suggest
from sea_peft.jobs.datajobs import make_phantoms
from sea_peft.loop.events import Scored

STEPS, POOL, TESTS = 60, 24, 6
SIZES = (1, 3, 5, 10)
SEEDS = (1, 2, 3)
TARGETS = ("low-dose-ct", "mr-t1", "paediatric-ct")
ARMS = ("random", "suggest")
_NOT_ASKED = {
    arm: Scored(arm=arm, dice=None, per_label={}, per_case={}, seconds=0.0)
    for arm in ("unadapted", "head_only")
}


def measure() -> Path:
    """What is missing, and the table."""
    path = RESULTS / "suggest.json"
    rows: list[dict[str, Any]] = (
        json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    )
    for row in _rows(rows):
        rows.append(row)
        found = {"machine": machine(), "steps": STEPS, "pool": POOL, "tests": TESTS, "rows": rows}
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(_table(rows), encoding="utf-8")
    path.with_suffix(".md").write_text(_table(rows), encoding="utf-8")
    return path


def _rows(there: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Those that are missing. A row says which scans are labelled next, so that nothing but
    rows is needed to go on.
    """
    known = {(row["target"], row["seed"], row["arm"], row["shots"]): row for row in there}
    with tempfile.TemporaryDirectory() as folder:
        for target in TARGETS:
            for seed in SEEDS:
                data = Path(folder) / target
                order = np.random.default_rng([seed, 5]).permutation(POOL)
                for arm in ARMS:
                    chosen = [int(order[0])]
                    for size in SIZES:
                        key = (target, seed, ARMS[0] if size == 1 else arm, size)
                        if arm == "random":
                            chosen = order[:size].tolist()
                        if key not in known:
                            if not data.is_dir():
                                make_phantoms(target, data, POOL + TESTS)
                            known[key] = dict(
                                zip(("target", "seed", "arm", "shots"), key, strict=True)
                            )
                            known[key] |= _run(
                                data, seed, chosen, Path(folder), more=size < SIZES[-1]
                            )
                            yield known[key]
                        chosen = [*chosen, *known[key]["next"]]


def _run(data: Path, seed: int, chosen: Sequence[int], folder: Path, more: bool) -> dict[str, Any]:
    """Adapt with these shots. `more`: whether scans are to be suggested."""
    images = sorted((data / "imagesTr").glob("*.nii.gz"))
    names = [path.name.removesuffix("_0000.nii.gz") for path in images]
    split = folder / "split.json"
    split.write_text(json.dumps({"support": [names[i] for i in chosen], "test": names[POOL:]}))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        run = Path(scratch) / "run"
        # what the unadapted network and the head alone reach is not asked for here, so neither is
        # fitted and scored
        result = adapt(
            AdaptOptions(
                data=str(data),
                split=split,
                backbone="unet",
                policy="cheapest",
                steps=STEPS,
                budget="1%",
                seed=seed,
                augment="grey",
                device="cpu",
                mlflow=False,
                out=run,
            ),
            baselines=_NOT_ASKED,
        )
        row: dict[str, Any] = {
            "chosen": list(chosen),
            "dice": result.dice.adapted,
            "per_label": dict(result.dice.per_label),
            "next": [],
        }
        if more:
            step = SIZES[SIZES.index(len(chosen)) + 1] - len(chosen)
            left = [path for i, path in enumerate(images[:POOL]) if i not in chosen]
            found = suggest(run, left, step, use="adapted", device="cpu")
            place = {name: i for i, name in enumerate(names)}
            ranked = [*found.suggested, *found.others]
            row["next"] = [place[each.scan] for each in found.suggested]
            row["ranking"] = [
                [place[each.scan], each.expected_dice, each.distance] for each in ranked
            ]
    return row


def _table(rows: Sequence[dict[str, Any]]) -> str:
    dice = {(row["target"], row["seed"], row["arm"], row["shots"]): row["dice"] for row in rows}
    lines = [
        "# Which scans to label next",
        "",
        (
            f"Made by `python -m benchmarks suggest`: UNet, cheapest first, 1%, {STEPS} steps;"
            f" pools of {POOL} phantoms, {TESTS} other test cases. From one shot, drawn at random,"
            " two scans are added, then two more, then five: by `seapeft suggest` with the adapter made"
            " from the shots so far, or at random. Mean Dice of the adapter on the test cases; ±:"
            " standard deviation over seeds of the difference."
        ),
        "",
        "| target | shots | random | suggest | difference in points | seeds |",
        "|---|---|---|---|---|---|",
    ]
    every = []
    for target in TARGETS:
        alone = [
            dice[target, seed, "random", 1] for seed in SEEDS if (target, seed, "random", 1) in dice
        ]
        if alone:
            lines.append(
                f"| {target} | 1 | {statistics.fmean(alone):.3f} | the same | | {len(alone)} |"
            )
        for size in SIZES[1:]:
            pairs = [
                (dice[target, seed, "random", size], dice[target, seed, "suggest", size])
                for seed in SEEDS
                if all((target, seed, arm, size) in dice for arm in ARMS)
            ]
            if not pairs:
                continue
            differences = [100 * (ours - chance) for chance, ours in pairs]
            every += differences
            spread = f" ± {statistics.stdev(differences):.1f}" if len(pairs) > 1 else ""
            chance, ours = (statistics.fmean(column) for column in zip(*pairs, strict=True))
            lines.append(
                f"| {target} | {size} | {chance:.3f} | {ours:.3f} |"
                f" {statistics.fmean(differences):+.1f}{spread} | {len(pairs)} |"
            )
    if every:
        half = interval(every)
        within = (
            ""
            if half is None
            else f" ± {half:.1f} (half of the 95 % interval; pairs of one seed are not independent)"
        )
        ahead = sum(value > 0 for value in every)
        lines += [
            "",
            (
                f"Over all {len(every)} pairs: {statistics.fmean(every):+.1f} points{within}; ahead"
                f" in {ahead}."
            ),
        ]
    return "\n".join(lines) + "\n"
