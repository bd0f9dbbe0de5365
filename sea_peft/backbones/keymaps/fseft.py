"""FSEFT (Silva-Rodríguez et al. 2023, arXiv 2303.17051): SwinUNETR or SuPreM's U-Net with a
classifier of their own.
"""

from sea_peft.backbones.checkpoints import Checkpoint
from sea_peft.backbones.keymaps.origin import CT_PATCH, CT_RECIPE, OLD_MERGING, Known, Origin


def _rename(key: str) -> str | None:
    key = key.removeprefix("backbone.")
    return None if key.startswith("classifier.") else key


def _know(_checkpoint: Checkpoint, backbone: str) -> Known:
    settings = OLD_MERGING if backbone == "swinunetr" else {}
    return Known(recipe=CT_RECIPE, patch=CT_PATCH, channels=("CT",), settings=settings)


FSEFT = Origin(
    name="fseft",
    about="FSEFT, Silva-Rodríguez et al. 2023, github.com/jusiro/fewshot-finetuning",
    backbones=("swinunetr", "unet3d"),
    recognises=lambda checkpoint: any(
        key.removeprefix("backbone.").startswith("classifier.") for key in checkpoint.tensors
    ),
    rename=_rename,
    no_classifier="FSEFT gives each class a sigmoid of its own and the background no output",
    know=_know,
)
