"""`--to torch`: a program of `torch.export` with its weights."""

import sys
import warnings
from pathlib import Path

import torch

from sea_peft.jobs.exporting.described import NAME, copy_script, described, write_json
from sea_peft.jobs.exporting.trial import Trial, run_tool
from sea_peft.jobs.predictor import Predictor

FILE = "network.pt2"


def traced(predictor: Predictor) -> torch.export.ExportedProgram:
    """The network as it predicts, with units and target head: a window `[1, C, *patch]`, called
    `scan`, → target logits.
    """

    class OneWindow(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = predictor.model

        def forward(self, scan: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.network(scan)
            return logits

    example = torch.zeros(1, len(predictor.channels), *predictor.config.window.patch)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # about constants, which are right for the one size of window
        return torch.export.export(OneWindow(), (example,), strict=False)


def write(predictor: Predictor, folder: Path, trial: Trial) -> float:
    """Write the program, its description, and a script that makes masks; try the script on the
    trial's scan.
    """
    torch.export.save(traced(predictor), folder / FILE)
    return with_script(predictor, folder, trial, "torch.export")


def with_script(predictor: Predictor, folder: Path, trial: Trial, tool: str) -> float:
    """Put the files that run the network beside it, and run them. Returns the share of voxels in
    which the mask equals `predict`'s.
    """
    write_json(folder / NAME, described(predictor))
    copy_script(folder, "scans.py", "masks.py")
    mask = trial.folder.with_name("mask.nii.gz")
    script = [sys.executable, str(folder / "masks.py"), *map(str, trial.scans), str(mask)]
    run_tool(script, tool, folder.parent)
    return trial.agreement(mask, tool)
