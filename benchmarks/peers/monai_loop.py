"""`python -m benchmarks.peers.monai_loop ROOT OUT SECONDS full|lora|scratch`: the loop that a
user of MONAI would write. Imports nothing of ours.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from monai import transforms as mt
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.utils import set_determinism
from safetensors.torch import load_file
from torch import nn

RATE, LORA_RATE = 1e-3, 1e-2
RANKS = (16, 8, 4, 2, 1)
LAST = "model.2.1.conv.unit0.conv"


def main(root: Path, out: Path, seconds: float, arm: str) -> None:
    """Train for so many CPU seconds, then a mask of every test case."""
    began = time.process_time()
    task: dict[str, Any] = json.loads((root / "task.json").read_text(encoding="utf-8"))
    set_determinism(task["seed"])
    torch.set_num_threads(1)
    raw = root / "raw" / "Dataset001_Peers"
    network = _network(task, arm)
    trained = [p for p in network.parameters() if p.requires_grad]
    read = _read(task)
    shots = [
        {"image": str(image), "label": str(raw / "labelsTr" / image.name.replace("_0000", ""))}
        for image in sorted((raw / "imagesTr").iterdir())
    ]
    prepared = [mt.Compose(read)(shot) for shot in shots]
    loader = DataLoader(Dataset(prepared, mt.Compose(_augment(task))), batch_size=1, shuffle=True)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW(trained, lr=LORA_RATE if arm == "lora" else RATE)
    first_rate, steps = optimizer.param_groups[0]["lr"], 0
    network.train()
    while True:
        for batch in loader:
            spent = (time.process_time() - began) / seconds
            if spent >= 1:
                break
            optimizer.param_groups[0]["lr"] = first_rate * 0.5 * (1 + math.cos(math.pi * spent))
            optimizer.zero_grad()
            loss_of(network(batch["image"].as_tensor()), batch["label"].as_tensor()).backward()
            optimizer.step()
            steps += 1
        else:
            continue
        break
    _predict(network, task, raw / "imagesTs", out)
    counted = {"parameters": sum(p.numel() for p in trained), "steps": steps}
    (out / "trained.json").write_text(json.dumps(counted), encoding="utf-8")


def _network(task: dict[str, Any], arm: str) -> nn.Module:
    """The U-Net with the pretrained tensors that fit; where labels differ, the last two layers
    begin at random.
    """
    card = json.loads(Path(task["card"]).read_text(encoding="utf-8"))
    channels = card["kwargs"]["channels"]
    network: nn.Module = UNet(
        3,
        1,
        task["classes"],
        channels,
        (2,) * (len(channels) - 1),
        num_res_units=2,
        norm="instance",
    )
    if arm == "scratch":
        return network
    own, weights = network.state_dict(), load_file(task["weights"])
    fitting = {name: tensor for name, tensor in weights.items() if tensor.shape == own[name].shape}
    network.load_state_dict(own | fitting)
    if arm == "full":
        return network
    random = {name.rpartition(".")[0] for name in own.keys() - fitting.keys()}
    return _with_lora(network, {LAST} | random, task["most_parameters"])


def _with_lora(network: nn.Module, whole: set[str], most: int) -> nn.Module:
    """LoRA at every convolution that PEFT can adapt, at the highest rank that fits, and the
    layers in `whole` trained as they are.
    """
    from peft import LoraConfig, inject_adapter_in_model

    sites = {
        n: m for n, m in network.named_modules() if isinstance(m, nn.Conv3d) and n not in whole
    }
    as_they_are = sum(p.numel() for name in whole for p in network.get_submodule(name).parameters())
    each = sum(c.in_channels * math.prod(c.kernel_size) + c.out_channels for c in sites.values())
    rank = next(rank for rank in RANKS if as_they_are + rank * each <= most)
    adapted = inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(sites)), network
    )
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad = "lora_" in name or name.rpartition(".")[0] in whole
    return adapted


def _read(task: dict[str, Any]) -> list[Any]:
    name, arguments = task["intensity"]
    return [
        mt.LoadImaged(("image", "label"), ensure_channel_first=True, allow_missing_keys=True),
        mt.Orientationd(("image", "label"), axcodes="RAS", allow_missing_keys=True),
        mt.Spacingd("image", pixdim=task["spacing"], mode="bilinear"),
        mt.Spacingd("label", pixdim=task["spacing"], mode="nearest", allow_missing_keys=True),
        getattr(mt, name)("image", **arguments),
    ]


def _augment(task: dict[str, Any]) -> list[Any]:
    both, patch = ("image", "label"), task["patch"]
    return [
        mt.SpatialPadd(both, patch),
        mt.RandCropByPosNegLabeld(
            both, label_key="label", spatial_size=patch, pos=1, neg=1, num_samples=task["batch"]
        ),
        mt.RandAffined(
            both,
            prob=0.5,
            rotate_range=(0.2,) * 3,
            scale_range=(0.15,) * 3,
            mode=("bilinear", "nearest"),
            padding_mode="border",
        ),
        mt.RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.4)),
        mt.RandGaussianNoised("image", prob=0.15, std=0.05),
        mt.RandScaleIntensityd("image", factors=0.1, prob=0.5),
        mt.RandShiftIntensityd("image", offsets=0.1, prob=0.5),
    ]


def _predict(network: nn.Module, task: dict[str, Any], images: Path, out: Path) -> None:
    network.eval()
    read = mt.Compose(_read(task))
    back = mt.Compose(
        [
            mt.Invertd(
                "mask", transform=read, orig_keys="image", nearest_interp=False, to_tensor=True
            ),
            mt.AsDiscreted("mask", argmax=True),
            mt.SaveImaged(
                "mask",
                output_dir=out,
                output_postfix="",
                separate_folder=False,
                output_dtype="uint8",
                print_log=False,
                resample=False,
            ),
        ]
    )
    for path in sorted(images.iterdir()):
        for item in DataLoader(Dataset([{"image": str(path)}], read), batch_size=1):
            with torch.no_grad():
                item["mask"] = sliding_window_inference(
                    item["image"], task["patch"], 4, network, overlap=0.5, mode="gaussian"
                ).softmax(1)
            for one in decollate_batch(item):
                one["mask"] = MetaTensor(
                    one["mask"],
                    meta=one["image"].meta,
                    applied_operations=one["image"].applied_operations,
                )
                back(one)
        (out / path.name).rename(out / path.name.replace("_0000", ""))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
