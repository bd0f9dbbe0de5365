"""OBELISK-Net's abdominal CT network (Heinrich et al. 2019, doi 10.1016/j.media.2019.02.006; MIT)
by `module:factory`, for grids.

By hand the same is `seapeft backbones import allconvunet_tcia_fold1.pth --as organs --backbone
obelisk`. The file is looked for in the folder of `$OBELISK_WEIGHTS`, else beside the checkout, in
`../shared/data/real/weights_obelisk`.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from sea_peft.backbones.checkpoints import read_checkpoint
from sea_peft.backbones.obelisk import OBELISK
from sea_peft.errors import WeightsError

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data" / "real" / "weights_obelisk"
_LOW, _HIGH = (
    -1024.0,
    3071.0,
)  # every voxel of a CT: the network was trained on plain Hounsfield units


def network() -> nn.Module:
    """The network with its weights, nine classes. Raises WeightsError where the file is not
    there.
    """
    file = Path(os.environ.get("OBELISK_WEIGHTS", _BESIDE)) / "allconvunet_tcia_fold1.pth"
    if not file.is_file():
        raise WeightsError(f"{file.name} is not there; set OBELISK_WEIGHTS to its folder.")
    built = OBELISK.build(out_channels=9, input_factor=_HIGH - _LOW, input_offset=_LOW)
    built.load_state_dict(read_checkpoint(file).tensors)
    return built


network.divisor, network.minimum = OBELISK.divisor, OBELISK.minimum  # type: ignore[attr-defined]
network.paper, network.licence = OBELISK.paper, "MIT"  # type: ignore[attr-defined]
network.card = {  # type: ignore[attr-defined]
    "labels": [
        "background",
        "spleen",
        "pancreas",
        "left_kidney",
        "gallbladder",
        "esophagus",
        "liver",
        "stomach",
        "duodenum",
    ],
    "channels": ["CT"],
    "recipe": {
        "orientation": "LAI",
        "spacing": [2.3, 1.7, 1.25],
        "intensity": {"kind": "window", "low": _LOW, "high": _HIGH},
        "crop_foreground": True,
        "margin": 10.0,
    },
    "patch": [144, 144, 144],
    "source": "OBELISK-Net, TCIA Pancreas-CT, fold 1",
}
