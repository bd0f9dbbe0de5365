"""Makes pretrained weights: `python -m benchmarks.pretrain NAME`, for instance `phantom_segresnet`.

Those that come with the package are trained on source phantoms only, without any augmentation
beyond the crop sampler's slight grey value jitter: weights that had seen other scanners would leave
the targets nothing to ask for. Those of real scans go to `build/pretrained`, where grids look for
them, and are never committed. Writes `NAME.safetensors` (half precision) and its card beside it.
The Dice on the card is that of the half-precision weights. The same command on the same machine and
thread count gives the same tensors, bit for bit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses import DiceCELoss
from torch import nn

from sea_peft.atomic import write_text
from sea_peft.backbones import architecture, batch_for_masks
from sea_peft.backbones.weights import BUNDLED, load_pretrained
from sea_peft.data.augmentation import load_augmentation
from sea_peft.data.cases import Case
from sea_peft.data.crops import CropSampler
from sea_peft.data.layouts import open_dataset
from sea_peft.data.prepare import prepare, restore
from sea_peft.data.recipe import Recipe, Window, ZScore
from sea_peft.data.sliding import SlidingWindow
from sea_peft.jobs.inference import dice_per_label, mean_dice, probabilities
from sea_peft.jobs.weights_file import save_weights
from sea_peft.phantom import PhantomCase, phantom_dataset, phantom_target

FROM_REAL_SCANS = Path("build/pretrained")
ABDOMEN = Recipe(
    spacing=(5.0, 5.0, 5.0), intensity=Window(low=-175.0, high=250.0), crop_foreground=False
)
BRAIN = Recipe(spacing=(3.0, 3.0, 3.0), intensity=ZScore(), crop_foreground=False)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one file is trained on.

    Attributes:
        architecture: its name.
        kwargs: of the architecture.
        steps: those that the file is made with, as `threads` and `lr` are.
        source: a phantom, or the folder of a data set.
        cases: of a data set, the ids that are trained on; all others are test cases. Of a phantom,
            patients are counted.
        augment: as `seapeft adapt --augment` takes it.
    """

    architecture: str
    kwargs: Mapping[str, Any]
    steps: int
    threads: int = 1
    lr: float = 1e-3
    source: str = "source"
    recipe: Recipe = ABDOMEN
    patch: tuple[int, int, int] = (48, 48, 32)
    cases: tuple[str, ...] = ()
    augment: str = "grey"
    licence: str = "Apache-2.0"

    @property
    def folder(self) -> Path:
        """Where its weights go."""
        return FROM_REAL_SCANS if self.cases else BUNDLED


@dataclasses.dataclass(frozen=True)
class _Source:
    training: list[Case]
    test: list[Case]
    channels: tuple[str, ...]
    labels: Mapping[str, tuple[int, ...]]
    described: str


