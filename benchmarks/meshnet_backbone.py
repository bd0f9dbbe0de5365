"""brainchop's MeshNet for 17 structures of the brain (Masoud et al. 2023, JOSS 8(83); MIT) by
`module:factory`, for grids.

By hand the same is `seapeft backbones import model18cls/model.safetensors --as brain --backbone
meshnet`. The file is looked for in the folder of `$BRAINCHOP_WEIGHTS`, else beside the checkout, in
`../shared/data/real/weights_brainchop`.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from sea_peft.backbones.checkpoints import read_checkpoint
from sea_peft.backbones.meshnet import MESHNET
from sea_peft.errors import WeightsError

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data" / "real" / "weights_brainchop"


def network() -> nn.Module:
    """The network with its weights, 18 classes. Raises WeightsError where the file is not there."""
    file = Path(os.environ.get("BRAINCHOP_WEIGHTS", _BESIDE)) / "model18cls" / "model.safetensors"
    if not file.is_file():
        raise WeightsError(
            f"{file.name} is not there; set BRAINCHOP_WEIGHTS to the folder that holds model18cls."
        )
    built = MESHNET.build(out_channels=18)
    built.load_state_dict(read_checkpoint(file).tensors)
    return built


network.divisor, network.minimum = MESHNET.divisor, MESHNET.minimum  # type: ignore[attr-defined]
network.paper, network.licence = MESHNET.paper, "MIT"  # type: ignore[attr-defined]
network.card = {  # type: ignore[attr-defined]
    "labels": [
        "background",
        "Cerebral-White-Matter",
        "Cerebral-Cortex",
        "Lateral-Ventricle",
        "Inferior-Lateral-Ventricle",
        "Cerebellum-White-Matter",
        "Cerebellum-Cortex",
        "Thalamus",
        "Caudate",
        "Putamen",
        "Pallidum",
        "3rd-Ventricle",
        "4th-Ventricle",
        "Brain-Stem",
        "Hippocampus",
        "Amygdala",
        "Accumbens-area",
        "VentralDC",
    ],
    "channels": ["T1"],
    "recipe": {
        "orientation": "LIA",
        "spacing": [1.0, 1.0, 1.0],
        "intensity": {"kind": "percentile", "low": 0.0, "high": 99.5},
    },
    "patch": [128, 128, 128],
    "source": "brainchop, model18cls",
}
