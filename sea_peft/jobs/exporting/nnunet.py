"""`--to nnunet`: a model folder for `nnUNetv2_predict_from_modelfolder`, if the backbone came
from an nnU-Net.
"""

import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from nibabel import orientations

from sea_peft import atomic
from sea_peft.backbones.checkpoints import Checkpoint, read_checkpoint
from sea_peft.data.volumes import Volume, read_volume, write_volume
from sea_peft.errors import UsageError, WeightsError
from sea_peft.jobs.case_results import mask_values
from sea_peft.jobs.exporting.described import write_json
from sea_peft.jobs.exporting.trial import AGREEMENT, Trial, run_tool
from sea_peft.jobs.merge import fold
from sea_peft.jobs.predictor import Predictor

_TOOL = "nnUNetv2_predict_from_modelfolder"


def write(
    predictor: Predictor,
    folder: Path,
    trial: Trial,
    source: Path | None,
    say: Callable[[str], None] | None = None,
) -> float:
    """Write the folder, and let nnU-Net predict the trial's scan with it.

    `source`: the checkpoint that the backbone was imported from; its plans and its data set's
    description are copied. The classes are the backbone's, followed by the new labels. nnU-Net
    gives a voxel to the strongest class, whereas `predict` gives it to a label that is stronger
    than all others together. Returns the share of voxels that are the same all the same.

    Raises:
        UsageError: nnU-Net is not installed, the backbone did not come from one, or its checkpoint
            is not given.
        WeightsError: it is another checkpoint, the adapter cannot be merged, or masks differ.
    """
    card = predictor.loaded.backbone.pretrained.card
    # beside Python first: the environment need not be activated
    tool = shutil.which(_TOOL, path=str(Path(sys.executable).parent)) or shutil.which(_TOOL)
    if card.origin != "nnunet":
        raise UsageError(
            f"Weights {card.name} did not come from an nnU-Net, which cannot run them; export --to"
            " bundle, onnx or torch."
        )
    if tool is None:
        raise UsageError(
            "An nnU-Net folder is checked by nnU-Net itself, which is not installed; `pip install"
            " nnunetv2 'torch<2.14'`."
        )
    if source is None:
        raise UsageError(
            "An nnU-Net folder has the plans of the network that was adapted; give the checkpoint"
            " that was imported, --source checkpoint_final.pth."
        )
    if predictor.network == "both":
        raise UsageError(
            "--use both runs two networks, and an nnU-Net folder holds one; use adapted."
        )
    if predictor.network != "adapted":
        raise UsageError(
            f"The run recommends the unadapted network ({predictor.config.recommended.evidence}),"
            " which you have; --use adapted exports the other."
        )
    checkpoint = read_checkpoint(source)
    if checkpoint.sha256 != card.source_sha256:
        raise WeightsError(
            f"{source.name} is not the checkpoint that weights {card.name} were imported from; give"
            " that one."
        )
    folded = fold(predictor.loaded, card.name)
    classes = folded.card["labels"]
    dataset = _written(checkpoint, folder, classes, folded.network.state_dict())
    scans, out = trial.folder.with_name("scans"), trial.folder.with_name("masks")
    axes = _stored(predictor.recipe.orientation, checkpoint)
    scans.mkdir()
    for path in trial.scans:
        stored = scans / f"{path.name.removesuffix('.nii.gz')}{dataset['file_ending']}"
        scan = read_volume(path)
        before = "".join(nibabel.aff2axcodes(scan.affine))
        write_volume(stored, _turned(scan, axes))
    command = [
        tool,
        "-i",
        str(scans),
        "-o",
        str(out),
        "-m",
        str(folder),
        "-f",
        "0",
        "-device",
        "cpu",
        "-npp",
        "1",
        "-nps",
        "1",
        "--disable_progress_bar",
    ]
    places = {f"nnUNet_{name}": str(trial.folder) for name in ("raw", "preprocessed", "results")}
    run_tool(command, _TOOL, folder.parent, {**os.environ, **places})
    ours = mask_values(predictor.labels)
    rows = predictor.config.head.rows
    fresh = iter(range(len(card.labels), len(classes)))
    values = {
        next(fresh) if row is None else row: ours[name]
        for name, row in zip(ours, rows, strict=True)
    }
    mask = out / f"trial{dataset['file_ending']}"
    write_volume(mask, _turned(read_volume(mask), before))
    share = trial.agreement_of_classes(
        mask, _TOOL, trial.classes(predictor, folded.network), values
    )
    if say is not None:
        say(
            f"nnU-Net takes a scan's axes as they are stored: give it scans stored as {axes}; its"
            " masks of others are not those of predict."
        )
        if share < AGREEMENT:
            say(
                "It gives a voxel to the strongest class, where predict asks for a label that is"
                f" stronger than all others together; {1 - share:.2%} of a trial scan differ by"
                " that. Score its masks before you use them."
            )
    return share


def _stored(orientation: str, checkpoint: Checkpoint) -> str:
    """The orientation of x, y, z of a scan whose axes, taken by nnU-Net, are `orientation`."""
    order = checkpoint.content["init_args"]["plans"]["transpose_forward"]
    return "".join(orientation[list(order).index(axis)] for axis in (2, 1, 0))


def _turned(volume: Volume, axes: str) -> Volume:
    """The volume stored with its x, y, z towards these sides."""
    own, wanted = orientations.io_orientation(volume.affine), orientations.axcodes2ornt(axes)
    change = orientations.ornt_transform(own, wanted)
    back = orientations.inv_ornt_aff(change, volume.array.shape)
    array = np.ascontiguousarray(orientations.apply_orientation(volume.array, change))
    return Volume(array, volume.affine @ back)


def _written(
    checkpoint: Checkpoint, folder: Path, classes: list[str], tensors: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """Write plans, description and checkpoint. Returns the description. Raises WeightsError if the
    checkpoint lacks them.
    """
    try:
        given = checkpoint.content["init_args"]
        plans, dataset = dict(given["plans"]), dict(given["dataset_json"])
        dataset["labels"] = {name: code for code, name in enumerate(classes)}
        dataset["file_ending"] = str(dataset["file_ending"])
        kept = {
            "network_weights": tensors,
            "trainer_name": str(checkpoint.content["trainer_name"]),
            "init_args": {
                "configuration": given["configuration"],
                "fold": 0,
                "plans": plans,
                "dataset_json": dataset,
            },
            "inference_allowed_mirroring_axes": (
                None
            ),  # it was adapted, and is predicted with here, without mirroring
        }
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{checkpoint.file.name} lacks what nnU-Net writes beside its tensors ({error})."
        ) from error
    write_json(folder / "plans.json", plans)
    write_json(folder / "dataset.json", dataset)
    (folder / "fold_0").mkdir()
    stream = io.BytesIO()
    torch.save(kept, stream)
    atomic.write_bytes(folder / "fold_0" / "checkpoint_final.pth", stream.getvalue())
    return dataset
