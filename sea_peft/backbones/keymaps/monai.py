"""Networks of MONAI's, or of any origin whose keys are the backbone's own."""

import re

from sea_peft.backbones.keymaps.origin import Origin, keep

# Parts of MONAI's networks that do not affect outputs at inference.
_IDLE = re.compile(
    r"vae_"  # SegResNetVAE's second decoder
    # DynUNet's; each head has both names
    r"|deep_supervision_heads\.\d+\.|skip_layers\.(next_layer\.)*super_head\."
    r"|vit\.patch_embedding\.cls_token$"  # UNETR's before MONAI 0.9
    r"|vit\.blocks\.\d+\.(norm_)?cross_attn\."  # UNETR's from MONAI 1.4 on
    # UNETR's before MONAI 0.9: of skips that change nothing
    r"|encoder[23]\.blocks\.\d+\.1\.conv3\."
)


def idle(key: str) -> bool:
    return _IDLE.match(key) is not None


PLAIN = Origin(
    name="plain",
    about="a state dict under the backbone's own keys",
    backbones=(),
    recognises=lambda _checkpoint: True,
    rename=keep,
    idle=idle,
)
