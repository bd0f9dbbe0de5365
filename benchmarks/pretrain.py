"""Makes the weights that come with the package: `python -m benchmarks.pretrain segresnet` (or `unet`).

Trains on source phantoms only, without any augmentation beyond the crop sampler's slight grey value jitter:
weights that had seen other scanners would leave the targets nothing to ask for. Writes
`phantom_<architecture>.safetensors` (half precision) and its card beside it. The Dice on the card is that of
the half-precision weights.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from torch import nn

from sea_peft.backbones import architecture
from sea_peft.backbones.weights import save_weights
from sea_peft.data.crops import CropSampler
from sea_peft.data.phantom import LABELS, SOURCE, PhantomCase, phantom_dataset
from sea_peft.data.prepare import Scan, prepare
from sea_peft.data.recipe import Recipe, Window

BUNDLED = Path(__file__).parents[1] / "sea_peft" / "backbones" / "bundled"
RECIPE = Recipe(spacing=(5.0, 5.0, 5.0), intensity=Window(low=-175.0, high=250.0), crop_foreground=False)
PATCH = (48, 48, 32)
CODES = {name: (code,) for name, code in LABELS.items()}
KWARGS: dict[str, dict[str, Any]] = {
    "segresnet": {
        "init_filters": 16,
        "blocks_down": [1, 2, 2, 4],
        "blocks_up": [1, 1, 1],
        "dropout_prob": 0.0,
    },
    "unet": {"channels": [16, 32, 64, 128, 256]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture", choices=sorted(KWARGS))
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--cases", type=int, default=160)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=300)
    parser.add_argument("--out", type=Path, default=BUNDLED)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    started = time.time()
    scans = [prepare(PhantomCase(SOURCE, i), RECIPE, ("CT",), CODES) for i in range(args.cases)]
    tests = [prepare(case, RECIPE, ("CT",), CODES) for case in phantom_dataset("source").test_cases]
    print(f"{args.cases} cases in {time.time() - started:.0f} s", flush=True)
    network = architecture(args.architecture).build(
        in_channels=1, out_channels=len(LABELS) + 1, **KWARGS[args.architecture]
    )
    sampler = CropSampler(scans, PATCH, args.seed)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.lr, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, args.steps))
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
            print(f"step {step + 1} loss {np.mean(recent[-50:]):.4f} {time.time() - started:.0f} s", flush=True)
        last = step + 1 == args.steps
        if last or (step + 1) % args.save_every == 0:
            training = {
                "command": f"python -m benchmarks.pretrain {args.architecture} --steps {args.steps} "
                f"--batch {args.batch} --cases {args.cases} --lr {args.lr} --seed {args.seed} "
                f"--threads {args.threads}",
                "complete": last,
                "data": f"phantom source, patients 0 to {args.cases - 1}",
                "seed": args.seed,
                "cases": args.cases,
                "steps": step + 1,
                "batch": args.batch,
                "optimizer": f"AdamW, lr {args.lr}, weight decay 1e-5, warm-up and cosine, clip 1",
                "loss": "Dice and cross-entropy",
                "seconds": round(time.time() - started),
                "machine": f"{platform.machine()} CPU, {args.threads} threads, torch {torch.__version__}",
            }
            _save(args.architecture, network, tests if last else tests[:4], training, args.out)


def dice_per_label(network: nn.Module, scans: list[Scan], labels: tuple[str, ...]) -> dict[str, float]:
    """Mean Dice over the cases that hold the label; sliding window over the recipe's grid, argmax."""
    scores: dict[str, list[float]] = {name: [] for name in labels}
    network.eval()
    with torch.inference_mode():
        for scan in scans:
            assert scan.label is not None
            logits = sliding_window_inference(scan.image[None], PATCH, 4, network, overlap=0.25, mode="gaussian")
            predicted = torch.as_tensor(logits).argmax(1)[0]
            for index, name in enumerate(labels, start=1):
                p, t = predicted == index, scan.label == index
                if t.any():
                    scores[name].append(float(2 * (p & t).sum() / (p.sum() + t.sum())))
    network.train()
    return {name: float(np.mean(s)) if s else math.nan for name, s in scores.items()}


def _warm_cosine(step: int, steps: int, warm: int = 50) -> float:
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _save(name: str, network: nn.Module, tests: list[Scan], training: dict[str, Any], out: Path) -> None:
    """Writes weights and card, scored as they will be loaded: in half precision."""
    whole = {k: v.detach().clone() for k, v in network.state_dict().items()}
    network.load_state_dict({k: v.half().float() for k, v in whole.items()})
    dice = dice_per_label(network, tests, tuple(LABELS))
    network.load_state_dict(whole)
    mean = float(np.mean(list(dice.values())))
    card = {
        "name": f"phantom_{name}",
        "architecture": name,
        "kwargs": KWARGS[name],
        "labels": ["background", *LABELS],
        "channels": ["CT"],
        "recipe": RECIPE.model_dump(mode="json"),
        "patch": PATCH,
        "licence": "Apache-2.0",
        "source": "trained on the embedded phantoms by benchmarks/pretrain.py",
        "paper": architecture(name).paper,
        "training": {**training, "test_cases": len(tests)},
        "dice": {"mean": round(mean, 4), **{k: round(v, 4) for k, v in dice.items()}},
    }
    save_weights(out, network, card, half=True)
    print(f"step {training['steps']} Dice {mean:.4f} {card['dice']}", flush=True)


if __name__ == "__main__":
    main()
