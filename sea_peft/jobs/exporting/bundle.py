"""`--to bundle`: a MONAI bundle that `python -m monai.bundle run` executes offline."""

import datetime
import os
import sys
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch

from sea_peft import __version__, atomic
from sea_peft.errors import UsageError
from sea_peft.jobs.exporting.described import NAME, copy_script, described, write_json
from sea_peft.jobs.exporting.program import traced
from sea_peft.jobs.exporting.trial import Trial, run_tool
from sea_peft.jobs.predictor import Predictor

_TOOL = "monai.bundle"
_POSTFIX = "seg"


def write(predictor: Predictor, folder: Path, trial: Trial) -> float:
    """Write the bundle, and run it over the trial's scan. Raises UsageError where windows are
    nnU-Net's, which MONAI's inferer does not know.
    """
    if predictor.config.window.inferer != "monai":
        raise UsageError(
            "This network's windows are averaged as nnU-Net does, which MONAI does not; export --to"
            " nnunet."
        )
    for name in ("configs", "models", "scripts", "docs"):
        (folder / name).mkdir()
    torch.export.save(traced(predictor), folder / "models" / "model.pt2")
    copy_script(folder / "scripts", "scans.py", "steps.py")
    atomic.write_text(folder / "scripts" / "__init__.py", "")
    write_json(folder / "configs" / NAME, described(predictor))
    write_json(folder / "configs" / "metadata.json", _metadata(predictor))
    write_json(folder / "configs" / "inference.json", _inference(predictor))
    atomic.write_text(folder / "docs" / "README.md", _readme(predictor))
    out = trial.folder.with_name("masks")
    command = [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        str(folder / "configs" / "inference.json"),
        "--bundle_root",
        str(folder),
        "--dataset_dir",
        str(trial.folder),
        "--output_dir",
        str(out),
        "--device",
        "cpu",
    ]
    run_tool(command, _TOOL, folder.parent, {**os.environ, "HF_HUB_OFFLINE": "1"})
    first = trial.scans[0].name.removesuffix(".nii.gz")
    return trial.agreement(out / f"{first}_{_POSTFIX}.nii.gz", _TOOL)


def _inference(predictor: Predictor) -> dict[str, Any]:
    window, count = predictor.config.window, len(predictor.channels)
    beside = f"$@bundle_root + '/configs/{NAME}'"
    if count == 1:
        listed = "$sorted(glob.glob(@dataset_dir + '/*.nii.gz'))"
    else:  # the channels of a scan are files that differ in their number, as nnU-Net names them
        each = f"[first.replace('_0000.', f'_{{c:04d}}.') for c in range({count})]"
        listed = f"$[{each} for first in sorted(glob.glob(@dataset_dir + '/*_0000.nii.gz'))]"
    return {
        "imports": ["$import glob", "$import os", "$import sys"],
        "initialize": ["$sys.path.insert(0, os.path.abspath(@bundle_root))"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/masks'",
        "device": "$'cuda' if __import__('torch').cuda.is_available() else 'cpu'",
        "datalist": listed,
        "network_def": {
            "_target_": "scripts.steps.Network",
            "file": "$@bundle_root + '/models/model.pt2'",
            "device": "@device",
        },
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "scripts.steps.ToGridd", "keys": "image", "described": beside},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': scan} for scan in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": 0,
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(window.patch),
            "sw_batch_size": 1,
            "overlap": window.overlap,
            "mode": "gaussian",
            "padding_mode": "constant",
            "cval": window.pad,
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "scripts.steps.ToMaskd",
                    "keys": "pred",
                    "described": beside,
                    "like": "image",
                },
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": _POSTFIX,
                    "output_dtype": "$__import__('numpy').uint16",
                    "resample": False,
                    "separate_folder": False,
                },
            ],
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network_def",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
    }


def _metadata(predictor: Predictor) -> dict[str, Any]:
    config = predictor.config
    channels = {str(number): name for number, name in enumerate(predictor.channels)}
    labels = {str(number): name for number, name in enumerate(["background", *predictor.labels])}
    patch = list(config.window.patch)
    grid: dict[str, Any] = {
        "type": "image",
        "spatial_shape": patch,
        "dtype": "float32",
        "is_patch_data": True,
    }
    return {
        "schema": (
            "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
        ),
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by sea_peft {__version__}"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": "5.2", "pytorch-ignite": "0.5"},
        "name": "Adapted segmentation network",
        "task": "Segmentation of " + ", ".join(predictor.labels),
        "description": (
            f"{config.backbone.weights}, a {config.backbone.architecture}, {predictor.network},"
            f" with {len(config.units)} units folded in."
        ),
        "authors": "",
        "copyright": (
            f"{datetime.date.today().year}; licence of the backbone's weights:"
            f" {config.backbone.licence}"
        ),
        "intended_use": (
            "Research software, not a medical device: a qualified person must check every mask."
        ),
        "network_data_format": {
            "inputs": {
                "image": {
                    **grid,
                    "format": "magnitude",
                    "modality": ", ".join(predictor.channels),
                    "num_channels": len(channels),
                    "value_range": [],
                    "channel_def": channels,
                }
            },
            "outputs": {
                "pred": {
                    **grid,
                    "format": "segmentation",
                    "num_channels": len(labels),
                    "value_range": [0, 1],
                    "channel_def": labels,
                }
            },
        },
    }


def _readme(predictor: Predictor) -> str:
    names = ", ".join(predictor.labels)
    files = (
        "one NIfTI file a scan"
        if len(predictor.channels) == 1
        else "a scan's channels called X_0000.nii.gz, X_0001.nii.gz, …"
    )
    return f"""# Segmentation of {names}

Made by `seapeft export`. In this folder:

```bash
python -m monai.bundle run --config_file configs/inference.json \\
    --dataset_dir SCANS --output_dir MASKS
```

SCANS holds {files}. It needs monai, pytorch-ignite, fire and nibabel, not sea_peft, and no network.
Masks lie on each scan's own grid; what they hold for each label stands in `configs/network.json`.
Research software, not a medical device: a qualified person must check every mask.
"""
