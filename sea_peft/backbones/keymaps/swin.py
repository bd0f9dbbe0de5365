"""MONAI's research contributions around SwinUNETR: self-supervised pretraining (Tang et al., CVPR
2022) and training on BTCV.

The self-supervised `model_swinvit.pt` holds the transformer alone, under older names. Some later
files hold the whole network, beside the heads of the pretraining. All were trained with the patch
merging of MONAI before 1.5.
"""

import re

from sea_peft.backbones.checkpoints import Checkpoint
from sea_peft.backbones.keymaps.origin import CT_PATCH, CT_RECIPE, OLD_MERGING, Known, Origin

_PRETRAINING_HEADS = (
    "rotation_head.",
    "contrastive_head.",
    "rotation_pre.",
    "contrastive_pre.",
    "conv.",
    "out.",
    "mask_token",
)


def _current(key: str) -> str:
    """`swin_vit` and `mlp.fc1` under MONAI's current names."""
    return re.sub(
        r"\bmlp\.fc([12])\b",
        r"mlp.linear\1",
        key.removeprefix("backbone.").replace("swin_vit", "swinViT", 1),
    )


def _rename_pretrained(key: str) -> str | None:
    if key.startswith(_PRETRAINING_HEADS):
        return None
    return _current(f"swinViT.{key}" if re.match(r"(patch_embed|layers\d)\.", key) else key)


def _is_pretrained(checkpoint: Checkpoint) -> bool:
    return checkpoint.has_key_under("rotation_head.", "contrastive_head.", "layers1.0.")


SWIN_SSL = Origin(
    name="swin-ssl",
    about=(
        "self-supervised SwinUNETR, Tang et al. 2022, Project-MONAI/research-contributions"
        " SwinUNETR/Pretrain"
    ),
    backbones=("swinunetr",),
    recognises=_is_pretrained,
    rename=_rename_pretrained,
    no_classifier="self-supervised training has no classes",
    know=lambda _checkpoint, _backbone: Known(
        patch=CT_PATCH, channels=("CT",), settings=OLD_MERGING
    ),
)

BTCV = Origin(
    name="btcv",
    about="SwinUNETR trained on BTCV, Project-MONAI/research-contributions SwinUNETR/BTCV",
    backbones=("swinunetr",),
    recognises=lambda _checkpoint: False,  # its keys are MONAI's own
    rename=_current,
    know=lambda _checkpoint, _backbone: Known(
        recipe=CT_RECIPE.model_copy(update={"spacing": (1.5, 1.5, 2.0)}),
        patch=CT_PATCH,
        channels=("CT",),
        settings=OLD_MERGING,
    ),
)
