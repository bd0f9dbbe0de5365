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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cell import machine
from benchmarks.scores import interval
from benchmarks.store import RESULTS
from sea_peft import AdaptOptions, adapt, suggest
from sea_peft.jobs.datajobs import make_phantoms
from sea_peft.loop.events import Scored

STEPS = 60
SIZES = (1, 3, 5, 10)
SEEDS = (1, 2, 3)
# pool → scanners or patients in it: scans that may be labelled, and test cases
POOLS = {
    "low-dose-ct": {"low-dose-ct": (24, 6)},
    "mr-t1": {"mr-t1": (24, 6)},
    "paediatric-ct": {"paediatric-ct": (24, 6)},
    "mixed": {"low-dose-ct": (16, 2), "paediatric-ct": (4, 2), "sharp-kernel-metal": (4, 2)},
}
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
        found = {"machine": machine(), "steps": STEPS, "pools": POOLS, "rows": rows}
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
        for target, scanners in POOLS.items():
            data = Path(folder) / target
            written: tuple[list[str], list[str]] | None = None
            for seed in SEEDS:
                order = np.random.default_rng([seed, 5]).permutation(
                    sum(scans for scans, _ in scanners.values())
                )
                for arm in ARMS:
                    chosen = [int(order[0])]
                    for size in SIZES:
                        key = (target, seed, ARMS[0] if size == 1 else arm, size)
                        if arm == "random":
                            chosen = order[:size].tolist()
                        if key not in known:
                            written = written or _write(scanners, data)
                            known[key] = dict(
                                zip(("target", "seed", "arm", "shots"), key, strict=True)
                            )
                            known[key] |= _run(data, *written, seed, chosen, more=size < SIZES[-1])
                            yield known[key]
                        chosen = [*chosen, *known[key]["next"]]


def _write(scanners: Mapping[str, tuple[int, int]], data: Path) -> tuple[list[str], list[str]]:
    """One data set of all of them, of different patients. Names of the scans that may be labelled,
    and of the test cases.
    """
    pool: list[str] = []
    tests: list[str] = []
    for name, (scans, tested) in scanners.items():
        part = data.with_name(f"{data.name}-{name}") if pool else data
        make_phantoms(name, part, scans + tested, skip=len(pool) + len(tests))
        labels = sorted((part / "labelsTr").glob(f"{name}_*.nii.gz"))
        for folder in () if part == data else ("imagesTr", "labelsTr"):
            for file in (part / folder).iterdir():
                file.rename(data / folder / file.name)
        names = [label.name.removesuffix(".nii.gz") for label in labels]
        pool += names[:scans]
        tests += names[scans:]
    return pool, tests


def _run(
    data: Path,
    pool: Sequence[str],
    tests: Sequence[str],
    seed: int,
    chosen: Sequence[int],
    more: bool,
) -> dict[str, Any]:
    """Adapt with these shots of the pool. `more`: whether scans are to be suggested."""
    with tempfile.TemporaryDirectory() as scratch:
        split = Path(scratch) / "split.json"
        split.write_text(json.dumps({"support": [pool[i] for i in chosen], "test": list(tests)}))
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
            images = [data / "imagesTr" / f"{name}_0000.nii.gz" for name in pool]
            left = [image for i, image in enumerate(images) if i not in chosen]
            found = suggest(run, left, step, use="adapted", device="cpu")
            place = {name: i for i, name in enumerate(pool)}
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
            " pools of 24 phantoms, 6 other test cases. mixed: two thirds of the pool low-dose-ct,"
            " a sixth each paediatric-ct and sharp-kernel-metal; the test cases a third each. From"
            " one shot, drawn at random, two scans are added, then two more, then five: by"
            " `seapeft suggest` with the adapter made from the shots so far, or at random. Mean"
            " Dice of the adapter on the test cases; ±: standard deviation over seeds of the"
            " difference."
        ),
        "",
        "| target | shots | random | suggest | difference in points | seeds |",
        "|---|---|---|---|---|---|",
    ]
    every: dict[str, list[float]] = {"one scanner": [], "three": []}
    for target, scanners in POOLS.items():
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
            every["one scanner" if len(scanners) == 1 else "three"] += differences
            spread = f" ± {statistics.stdev(differences):.1f}" if len(pairs) > 1 else ""
            chance, ours = (statistics.fmean(column) for column in zip(*pairs, strict=True))
            lines.append(
                f"| {target} | {size} | {chance:.3f} | {ours:.3f} |"
                f" {statistics.fmean(differences):+.1f}{spread} | {len(pairs)} |"
            )
    lines += ["", *(_together(scanners, found) for scanners, found in every.items() if found)]
    return "\n".join(lines) + "\n"


def _together(scanners: str, differences: Sequence[float]) -> str:
    half = interval(differences)
    within = (
        ""
        if half is None
        else f" ± {half:.1f} (half of the 95 % interval; pairs of one seed are not independent)"
    )
    return (
        f"- {len(differences)} pairs from pools of {scanners}:"
        f" {statistics.fmean(differences):+.1f} points{within}; ahead in"
        f" {sum(value > 0 for value in differences)}."
    )
