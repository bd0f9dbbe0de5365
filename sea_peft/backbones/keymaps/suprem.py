"""SuPreM (Li et al., ICLR 2024), and the CLIP-driven universal model (Liu et al., ICCV 2023) from
whose code it grew.

In U-Net and SwinUNETR, keys lie under `backbone.`, beside the parts that turn text into a
classifier. The SegResNet is MONAI's, with one sigmoid per class. The transformers were trained with
the patch merging of MONAI before 1.5.
"""

from sea_peft.backbones.checkpoints import Checkpoint
from sea_peft.backbones.keymaps.origin import CT_PATCH, CT_RECIPE, OLD_MERGING, Known, Origin

_TEXT_PARTS = ("precls_conv.", "GAP.", "controller.", "organ_embedding", "text_to_vision.")


def _rename(key: str) -> str | None:
    if key.startswith((*_TEXT_PARTS, "conv_final.2.conv.")):
        return None
    return key.removeprefix("backbone.")


def _know(_checkpoint: Checkpoint, backbone: str) -> Known:
    settings = OLD_MERGING if backbone == "swinunetr" else {}
    return Known(recipe=CT_RECIPE, patch=CT_PATCH, channels=("CT",), settings=settings)


def _is_universal(checkpoint: Checkpoint) -> bool:
    return checkpoint.has_key_under(*_TEXT_PARTS)


def _is_suprem(checkpoint: Checkpoint) -> bool:
    trained_there = {"net", "optimizer", "scheduler", "epoch"} <= checkpoint.content.keys()
    return _is_universal(checkpoint) or (
        trained_there and "convInit.conv.weight" in checkpoint.tensors
    )


SUPREM = Origin(
    name="suprem",
    about=(
        "SuPreM, Li et al. 2024, github.com/MrGiovanni/SuPreM (or the CLIP-driven universal model,"
        " whose keys are the same)"
    ),
    backbones=("segresnet", "unet3d", "swinunetr"),
    recognises=_is_suprem,
    rename=_rename,
    no_classifier="SuPreM gives each class a sigmoid of its own and the background no output",
    know=_know,
)

CLIP_DRIVEN = Origin(
    name="clip-driven",
    about=(
        "CLIP-driven universal model, Liu et al. 2023,"
        " github.com/ljwztc/CLIP-Driven-Universal-Model"
    ),
    backbones=("unet3d", "swinunetr"),
    recognises=_is_universal,
    rename=_rename,
    no_classifier="its classifier is made from text for each class, without one for the background",
    know=_know,
)
