"""Do unlabelled scans of the target pay? Self-training against the same number of further steps on
the shots alone.

`python -m benchmarks unlabelled` runs what is missing of `results/unlabelled.json`, a task at a
time, and writes `results/unlabelled.md`. An adapter is trained as usual and labels further scans.
Then its units are trained as many steps again: on the shots alone; on shots and those scans, half
of the crops each; and the same without the voxels that the adapter is not sure of. Crops are
augmented, so the network learns to say of a changed crop what it said of the scan (after FixMatch,
arXiv 2001.07685). Development set and seed are those of `ideas`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.cell import machine
from benchmarks.ideas import SEED, STEPS, TARGETS, scored
from benchmarks.store import RESULTS
from sea_peft import AdaptOptions
from sea_peft.backbones import batch_for_masks
from sea_peft.data.cases import Case
from sea_peft.data.codes import IGNORED
from sea_peft.data.crops import CropSampler
from sea_peft.data.prepare import Scan, prepare
from sea_peft.jobs.datajobs import make_phantoms
from sea_peft.jobs.inference import probabilities
from sea_peft.jobs.setup import Setup, prepare_run
from sea_peft.jobs.shots import prepared_shots
from sea_peft.jobs.target import open_data
from sea_peft.loop.controller import Controller
from sea_peft.loop.events import ignore
from sea_peft.loop.training import Trainer, warm_up_cosine

SHOTS = (1, 5)
SCANS, SURE = 20, 0.8
_AFTER = 100  # phantom patients that no data set holds
_WARM_UP = 10
ARMS = {
    "usual": "as usual",
    "longer": "then the shots again",
    "plain": "then shots and scans",
    "sure": "then shots and scans, sure voxels",
}


def measure() -> Path:
    """What is missing, and the table. Targets that are not there are left out."""
    path = RESULTS / "unlabelled.json"
    rows: list[dict[str, Any]] = (
        json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    )
    for shots in SHOTS:
        for data, asked in TARGETS.items():
            known = (shots, data) in {(row["shots"], row["data"]) for row in rows}
            if known or not (data.startswith("phantom:") or Path(data).is_dir()):
                continue
            rows.append({"data": data, "shots": shots, "dice": _dice(data, shots, asked)})
            found = {"machine": machine(), "steps": STEPS, "seed": SEED, "rows": rows}
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            path.with_suffix(".md").write_text(_table(rows), encoding="utf-8")
    path.with_suffix(".md").write_text(_table(rows), encoding="utf-8")
    return path


def _dice(data: str, shots: int, asked: Mapping[str, Any]) -> dict[str, float]:
    """Arm → Dice on the development cases."""
    options = AdaptOptions(
        data=data,
        backbone="unet",
        policy="cheapest",
        steps=STEPS,
        shots=shots,
        budget="1%",
        seed=SEED,
        mlflow=False,
        **asked,
    )
    setup = prepare_run(options, lambda _: None)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        drawn = prepared_shots(setup, folder, ignore, lambda _: None)
        model, head = setup.model, setup.space.head > 0
        Controller(
            model, setup.space, setup.fresh_policy(), drawn, setup.settings, SEED, train_head=head
        ).run()
        dice = {"usual": scored(setup, folder)}
        units = tuple(model.bank.active)
        taught = copy.deepcopy((model.bank.state_dict(units), model.head.state_dict()))
        labelled = [_labelled(setup, case, folder) for case in _others(setup, data, folder)]
        own = list(drawn.all) * (SCANS // len(drawn.all))
        for arm, scans in {
            "longer": drawn.all,
            "plain": [*own, *(scan for scan, _ in labelled)],
            "sure": [*own, *(_without(scan, doubtful) for scan, doubtful in labelled)],
        }.items():
            model.bank.load_state_dict(taught[0])
            model.head.load_state_dict(taught[1])
            crops = CropSampler(scans, setup.window, SEED + 3, setup.settings.augmentation)
            schedule = functools.partial(warm_up_cosine, total=STEPS, over=_WARM_UP)
            trainer = Trainer(model, setup.settings.batch_size, head)
            trainer.train(units, crops, 0, STEPS, schedule, lambda _step, _loss: None)
            dice[arm] = scored(setup, folder)
    return dice


def _others(setup: Setup, data: str, folder: Path) -> Sequence[Case]:
    """Scans of the same target that are neither shots nor scored. Nothing reads their labels."""
    if data.startswith("phantom:"):
        make_phantoms(data.removeprefix("phantom:"), folder / "more", SCANS, skip=_AFTER)
        return open_data(str(folder / "more")).cases
    seen = {case.id for case in (*setup.split.shots, *setup.split.test)}
    return [case for case in setup.dataset.cases if case.id not in seen][:SCANS]


def _labelled(setup: Setup, case: Case, folder: Path) -> tuple[Scan, torch.Tensor]:
    """The scan with the adapter's mask as its label, and where the adapter is not sure."""
    scan = prepare(case, setup.recipe, setup.dataset.channels)
    batch = batch_for_masks(setup.model.backbone)
    (output,) = probabilities(setup.model, scan, setup.window, setup.device, batch, folder)
    best, mask = output.read(0, output.shape[1]).max(dim=0)
    return dataclasses.replace(scan, label=mask.to(torch.uint8)), best < SURE


def _without(scan: Scan, doubtful: torch.Tensor) -> Scan:
    assert scan.label is not None
    return dataclasses.replace(scan, label=scan.label.masked_fill(doubtful, IGNORED))


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "# Unlabelled scans of the target",
        "",
        (
            f"Made by `python -m benchmarks unlabelled`: UNet, 1%, cheapest first, {STEPS} steps,"
            f" seed {SEED}; then {STEPS} steps more, on the shots alone or on shots and {SCANS}"
            " scans that the adapter has labelled itself. Sure: only voxels of which it gives a"
            f" label at least {SURE:g}. Mean Dice on the development set, and in brackets the"
            " difference in points to the same number of steps on the shots alone. One seed: a"
            " difference below a point says nothing by itself."
        ),
        "",
        "| target | shots | " + " | ".join(ARMS.values()) + " |",
        "|---|---|" + "---|" * len(ARMS),
    ]
    for row in rows:
        name, dice = row["data"].rpartition(":")[2].rpartition("/")[2], row["dice"]
        cells = [f"{dice[arm]:.3f}" + _points(dice[arm] - dice["longer"], arm) for arm in ARMS]
        lines.append(f"| {name} | {row['shots']} | " + " | ".join(cells) + " |")
    for shots in SHOTS:
        own = [row["dice"] for row in rows if row["shots"] == shots]
        if own:
            means = {arm: statistics.fmean(dice[arm] for dice in own) for arm in ARMS}
            cells = [
                f"{means[arm]:.3f}" + _points(means[arm] - means["longer"], arm) for arm in ARMS
            ]
            lines.append(f"| mean | {shots} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _points(difference: float, arm: str) -> str:
    return "" if arm == "longer" else f" ({100 * difference:+.1f})"
