"""What a user would pick instead, on the same scans: nnU-Net v2 from scratch, and plain MONAI and
Hugging Face PEFT on the same weights.

`python -m benchmarks peers` writes what is missing of `results/peers.json`, a row at a time, and
`results/peers.md`. Every arm is a process of its own on one thread. It reads the same shots from
files, trains for a given CPU time, and writes a mask of every test case; numpy scores the masks. An
arm whose package (`nnunetv2`, `peft`) is not installed is left out, and the page says so.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.cell import machine
from benchmarks.grid import Cell
from benchmarks.store import RESULTS, Store
from sea_peft import AdaptOptions
from sea_peft.data.volumes import Volume, write_volume
from sea_peft.jobs.setup import Setup, prepare_run

WEIGHTS = Path(__file__).parents[2] / "sea_peft" / "backbones" / "bundled"


@dataclasses.dataclass(frozen=True)
class Task:
    """One set of scans. `cell`: the grid's cell whose shots and test cases these are. `store`:
    where its row is. `intensity`: what a user of MONAI would write for these scans, as (transform,
    its arguments).
    """

    store: str
    cell: Cell
    intensity: tuple[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Arm:
    """`about`: in words. `module`, `arguments`: what is run. `times`: its CPU time, in that which
    `sea` took for training and audits. `package`: that it needs.
    """

    about: str
    module: str
    arguments: tuple[str, ...]
    times: int
    package: str


def _task(
    store: str, data: str, options: Mapping[str, Any], intensity: tuple[str, Mapping[str, Any]]
) -> Task:
    given = tuple(sorted({"backbone": "unet", **options}.items()))
    return Task(store, Cell(data, 5, 1, "1%", "sea", None, given), intensity)


TASKS = {
    "low-dose CT (phantom)": _task(
        "unet",
        "phantom:low-dose-ct",
        {},
        (
            "ScaleIntensityRanged",
            {"a_min": -175.0, "a_max": 250.0, "b_min": 0.0, "b_max": 1.0, "clip": True},
        ),
    ),
    "hippocampus MR": _task(
        "hippocampus",
        "../shared/data/real/msd_hippocampus",
        {"augment": "full", "spacing": (1.0, 1.0, 1.0), "steps": 480},
        (
            "ScaleIntensityRangePercentilesd",
            {"lower": 0.5, "upper": 99.5, "b_min": 0.0, "b_max": 1.0, "clip": True},
        ),
    ),
}
ARMS = {
    "nnU-Net": Arm("nnU-Net v2 from scratch, its own planning", "nnunet", (), 1, "nnunetv2"),
    "nnU-Net, 4 × the time": Arm(
        "nnU-Net v2 from scratch, its own planning", "nnunet", (), 4, "nnunetv2"
    ),
    "MONAI, all weights": Arm(
        "plain MONAI, the same pretrained U-Net, all of it trained",
        "monai_loop",
        ("full",),
        1,
        "monai",
    ),
    "PEFT LoRA": Arm(
        "the same with LoRA by Hugging Face PEFT, under 1%, and a new last layer",
        "monai_loop",
        ("lora",),
        1,
        "peft",
    ),
    "MONAI, from scratch": Arm(
        "plain MONAI, the same U-Net from random weights", "monai_loop", ("scratch",), 1, "monai"
    ),
}


def measure() -> Path:
    """What is missing and can be run here, and the page."""
    path = RESULTS / "peers.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    done = {(row["task"], row["arm"]) for row in rows}
    for name, task in TASKS.items():
        missing = [
            arm
            for arm, of in ARMS.items()
            if (name, arm) not in done and importlib.util.find_spec(of.package) is not None
        ]
        if not missing or not (
            task.cell.data.startswith("phantom:") or Path(task.cell.data).is_dir()
        ):
            continue
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            codes = _write(task, root)
            for arm in missing:
                rows.append(
                    {"task": name, "arm": arm, **_run(ARMS[arm], root, _own_seconds(task), codes)}
                )
                path.write_text(
                    json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n",
                    encoding="utf-8",
                )
                print(f"{name}: {arm}: {rows[-1]['dice']}", flush=True)
    path.with_suffix(".md").write_text(_page(rows), encoding="utf-8")
    return path


def _own_seconds(task: Task) -> float:
    """CPU seconds that `sea` took on these scans, the test cases and the head alone not counted."""
    spent = _row(task, "sea")["seconds"]
    return float(spent["cpu"] - spent["cpu_test"] - spent.get("cpu_head_only", 0.0))


def _row(task: Task, policy: str) -> dict[str, Any]:
    cell = dataclasses.replace(
        task.cell, policy=policy, budget=None if policy == "full" else task.cell.budget
    )
    row = Store(task.store).row(cell)
    if row is None:
        raise FileNotFoundError(f"{cell.name} is not there; run its grid first")
    return row


def _write(task: Task, root: Path) -> dict[str, int]:
    """Shots and test cases as an nnU-Net data set of NIfTI files, and `task.json` for the
    loops. Label name → code.
    """
    setup = _setup(task)
    codes = {name: code for code, name in enumerate(setup.dataset.labels, start=1)}
    raw = root / "raw" / "Dataset001_Peers"
    for images, labels, cases in (
        ("imagesTr", "labelsTr", setup.split.shots),
        ("imagesTs", "labelsTs", setup.split.test),
    ):
        for folder in (images, labels):
            (raw / folder).mkdir(parents=True)
        for number, case in enumerate(cases):
            write_volume(
                raw / images / f"case_{number:03d}_0000.nii.gz",
                case.image(setup.dataset.channels[0]),
            )
            stored = case.label()
            assert stored is not None, "the split holds labelled cases only"
            drawn = np.zeros(stored.array.shape, np.uint8)
            for name, of in setup.dataset.labels.items():
                drawn[np.isin(stored.array, of)] = codes[name]
            write_volume(raw / labels / f"case_{number:03d}.nii.gz", Volume(drawn, stored.affine))
    described = {
        "channel_names": {"0": "CT" if task.cell.data.startswith("phantom:") else "MR"},
        "labels": {"background": 0, **codes},
        "numTraining": len(setup.split.shots),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(described), encoding="utf-8")
    asked = {
        "spacing": list(setup.recipe.spacing or ()),
        "patch": list(setup.window.patch),
        "intensity": list(task.intensity),
        "classes": len(codes) + 1,
        "batch": setup.settings.batch_size,
        "weights": str(WEIGHTS / "phantom_unet.safetensors"),
        "card": str(WEIGHTS / "phantom_unet.json"),
        "most_parameters": setup.space.limit,
        "seed": task.cell.seed,
    }
    (root / "task.json").write_text(json.dumps(asked), encoding="utf-8")
    return codes


def _setup(task: Task) -> Setup:
    cell = task.cell
    options = AdaptOptions(
        data=cell.data,
        shots=cell.shots,
        budget=cell.budget,
        seed=cell.seed,
        mlflow=False,
        **dict(cell.options),
    )
    return prepare_run(options, lambda sentence: None)


def _run(arm: Arm, root: Path, own_seconds: float, codes: Mapping[str, int]) -> dict[str, Any]:
    """One arm in a process of its own. Raises RuntimeError with what it said where it failed."""
    out = root / "masks"
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-m", f"benchmarks.peers.{arm.module}", str(root), str(out)]
    command += [str(arm.times * own_seconds), *arm.arguments]
    began = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        _, status, usage = os.wait4(process.pid, 0)
        said.seek(0)
        if status:
            raise RuntimeError(f"{' '.join(command)} failed: {said.read().decode()[-2000:]}")
    labels = root / "raw" / "Dataset001_Peers" / "labelsTs"
    per_label = _dice(out, labels, codes)
    trained = json.loads((out / "trained.json").read_text(encoding="utf-8"))
    for mask in out.iterdir():
        mask.unlink()
    return {
        "dice": round(float(np.mean(list(per_label.values()))), 4),
        "per_label": {name: round(value, 4) for name, value in per_label.items()},
        "given_seconds": round(arm.times * own_seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "wall_seconds": round(time.monotonic() - began, 1),
        "peak_memory_bytes": usage.ru_maxrss * 1024,
        **trained,
    }


def _dice(masks: Path, labels: Path, codes: Mapping[str, int]) -> dict[str, float]:
    """Label → mean Dice over the cases that have it."""
    found: dict[str, list[float]] = {name: [] for name in codes}
    for path in sorted(labels.glob("*.nii.gz")):
        true = np.asarray(nib.load(path).dataobj)
        mask = np.asarray(nib.load(masks / path.name).dataobj)
        for name, code in codes.items():
            a, b = mask == code, true == code
            if b.any():
                found[name].append(2 * float((a & b).sum()) / float(a.sum() + b.sum()))
    return {name: float(np.mean(values)) for name, values in found.items() if values}


def _page(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# What a user would pick instead",
        "",
        (
            "Made by `python -m benchmarks peers`, with `nnunetv2` and `peft` installed beside."
            " Five shots, seed 1, one thread."
        ),
        "",
        (
            "Every arm has the shots and the test cases of `sea` as NIfTI files, and the CPU time"
            " that `sea` took for reading, training and audits"
        ),
        (
            "(or four times as much). numpy scores its masks. nnU-Net plans for itself, and does"
            " not mirror, since labels tell left from right."
        ),
        (
            "MONAI's loops train crops of our size: AdamW at 0.001 (LoRA's matrices at 0.01), Dice"
            " and cross-entropy, a cosine schedule, and random"
        ),
        (
            "rotation, scaling, contrast and noise. Nothing of them was tuned. CPU given: for"
            " reading, planning and training. CPU in all: of the whole command, prediction"
        ),
        (
            "included. Rows were made on more than one CPU, that of `sea` too, so seconds compare"
            " roughly; an arm was given what the row of `sea` said when it was run."
        ),
        "",
        (
            "A step of the network that nnU-Net plans costs seconds on one thread, so that this"
            " time buys it a few steps: the rows say what the CPU time"
        ),
        (
            "of a `sea` run is worth there, and nothing of what nnU-Net reaches when it is trained"
            " as long as it is meant to be."
        ),
        "",
        f"Machine: `{json.dumps(machine(), sort_keys=True)}`.",
    ]
    for name, task in TASKS.items():
        own = [row for row in rows if row["task"] == name]
        if not own:
            continue
        lines += [
            "",
            f"## {name}",
            "",
            "| | Dice | trained | steps of two crops | CPU s given | CPU s in all | memory, MiB |",
            "|---|---|---|---|---|---|---|",
        ]
        table = [(row["dice"], row["arm"], ARMS[row["arm"]].about, row) for row in own]
        for policy, about in (
            ("sea", "`seapeft adapt --budget 1%`"),
            ("full", "all of the backbone by our own loop (`--policy full`)"),
        ):
            ours = _row(task, policy)
            counted = {
                "steps": ours["crops"] // 2,
                "parameters": ours["parameters"]["used"],
                "given_seconds": _own_seconds(task) if policy == "sea" else None,
                "cpu_seconds": ours["seconds"]["cpu"],
                "peak_memory_bytes": ours["peak_memory_bytes"],
            }
            table.append((ours["dice"]["adapted"], policy, about, counted))
        for dice, arm, about, row in sorted(table, key=lambda entry: -entry[0]):
            given = "–" if row["given_seconds"] is None else f"{row['given_seconds']:.0f}"
            lines.append(
                f"| {arm}: {about} | {dice:.3f} | {row['parameters']:,} | {row['steps']} |"
                f" {given} | {row['cpu_seconds']:.0f} | {row['peak_memory_bytes'] >> 20} |"
            )
        left_out = [arm for arm in ARMS if arm not in {row["arm"] for row in own}]
        if left_out:
            lines += ["", f"Not run yet: {', '.join(left_out)}."]
    return "\n".join(lines) + "\n"
