"""Toy scans and weights, and adapters that were never trained: enough to run every job and
every grid.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from sea_peft import __version__
from sea_peft.adapters import Adapted, Unit
from sea_peft.artefacts.adapter_file import (
    AdapterConfig,
    AdapterUnit,
    ArmDice,
    BackboneIdentity,
    Recommendation,
    save_adapter,
)
from sea_peft.artefacts.profile import load_profile
from sea_peft.artefacts.record import HeadShape
from sea_peft.backbones import architecture
from sea_peft.backbones.typed import Typed
from sea_peft.backbones.weights import user_weights
from sea_peft.data.recipe import Recipe, Window
from sea_peft.data.volumes import Volume, write_volume
from sea_peft.jobs.model import adapter_tensors, audit_space, open_backbone
from sea_peft.jobs.options import AdaptOptions
from sea_peft.jobs.weights_file import save_weights

# axes run to the left, back and up, with an origin and odd voxel sizes, as scanners write them
AFFINE = np.array([[-2.1, 0, 0, 31], [0, -2.0, 0, 17], [0, 0, 2.4, -40], [0, 0, 0, 1]])
SHAPE = (21, 18, 16)
PATCH = (16, 16, 16)
# the shortest adaptation there is of the toy data, as on the command line and in Python
TINY = ["--steps", "8", "--cycles", "1", "--patch", "16,16,16", "--shots", "2", "--device", "cpu"]
SHORTEST = AdaptOptions(
    shots=2, budget="20%", steps=8, cycles=1, patch=PATCH, device="cpu", mlflow=False
)


def toy_scan(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An ellipsoid (code 1) with a bright spot (code 2) in it, in a body, in air; in Hounsfield
    units.
    """
    rng = np.random.default_rng(seed)
    grid = np.indices(SHAPE)
    distance = [
        sum(((grid[a] - SHAPE[a] / 2 - shift[a]) / (share * SHAPE[a])) ** 2 for a in range(3))
        for share, shift in (
            (0.45, (0, 0, 0)),
            (0.3, rng.uniform(-1, 1, 3)),
            (0.17, rng.uniform(-1, 1, 3)),
        )
    ]
    body, organ, spot = (d <= 1 for d in distance)
    image = np.where(body, 20.0, -1000.0) + 90 * organ + 80 * spot + rng.normal(0, 8, SHAPE)
    return image.astype(np.int16), np.where(spot, 2, organ).astype(np.uint8)


def toy_dataset(root: Path, cases: int = 5) -> Path:
    """Labelled cases in nnU-Net's layout."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for number in range(cases):
        image, label = toy_scan(number)
        write_volume(root / "imagesTr" / f"toy_{number}_0000.nii.gz", Volume(image, AFFINE))
        write_volume(root / "labelsTr" / f"toy_{number}.nii.gz", Volume(label, AFFINE))
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "organ": 1, "spot": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def tiny_weights(folder: Path) -> Path:
    """Weights of a tiny SegResNet that knows the organ and another label, with random values."""
    arch = architecture("segresnet")
    torch.manual_seed(3)
    network = arch.build(in_channels=1, out_channels=3, **arch.small)
    card = {
        "name": "tiny",
        "architecture": "segresnet",
        "kwargs": dict(arch.small),
        "labels": ["background", "organ", "other"],
        "channels": ["CT"],
        "recipe": (
            Recipe(
                spacing=(2.0, 2.0, 2.0), intensity=Window(low=-100, high=200), crop_foreground=False
            ).model_dump(mode="json")
        ),
        "patch": PATCH,
        "licence": "Apache-2.0",
    }
    return save_weights(folder, network, card, half=False).with_suffix(".safetensors")


def install(weights: Path) -> str:
    """Put weights and their card among the user's own, as `backbones import` does. Returns
    their name.
    """
    folder = user_weights()
    folder.mkdir(parents=True, exist_ok=True)
    for file in (weights, weights.with_suffix(".json")):
        shutil.copy(file, folder)
    return weights.stem


def make_adapter(
    folder: Path,
    weights: Path,
    labels: dict[str, list[int]],
    channels: list[str],
    families: tuple[str, ...],
    pick: Callable[[Sequence[Unit]], list[Unit]] | None = None,
) -> Path:
    """An adapter with one unit of each family, or those that `pick` takes, and random tensors, as
    if it had been trained.
    """
    backbone = open_backbone(Typed(weights=str(weights)))
    offers = load_profile("all").offers()
    offered = audit_space(backbone, {family: offers[family] for family in families})
    firsts = [next(unit for unit in offered if unit.family == family) for family in families]
    units = firsts if pick is None else pick(offered)
    card = backbone.pretrained.card
    rows = [card.labels.index(name) if name in card.labels else None for name in labels]
    model = Adapted(
        backbone.pretrained.network, backbone.sites, units, rows, len(card.labels), backbone.example
    )
    ids = [unit.id for unit in units]
    generator = torch.Generator().manual_seed(5)
    tensors = {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in adapter_tensors(model, ids).items()
    }
    config = AdapterConfig(
        sea_peft_version=__version__,
        backbone=BackboneIdentity(
            architecture=card.architecture,
            kwargs=card.kwargs,
            weights=card.name,
            sha256=backbone.pretrained.sha256,
            parameters=backbone.pretrained.parameters,
        ),
        labels=labels,
        channels=channels,
        recipe=card.recipe,
        window=card.window(),
        head=HeadShape(rows=rows, classes=len(card.labels), on_features=model.head.on_features),
        units=[
            AdapterUnit(
                id=u.id,
                family=u.family,
                level=u.level,
                placement=u.placement,
                path=u.site.path,
                cost=u.cost,
            )
            for u in units
        ],
        dice=ArmDice(unadapted=None, head_only=None, adapted=None),
        recommended=Recommendation(network="adapted", evidence="a toy"),
        policy="sea",
        seed=0,
        shots=2,
    )
    save_adapter(folder, config, tensors)
    return folder
