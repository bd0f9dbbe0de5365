"""deepbet (Fisch et al. 2024, doi 10.1016/j.compbiomed.2024.108845; PyPI, MIT) by `module:factory`:
brain extraction from T1-weighted MR.

deepbet ships TorchScript. A script module runs as a graph, so that hooks on its parts do not fire
and no adapter could act on it. This is the same network in plain torch (backbone `linknet`), with
the tensors of the script; `python -m benchmarks.deepbet_backbone` shows that outputs agree. The
script ends in a softmax and this network before it: the loop wants logits. `seapeft backbones
import` takes the file without code; this is an example of a factory that brings its weights.

    pip download --no-deps deepbet && unzip -o deepbet-*.whl 'data/*' -d deepbet
    DEEPBET_MODEL=deepbet/data/models/model.pt seapeft adapt scans/ --backbone
    benchmarks.deepbet_backbone:linknet --label brain
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from torch import nn

from sea_peft.backbones.checkpoints import read_checkpoint
from sea_peft.backbones.linknet import LINKNET
from sea_peft.errors import WeightsError

VARIABLE = "DEEPBET_MODEL"


def model_file() -> Path | None:
    """The TorchScript file: `$DEEPBET_MODEL`, or that of an installed deepbet; None where there
    is neither.
    """
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    found = importlib.util.find_spec("deepbet")
    file = (
        Path(found.origin).parents[1] / "data" / "models" / "model.pt"
        if found and found.origin
        else None
    )
    return file if file is not None and file.is_file() else None


def linknet() -> nn.Module:
    """deepbet's network with its weights. Raises WeightsError where its file is not there."""
    file = model_file()
    if file is None or not file.is_file():
        raise WeightsError(
            "deepbet's model.pt is not there; install deepbet, or unpack its wheel and set"
            f" {VARIABLE} to the file."
        )
    network = LINKNET.build()
    network.load_state_dict(read_checkpoint(file).tensors)
    return network


linknet.divisor, linknet.minimum = 32, 64  # type: ignore[attr-defined]
linknet.licence = "MIT"  # type: ignore[attr-defined]
linknet.paper = (  # type: ignore[attr-defined]
    "Fisch et al. 2024, deepbet, doi 10.1016/j.compbiomed.2024.108845"
)
# deepbet resizes a head to 256 voxels a side, which is about 1 mm, and clips at these percentiles;
# an instance norm follows the first convolution, so that how the rest is scaled makes no difference
linknet.card = {  # type: ignore[attr-defined]
    "labels": ["background", "brain"],
    "channels": ["T1w"],
    "recipe": {
        "orientation": "RAS",
        "spacing": [1.0, 1.0, 1.0],
        "intensity": {"kind": "percentile", "low": 0.5, "high": 99.5},
    },
    "patch": [96, 96, 96],
    "source": "deepbet 1.0.2, PyPI",
}


@torch.no_grad()
def largest_difference(file: Path, side: int = 64) -> float:
    """Between the probabilities of the script and of `linknet`, on one random input of `side`
    voxels a side.
    """
    script, network = torch.jit.load(file, map_location="cpu").eval(), linknet().eval()
    x = torch.rand(1, 1, side, side, side, generator=torch.Generator().manual_seed(0))
    return float((script(x) - network(x).softmax(1)).abs().max())


if __name__ == "__main__":
    found = model_file()
    if found is None:
        raise SystemExit(
            "deepbet's model.pt is not there; install deepbet, or unpack its wheel and set"
            f" {VARIABLE} to the file."
        )
    print(f"largest difference of probabilities: {largest_difference(found):.1e}")
