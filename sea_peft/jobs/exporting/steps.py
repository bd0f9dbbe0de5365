"""Steps of a MONAI bundle: from a scan to the network's grid, the network, and from probabilities
to a mask. Needs MONAI, not sea_peft.

`seapeft export --to bundle` copies this file into the bundle's `scripts/`, beside `scans.py`.
"""

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import nn
from torch.export.passes import move_to_device_pass

try:
    from scripts.scans import to_grid, to_mask
except ImportError:
    from sea_peft.jobs.exporting.scans import to_grid, to_mask

WAY_BACK = "way_back"


class ToGridd(MapTransform):
    """A scan `[C, I, J, K]` → `[C, D, H, W]` for the network.

    `described`: the bundle's network.json. Stores under `way_back` what `ToMaskd` needs to return
    to the scan's grid.
    """

    def __init__(self, keys: KeysCollection, described: str) -> None:
        super().__init__(keys)
        self.recipe = json.loads(Path(described).read_text(encoding="utf-8"))["recipe"]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        made = dict(data)
        for key in self.key_iterator(made):
            scan = made[key]
            grid, made[WAY_BACK] = to_grid(
                list(np.asarray(scan)), np.asarray(scan.affine), self.recipe
            )
            made[key] = MetaTensor(torch.from_numpy(grid), meta=scan.meta)
        return made


class ToMaskd(MapTransform):
    """Probabilities [1 + L, D, H, W] → a mask [1, I, J, K] on the grid of the scan under `like`."""

    def __init__(self, keys: KeysCollection, described: str, like: str) -> None:
        super().__init__(keys)
        self.network = json.loads(Path(described).read_text(encoding="utf-8"))
        self.like = like

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        made = dict(data)
        for key in self.key_iterator(made):
            values = list(self.network["labels"].values())[1:]
            mask = to_mask(
                np.asarray(made[key].cpu()),
                np.asarray(made[WAY_BACK]),
                self.network["recipe"],
                values,
            )
            made[key] = MetaTensor(
                torch.from_numpy(mask.astype(np.int32))[None], meta=made[self.like].meta
            )
        return made


class Network(nn.Module):
    """[1, C, *patch] → probabilities [1, 1 + L, *patch], by the program in `file`."""

    def __init__(self, file: str, device: str | torch.device = "cpu") -> None:
        super().__init__()
        program = torch.export.load(file)
        if torch.device(device).type != "cpu":
            program = move_to_device_pass(program, device)
        self._program = (program.module(),)  # in a tuple: a program has no modes to set

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (program,) = self._program
        logits: torch.Tensor = program(x.as_tensor() if isinstance(x, MetaTensor) else x)
        return logits.softmax(dim=1)