PLANS = {
    "phantom_segresnet": Plan(
        "segresnet",
        {
            "init_filters": 16,
            "blocks_down": [1, 2, 2, 4],
            "blocks_up": [1, 1, 1],
            "dropout_prob": 0.0,
        },
        steps=1800,
        threads=2,
    ),
    "phantom_unet": Plan("unet", {"channels": [16, 32, 64, 128, 256]}, steps=2400),
    "phantom_mednext": Plan("mednext_s", {"init_filters": 8}, steps=1600, lr=2e-3),
    "phantom_brain_unet": Plan(
        "unet", {"channels": [16, 32, 64, 128]}, steps=1200, source="brain-source", recipe=BRAIN
    ),
    # prostates large and small; the grid leaves these patients out of the ultrasound
    "prostate_mr_unet": Plan(
        "unet",
        {"channels": [16, 32, 64, 128]},
        steps=1200,
        source="../shared/data/real/prostate_mr",
        recipe=Recipe(spacing=(0.8, 0.8, 0.8), intensity=ZScore(), crop_foreground=False),
        patch=(24, 24, 24),
        cases=("case_002", "case_004", "case_006", "case_008"),
        augment="full",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(PLANS))
    parser.add_argument("--steps", type=int, help="left out: those of the bundled file")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--cases", type=int, default=160, help="patients of a phantom")
    parser.add_argument("--lr", type=float, help="left out: that of the bundled file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="left out: those of the bundled file")
    parser.add_argument("--test-cases", type=int, default=20, help="patients of a phantom")
    parser.add_argument(
        "--out", type=Path, help=f"left out: with the package, or {FROM_REAL_SCANS} (real scans)"
    )
    parser.add_argument(
        "--score",
        action="store_true",
        help="train nothing: score the file that is there and renew its card's Dice",
    )
    args = parser.parse_args()
    plan = PLANS[args.name]
    args.out = args.out or plan.folder
    if args.score:
        rescore(args.name, args.out, args.test_cases)
        return
    args.steps = args.steps or plan.steps
    args.threads = args.threads or plan.threads
    args.lr = args.lr or plan.lr
    train(plan, args)


def train(plan: Plan, args: argparse.Namespace) -> None:
    """Trains and writes; `args` are the command's, all given."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    source = _source(plan, args.cases, args.test_cases)
    started = time.time()
    scans = [prepare(case, plan.recipe, source.channels, source.labels) for case in source.training]
    print(f"{len(scans)} cases in {time.time() - started:.0f} s", flush=True)
    network = architecture(plan.architecture).build(
        in_channels=len(source.channels), out_channels=len(source.labels) + 1, **plan.kwargs
    )
    sampler = CropSampler(
        scans, SlidingWindow(patch=plan.patch), args.seed, load_augmentation(plan.augment)
    )
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.lr, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _warm_cosine(step, args.steps)
    )
    started, recent = time.time(), []
    for step in range(args.steps):
        image, label = sampler.batch(step, args.batch)
        loss = loss_of(network(image), label[:, None].long())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent.append(float(loss.detach()))
        if (step + 1) % 50 == 0:
            print(
                f"step {step + 1} loss {np.mean(recent[-50:]):.4f} {time.time() - started:.0f} s",
                flush=True,
            )
    seconds = round(time.time() - started)
    network.load_state_dict(
        {k: v.half().float() for k, v in network.state_dict().items()}
    )  # as it will be loaded
    dice = source_dice(network, plan, source)
    counted = "" if plan.cases else f" --cases {args.cases}"
    card = {
        "name": args.name,
        "architecture": plan.architecture,
        "kwargs": plan.kwargs,
        "labels": ["background", *source.labels],
        "channels": list(source.channels),
        "recipe": plan.recipe.model_dump(mode="json"),
        "patch": plan.patch,
        "licence": plan.licence,
        "source": (
            f"trained on {'real scans' if plan.cases else 'the embedded phantoms'} by"
            " benchmarks/pretrain.py"
        ),
        "paper": architecture(plan.architecture).paper,
        "training": {
            "command": (
                f"python -m benchmarks.pretrain {args.name} --steps {args.steps} --batch"
                f" {args.batch}{counted} --lr {args.lr} --seed {args.seed} --threads"
                f" {args.threads}"
            ),
            "data": source.described,
            "seed": args.seed,
            "cases": len(scans),
            "steps": args.steps,
            "batch": args.batch,
            "optimizer": f"AdamW, lr {args.lr}, weight decay 1e-5, warm-up and cosine, clip 1",
            "loss": "Dice and cross-entropy",
            "seconds": seconds,
            "machine": (
                f"{platform.machine()} CPU, {args.threads} threads, torch {torch.__version__}"
            ),
            "test_cases": len(source.test),
        },
        "dice": dice,
    }
    save_weights(args.out, network, card, half=True)
    print(f"Dice {dice}", flush=True)


def _source(plan: Plan, cases: int, test_cases: int) -> _Source:
    """The cases of a plan; how many is asked of phantoms alone."""
    if plan.cases:
        found = open_dataset(plan.source)
        training = [case for case in found.cases if case.id in plan.cases]
        test = [case for case in found.cases if case.id not in plan.cases]
        described = f"{found.name}, cases {', '.join(case.id for case in training)}"
        return _Source(training, test, found.channels, found.labels, described)
    target, dataset = phantom_target(plan.source), phantom_dataset(plan.source, test=test_cases)
    return _Source(
        [PhantomCase(target, i) for i in range(cases)],
        list(dataset.test_cases),
        dataset.channels,
        dataset.labels,
        f"phantom {plan.source}, patients 0 to {cases - 1}",
    )


def source_dice(network: nn.Module, plan: Plan, source: _Source) -> dict[str, float]:
    """Dice on test cases of the source: `mean` over labels of the mean over cases, and each
    label's, as a run of `seapeft adapt` scores.
    """
    network.eval()
    per_case = {}
    for case in source.test:
        scan = prepare(case, plan.recipe, source.channels)
        (found,) = probabilities(
            network,
            scan,
            SlidingWindow(patch=plan.patch),
            torch.device("cpu"),
            batch_for_masks(network),
        )
        stored = case.label()
        assert stored is not None
        per_case[case.id] = dice_per_label(
            restore(found, scan.geometry), stored.array, source.labels
        )
    mean, per_label = mean_dice(per_case, tuple(source.labels))
    return {name: round(dice, 4) for name, dice in {"mean": mean, **per_label}.items()}


def rescore(name: str, folder: Path, cases: int) -> None:
    """Score the weights in `folder` again and write the Dice into their card; tensors stay."""
    card = folder / f"{name}.json"
    pretrained = load_pretrained(str(card))
    document = json.loads(card.read_text(encoding="utf-8"))
    plan = PLANS[name]
    source = _source(plan, 0, cases)
    document["dice"] = source_dice(pretrained.network, plan, source)
    document["training"]["test_cases"] = len(source.test)
    write_text(card, json.dumps(document, indent=2) + "\n")
    print(f"Dice {document['dice']}", flush=True)


def _warm_cosine(step: int, steps: int, warm: int = 50) -> float:
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


if __name__ == "__main__":
    main()
