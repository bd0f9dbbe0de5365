"""Masks by an exported network: python masks.py SCAN.nii.gz MASK.nii.gz, with a SCAN for each
channel. Needs numpy, nibabel, and onnxruntime or torch; not sea_peft.

`seapeft export --to onnx` and `--to torch` copy this file beside the network. Research software,
not a medical device: a qualified person must check every mask.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

try:
    from scans import blended, to_grid, to_mask
except ImportError:
    from sea_peft.jobs.exporting.scans import blended, to_grid, to_mask

HERE = Path(__file__).parent


def network() -> Callable[[np.ndarray], np.ndarray]:
    """A window [1, C, *patch] → logits [1, 1 + L, *patch], by whichever runtime the file beside
    this one is for.
    """
    if (HERE / "network.onnx").is_file():
        import onnxruntime

        session = onnxruntime.InferenceSession(
            str(HERE / "network.onnx"), providers=["CPUExecutionProvider"]
        )
        return lambda window: session.run(None, {"scan": window})[0]
    import torch

    program = torch.export.load(HERE / "network.pt2").module()
    return lambda window: program(torch.from_numpy(window)).detach().numpy()


def main(*paths: str) -> None:
    """Read the scans, write the mask."""
    described = json.loads((HERE / "network.json").read_text(encoding="utf-8"))
    *scans, out = paths
    if len(scans) != len(described["channels"]):
        sys.exit(
            f"Give a scan for each of {', '.join(described['channels'])}, and where the mask goes."
        )
    read = [nibabel.load(path) for path in scans]
    channels = [np.asanyarray(scan.dataobj) for scan in read]
    image, way_back = to_grid(channels, read[0].affine, described["recipe"])
    probabilities = blended(network(), image, described["window"])
    mask = to_mask(
        probabilities, way_back, described["recipe"], list(described["labels"].values())[1:]
    )
    nibabel.Nifti1Image(mask, read[0].affine).to_filename(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
