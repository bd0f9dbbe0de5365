"""What a training step costs against the one that a user would write with MONAI and HF PEFT at
equal parameters. Ratios in one process.

`python -m benchmarks step_peer` writes `results/step_peer.json` and `.md`; it needs the `peers`
extra.
"""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from monai.losses import DiceCELoss
from torch import nn

from benchmarks.cell import machine
from benchmarks.step_cost import ROUNDS, fixed_step, head, prepared, timed
from benchmarks.store import RESULTS
from sea_peft.adapters import Unit
from sea_peft.backbones.typed import Typed
from sea_peft.data.crops import CropSampler
from sea_peft.data.prepare import prepare
from sea_peft.jobs.model import open_backbone
from sea_peft.jobs.setup import Setup
from sea_peft.loop.training import Trainer

CPU = torch.device("cpu")
PEER = "MONAI + PEFT LoRA"
POLICIES = ("lora", "sea")


def measure() -> Path:
    """Steps of every arm in turn, on the two bundled abdominal backbones. Writes JSON and
    Markdown.
    """
    rows: list[dict[str, Any]] = []
    path = RESULTS / "step_peer.json"
    for backbone in ("unet", "segresnet"):
        rows += _steps(backbone)
        _write(rows, path)
    return path


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    found = {"machine": machine(), "versions": versions(), "rounds": ROUNDS, "rows": rows}
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(_page(found), encoding="utf-8")


def versions() -> dict[str, str]:
    """Of the packages that are compared."""
    return {name: metadata.version(name) for name in ("monai", "peft", "torch")}


def _page(found: Mapping[str, Any]) -> str:
    rows = found["rows"]
    lines = [
        *head("A training step against MONAI with HF PEFT", "step_peer", found),
        (
            f"{PEER}: the same network and weights, PEFT's LoRA with the units of our `lora`,"
            " MONAI's DiceCELoss, AdamW: nothing of ours but the sampler of crops. For its labels"
            " the last convolution is a new one; where a sum follows that, one of 1×1×1 comes"
            " after it."
        ),
        (
            "lora: the policy at 1%, at the convolutions that PEFT can adapt: no transposed ones,"
            " and not the last. sea: what the policy opens first."
        ),
        "Lowest to highest: of the ratios step by step.",
        "",
        "| backbone | trained | parameters | CPU s a step | of the peer's | lowest to highest |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        peer = next(x for x in rows if x["backbone"] == r["backbone"] and x["arm"] == PEER)
        ratios = sorted(
            own / its for own, its in zip(r["seconds_all"], peer["seconds_all"], strict=True)
        )
        spread = "" if r is peer else f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        lines.append(
            f"| {r['backbone']} | {r['arm']} | {r['parameters']:,} | {r['seconds']:.3f} |"
            f" {statistics.median(ratios):.2f} | {spread} |"
        )
    return "\n".join(lines) + "\n"


def arms(
    backbone: str, device: torch.device = CPU, mixed_precision: bool = False
) -> tuple[dict[str, Callable[[int], object]], dict[str, int]]:
    """Arm → its training step, and arm → its parameters, on the same crops. Both as for `Peer`."""
    steps: dict[str, Callable[[int], object]] = {}
    parameters: dict[str, int] = {}
    crops: CropSampler | None = None
    for policy in POLICIES:
        setup = prepared(backbone, policy, str(device))
        if crops is None:
            shots = [
                prepare(c, setup.recipe, setup.dataset.channels, setup.dataset.labels)
                for c in setup.split.support
            ]
            crops = CropSampler(shots, setup.window, 0)
        units = opened_first(setup)
        if policy == "lora":
            units = {
                u
                for u in units
                if (site := setup.space.by_id[u].site).kind == "conv" and site.stage != "head"
            }
            network = open_backbone(Typed(backbone=backbone)).pretrained.network
            peer = Peer(
                network,
                [setup.space.by_id[unit] for unit in units],
                setup.model.head_path,
                setup.model.head.classes,
                len(setup.dataset.labels),
                device,
                mixed_precision,
            )
            steps[PEER] = functools.partial(peer.step, crops, setup.settings.batch_size)
            parameters[PEER] = sum(p.numel() for p in peer.trained)
        trainer = Trainer(setup.model, setup.settings.batch_size, mixed_precision=mixed_precision)
        steps[policy] = functools.partial(fixed_step, trainer, units, crops)
        parameters[policy] = setup.space.head + sum(setup.space.by_id[u].cost for u in units)
    return steps, parameters


def _steps(backbone: str) -> list[dict[str, Any]]:
    steps, parameters = arms(backbone)
    seconds = timed(steps)
    return [
        {
            "backbone": backbone,
            "arm": arm,
            "parameters": parameters[arm],
            "seconds": statistics.median(seconds[arm]),
            "seconds_all": seconds[arm],
        }
        for arm in steps
    ]


def opened_first(setup: Setup) -> set[str]:
    """The units that the run's policy opens before anything is measured, every unit of the same
    promise.
    """
    chooser = setup.policy
    if chooser.needs_saliency(0):
        chooser.told_saliency(0, dict.fromkeys(chooser.needs_saliency(0), 1.0))
    return set(chooser.allocate(0).open)


class Peer:
    """A network with PEFT's LoRA, and the training step of MONAI's tutorials.

    `network`: without hooks of ours. `units`: LoRA units whose sites and ranks it gets. `last`:
    path of its last convolution, which is replaced; None: a convolution of its `classes` outputs
    follows. `labels`: how many. `mixed_precision`: forward in bfloat16, loss and parameters in
    float32.
    """

    def __init__(
        self,
        network: nn.Module,
        units: Sequence[Unit],
        last: str | None,
        classes: int,
        labels: int,
        device: torch.device = CPU,
        mixed_precision: bool = False,
    ) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        ranks = {unit.site.path: unit.level for unit in units}
        config = LoraConfig(
            r=1, lora_alpha=1, target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=ranks
        )
        inject_adapter_in_model(config, network)
        if last is None:
            network = nn.Sequential(network, nn.Conv3d(classes, 1 + labels, 1))
            last = "1"
        else:
            parent, _, name = last.rpartition(".")
            head = network.get_submodule(last)
            assert isinstance(head, nn.Conv3d)
            kernel: Any = head.kernel_size
            padding: Any = head.padding
            fresh = nn.Conv3d(head.in_channels, 1 + labels, kernel, padding=padding)
            network.get_submodule(parent).add_module(name, fresh)
        self.network = network.to(device)
        self.device, self.mixed_precision = device, mixed_precision
        for path, parameter in self.network.named_parameters():
            parameter.requires_grad = "lora_" in path or path.startswith(last)
        self.trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-2, weight_decay=0.0)
        self.loss = DiceCELoss(to_onehot_y=True, softmax=True)
        self.network.train()

    def step(self, crops: CropSampler, batch_size: int, step: int) -> float:
        """Returns the loss."""
        images, labels = crops.batch(step, batch_size)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed_precision):
            logits = self.network(images.to(self.device))
        loss = self.loss(logits.float(), labels.to(self.device)[:, None].long())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())
