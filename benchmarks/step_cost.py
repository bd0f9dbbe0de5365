"""What a training step costs: adapters under 1% against full fine-tuning, and how much of it waits for crops. Ratios in one process.

`python -m benchmarks step_cost` writes `results/step_cost.json` and `.md`.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.cell import machine
from benchmarks.store import RESULTS
from sea_peft.adapters import Adapted
from sea_peft.data.crops import CropSampler
from sea_peft.data.prepare import prepare
from sea_peft.jobs.setup import AdaptOptions, prepare_run
from sea_peft.loop.training import Trainer

ROUNDS = 5
ARMS = ("sea", "affine_lora", "affine", "full")


def measure() -> Path:
    """Steps of every arm in turn, on the two bundled abdominal backbones. Writes JSON and Markdown."""
    rows = [row for backbone in ("segresnet", "unet") for row in _steps(backbone)]
    path = RESULTS / "step_cost.json"
    path.write_text(json.dumps({"machine": machine(), "rounds": ROUNDS, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# Cost of a training step",
        "",
        f"Made by `python -m benchmarks step_cost`: two crops of the default size, CPU time, median of {ROUNDS} steps taken in turn. "
        f"Machine: `{json.dumps(machine(), sort_keys=True)}`.",
        "Stored: bytes that the forward keeps for the backward, adapters' weights left out. Crops: share of a step spent on drawing them.",
        "",
        "| backbone | trained | parameters | s a step | of full | stored, MB | of full | crops |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        full = next(x for x in rows if x["backbone"] == r["backbone"] and x["arm"] == "full")
        lines.append(
            f"| {r['backbone']} | {r['arm']} | {r['parameters']:,} | {r['seconds']:.2f} | {r['seconds'] / full['seconds']:.2f} "
            f"| {r['stored_bytes'] / 1e6:.0f} | {r['stored_bytes'] / full['stored_bytes']:.2f} | {r['crops_share']:.1%} |"
        )
    path.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _steps(backbone: str) -> list[dict[str, Any]]:
    arms = {}
    for policy in ARMS:
        setup = prepare_run(AdaptOptions(backbone=backbone, budget="1%", policy=policy), lambda sentence: None)
        chooser = setup.policy()
        if chooser.to_promise(0):
            chooser.promised(0, dict.fromkeys(chooser.to_promise(0), 1.0))
        arms[policy] = (setup, chooser.allocate(0).open, Trainer(setup.model, setup.settings.batch_size))
    shots = [prepare(c, setup.recipe, setup.dataset.channels, setup.dataset.labels) for c in setup.split.support]
    crops = CropSampler(shots, setup.settings.patch, 0)
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for step in range(ROUNDS + 1):  # the first one warms up
        for arm, (_, units, trainer) in arms.items():
            began = time.process_time()
            trainer.train(units, crops, step, 1, lambda i: 1.0, lambda i, loss: None)
            if step:
                seconds[arm].append(time.process_time() - began)
    began = time.process_time()
    for step in range(ROUNDS):
        images, labels = crops.batch(step, 2)
    drawing = (time.process_time() - began) / ROUNDS
    rows = []
    for arm, (setup, units, trainer) in arms.items():
        median = statistics.median(seconds[arm])
        rows.append(
            {
                "backbone": backbone,
                "arm": arm,
                "parameters": setup.space.head + sum(setup.space.by_id[u].cost for u in units),
                "seconds": median,
                "seconds_all": seconds[arm],
                "stored_bytes": _stored(setup.model, trainer, images, labels),
                "crops_share": drawing / median,
            }
        )
    return rows


def _stored(model: Adapted, trainer: Trainer, images: torch.Tensor, labels: torch.Tensor) -> int:
    """Bytes of activations that one forward keeps for the backward; one storage counts once, parameters not at all."""
    kept: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = trainer.loss(model(images), labels[:, None].long())
    del loss
    return sum(kept.values())
