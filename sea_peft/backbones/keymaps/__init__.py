"""Checkpoints from elsewhere: one file per origin, with its keys → ours. Facts are from the public
sources named there.
"""

import difflib

from sea_peft.backbones.checkpoints import Checkpoint
from sea_peft.backbones.keymaps.brainchop import BRAINCHOP
from sea_peft.backbones.keymaps.bundle import BUNDLE
from sea_peft.backbones.keymaps.deepbet import DEEPBET
from sea_peft.backbones.keymaps.fseft import FSEFT
from sea_peft.backbones.keymaps.hippodeep import HIPPODEEP
from sea_peft.backbones.keymaps.mednext import MEDNEXT, MONAI_MEDNEXT
from sea_peft.backbones.keymaps.monai import PLAIN
from sea_peft.backbones.keymaps.nnunet import NNUNET
from sea_peft.backbones.keymaps.obelisk import OBELISK
from sea_peft.backbones.keymaps.origin import Known, Origin
from sea_peft.backbones.keymaps.suprem import CLIP_DRIVEN, SUPREM
from sea_peft.backbones.keymaps.swin import BTCV, SWIN_SSL
from sea_peft.errors import UsageError, WeightsError

__all__ = ["ORIGINS", "Known", "Origin", "choose_origin"]

ORIGINS: dict[str, Origin] = {
    origin.name: origin
    for origin in (
        SUPREM,
        CLIP_DRIVEN,
        FSEFT,
        SWIN_SSL,
        BTCV,
        MEDNEXT,
        MONAI_MEDNEXT,
        NNUNET,
        OBELISK,
        BRAINCHOP,
        DEEPBET,
        HIPPODEEP,
        BUNDLE,
        PLAIN,
    )
}
"""By name, in the order in which they are tried when none is named."""


def choose_origin(name: str, checkpoint: Checkpoint, backbone: str) -> Origin:
    """The origin called `name`; for `auto`, the first that has checkpoints of `backbone` and
    recognises these keys.

    Raises:
        UsageError: no origin has this name.
        WeightsError: the origin has no checkpoints of this backbone.
    """
    if name == "auto":
        fitting = (o for o in ORIGINS.values() if not o.backbones or backbone in o.backbones)
        return next(origin for origin in fitting if origin.recognises(checkpoint))
    if name not in ORIGINS:
        near = difflib.get_close_matches(name, ORIGINS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(
            f"No origin is called {name!r}.{hint} There are auto, {', '.join(ORIGINS)}."
        )
    origin = ORIGINS[name]
    if origin.backbones and backbone not in origin.backbones:
        said = (
            f"Checkpoints of {name} are of {', '.join(origin.backbones)}, not {backbone}; choose"
            " another backbone."
        )
        raise WeightsError(said, "backbone")
    return origin
