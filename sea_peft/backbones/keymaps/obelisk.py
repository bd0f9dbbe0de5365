"""OBELISK-Net's all-convolution U-Nets (Heinrich et al. 2019, github.com/mattiaspaul/OBELISK):
abdominal CT in plain Hounsfield units.

Axes are left, anterior, inferior; a body is 144 voxels per side, of about 2.3, 1.7 and 1.25 mm. A
description of the labels for ITK-SNAP lies beside the checkpoints.
"""

from sea_peft.backbones.checkpoints import Checkpoint
from sea_peft.backbones.grey_values import hounsfield_units
from sea_peft.backbones.keymaps.origin import Known, Origin, keep
from sea_peft.backbones.label_names import read_label_names
from sea_peft.data.recipe import Recipe
from sea_peft.errors import UsageError

_PATCH = (144, 144, 144)


def _labels(checkpoint: Checkpoint) -> tuple[str, ...] | None:
    """The names in the description beside the checkpoint, if there is one with as many names as
    classes.
    """
    classes = len(checkpoint.tensors["conv77U.weight"])
    for file in sorted(checkpoint.file.parent.glob("*labels.txt")):
        try:
            names = read_label_names(file)
        except UsageError:
            continue
        if len(names) == classes - 1:
            return names
    return None


def _know(checkpoint: Checkpoint, _backbone: str) -> Known:
    intensity, settings = hounsfield_units()
    recipe = Recipe(orientation="LAI", spacing=(2.3, 1.7, 1.25), intensity=intensity)
    labels = _labels(checkpoint)
    notes = ("Labels are those of the description for ITK-SNAP beside it.",) if labels else ()
    return Known(
        labels=labels, channels=("CT",), recipe=recipe, patch=_PATCH, settings=settings, notes=notes
    )


OBELISK = Origin(
    name="obelisk",
    about=(
        "OBELISK-Net's all-convolution U-Net, Heinrich et al. 2019, github.com/mattiaspaul/OBELISK"
    ),
    backbones=("obelisk",),
    recognises=lambda checkpoint: (
        checkpoint.has_key_under("conv6dU.") and checkpoint.has_key_under("conv77U.")
    ),
    rename=keep,
    know=_know,
)
