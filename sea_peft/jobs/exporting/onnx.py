"""`--to onnx`: an ONNX graph with its weights, run by onnxruntime."""

import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch

from sea_peft.jobs.exporting.program import traced, with_script
from sea_peft.jobs.exporting.trial import Trial
from sea_peft.jobs.predictor import Predictor

FILE = "network.onnx"
# protobuf's limit is 2 GB; beyond it weights lie in a file of their own
_LARGEST_FILE = 1_900_000_000


def write(predictor: Predictor, folder: Path, trial: Trial) -> float:
    """Write the graph, its description, and a script that makes masks; try the script on the
    trial's scan.
    """
    import onnx

    program = traced(predictor)
    weights = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    loud, said = logging.getLogger("torch.onnx"), io.StringIO()
    level = loud.level
    loud.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                program, (), str(folder / FILE), dynamo=True, external_data=weights > _LARGEST_FILE,
                input_names=["scan"], output_names=["logits"], verbose=False,
            )  # fmt: skip
    finally:
        loud.setLevel(level)
    onnx.checker.check_model(str(folder / FILE))
    return with_script(predictor, folder, trial, "onnxruntime")
