"""What a training step costs: adapters under 1% against plain full fine-tuning, and how much of it
waits for crops. Ratios in one process.

`python -m benchmarks step_cost` writes `results/step_cost.json` and `.md`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.cell import machine
from benchmarks.store import RESULTS
from sea_peft.adapters import Adapted
from sea_peft.adapters.acting import Form
from sea_peft.data.crops import CropSampler
from sea_peft.data.prepare import prepare
from sea_peft.jobs.options import AdaptOptions
from sea_peft.jobs.setup import Setup, prepare_run
from sea_peft.loop.training import Trainer, loss_from, loss_sums

ROUNDS = 5
ARMS: Mapping[str, tuple[str, Form]] = {  # policy, and how its units act while they are trained
    "sea": ("sea", "cheapest"),
    "sea, as branches": ("sea", "branches"),
    "affine_lora": ("affine_lora", "cheapest"),
    "affine_lora, as branches": ("affine_lora", "branches"),
    "affine": ("affine", "cheapest"),
}
FULL = "full"


def measure() -> Path:
    """Steps of every arm in turn, on the two bundled abdominal backbones. Writes JSON and
    Markdown.
    """
    rows = [row for backbone in ("segresnet", "unet") for row in _steps(backbone)]
    path = RESULTS / "step_cost.json"
    found = {"machine": machine(), "rounds": ROUNDS, "rows": rows}
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(_page(found), encoding="utf-8")
    return path


def head(title: str, verb: str, found: Mapping[str, Any]) -> list[str]:
    """How a page begins that compares steps. `found`: its JSON."""
    versions = "".join(f", {name} {version}" for name, version in found.get("versions", {}).items())
    return [
        f"# {title}",
        "",
        (
            f"Made by `python -m benchmarks {verb}`: two crops of the default size, the same for"
            f" all; CPU time, medians of {found['rounds']} steps in turn in one process. Machine:"
            f" `{json.dumps(found['machine'], sort_keys=True)}`{versions}."
        ),
    ]


def _page(found: Mapping[str, Any]) -> str:
    rows = found["rows"]
    lines = [
        *head("Cost of a training step", "step_cost", found),
        (
            "full: every parameter of the network trained in place, without any adapter or hook, as"
            " plain fine-tuning does it."
        ),
        (
            "As branches: no unit is folded into its site's weights while it is trained"
            " (`adapters/acting.py: worth_folding` decides that otherwise)."
        ),
        (
            "Stored: bytes that the forward keeps for the backward, parameters left out. With"
            " optimizer: gradients and AdamW's moments too. Crops: share of a step spent on drawing"
            " them."
        ),
        "",
        (
            "| backbone | trained | parameters | s a step | of full | stored, MB | of full | with"
            " optimizer, MB | of full | crops |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        full = next(x for x in rows if x["backbone"] == r["backbone"] and x["arm"] == FULL)
        lines.append(
            f"| {r['backbone']} | {r['arm']} | {r['parameters']:,} | {r['seconds']:.2f} |"
            f" {r['seconds'] / full['seconds']:.2f} | {r['stored_bytes'] / 1e6:.0f} |"
            f" {r['stored_bytes'] / full['stored_bytes']:.2f} | {r['held_bytes'] / 1e6:.0f} |"
            f" {r['held_bytes'] / full['held_bytes']:.2f} | {r['crops_share']:.1%} |"
        )
    return "\n".join(lines) + "\n"


@dataclasses.dataclass
class _FineTuning:
    """Every parameter of a network and its head trained in place: what `full` stands for,
    without its units' detour over deltas.
    """

    model: Adapted
    batch_size: int

    def __post_init__(self) -> None:
        self.model.backbone.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, weight_decay=0.0)

    def step(self, crops: CropSampler, step: int) -> None:
        images, labels = crops.batch(step, self.batch_size)
        loss = loss_from(loss_sums(self.model(images), labels))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def _steps(backbone: str) -> list[dict[str, Any]]:
    setup = prepared(backbone, "affine")
    shots = [
        prepare(c, setup.recipe, setup.dataset.channels, setup.dataset.labels)
        for c in setup.split.support
    ]
    crops = CropSampler(shots, setup.window, 0)
    tuning = _FineTuning(setup.model, setup.settings.batch_size)
    steps: dict[str, Callable[[int], None]] = {}
    stored, parameters = {}, {}
    moments: dict[
        str, Callable[[], Iterable[Mapping[str, torch.Tensor]]]
    ] = {}  # after steps were done
    images, labels = crops.batch(0, 2)
    for arm, (policy, form) in ARMS.items():
        adapted = prepared(backbone, policy)
        adapted.model.bank.form = form
        chooser = adapted.policy
        if chooser.needs_saliency(0):
            chooser.told_saliency(0, dict.fromkeys(chooser.needs_saliency(0), 1.0))
        units, trainer = (
            chooser.allocate(0).open,
            Trainer(adapted.model, adapted.settings.batch_size),
        )
        steps[arm] = functools.partial(fixed_step, trainer, units, crops)
        moments[arm] = lambda trainer=trainer: trainer.state_dict().values()  # type: ignore[misc]
        parameters[arm] = adapted.space.head + sum(adapted.space.by_id[u].cost for u in units)
        adapted.model.bank.activate(units)
        stored[arm] = _stored(adapted.model, images, labels)
    steps[FULL] = functools.partial(tuning.step, crops)
    moments[FULL] = tuning.optimizer.state.values
    parameters[FULL] = sum(p.numel() for p in tuning.model.parameters())
    stored[FULL] = _stored(tuning.model, images, labels)
    seconds = timed(steps)
    began = time.process_time()
    for step in range(ROUNDS):
        crops.batch(step, 2)
    drawing = (time.process_time() - began) / ROUNDS
    return [
        {
            "backbone": backbone,
            "arm": arm,
            "parameters": parameters[arm],
            "seconds": statistics.median(seconds[arm]),
            "seconds_all": seconds[arm],
            "stored_bytes": stored[arm],
            "held_bytes": stored[arm] + 4 * parameters[arm] + _bytes(moments[arm]()),
            "crops_share": drawing / statistics.median(seconds[arm]),
        }
        for arm in steps
    ]


def timed(steps: Mapping[str, Callable[[int], object]]) -> dict[str, list[float]]:
    """CPU seconds of `ROUNDS` steps of each arm, in turn, after one that warms up."""
    seconds: dict[str, list[float]] = {arm: [] for arm in steps}
    for step in range(ROUNDS + 1):  # the first one warms up
        for arm, run in steps.items():
            began = time.process_time()
            run(step)
            if step:
                seconds[arm].append(time.process_time() - began)
    return seconds


def _bytes(moments: Iterable[Mapping[str, torch.Tensor]]) -> int:
    return sum(tensor.nbytes for of_one in moments for tensor in of_one.values())


def prepared(backbone: str, policy: str, device: str = "cpu") -> Setup:
    """A run at 1% on the default target."""
    options = AdaptOptions(backbone=backbone, budget="1%", policy=policy, device=device)
    return prepare_run(options, lambda sentence: None)


def fixed_step(trainer: Trainer, units: Collection[str], crops: CropSampler, step: int) -> None:
    """One step with these units open."""
    trainer.train(units, crops, step, 1, lambda i: 1.0, lambda i, loss: None)


def _stored(model: Adapted, images: torch.Tensor, labels: torch.Tensor) -> int:
    """Bytes that one forward keeps for the backward; one storage counts once, parameters not at
    all.
    """
    kept: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_from(loss_sums(model(images), labels))
    del loss
    return sum(kept.values())
