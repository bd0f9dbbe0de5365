"""MONAI bundles, and networks of MONAI's or of any origin whose keys are the backbone's own."""

from __future__ import annotations

import json
import re
from typing import Any

from sea_peft.backbones.checkpoints import Checkpoint
from sea_peft.backbones.keymaps.origin import Known, Origin, keep

# Parts of MONAI's networks that the outputs at inference do not depend on.
_IDLE = re.compile(
    r"vae_"  # SegResNetVAE's second decoder
    r"|deep_supervision_heads\.\d+\.|skip_layers\.(next_layer\.)*super_head\."  # DynUNet's; each head has both names
    r"|vit\.patch_embedding\.cls_token$"  # UNETR's before MONAI 0.9
    r"|vit\.blocks\.\d+\.cross_attn\."  # UNETR's in MONAI 1.4 and 1.5
)


def _idle(key: str) -> bool:
    return _IDLE.match(key) is not None


def _metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """`configs/metadata.json` of the bundle that the file lies in (`models/model.pt`), or {}."""
    path = checkpoint.file.parent.parent / "configs" / "metadata.json"
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) and "monai_version" in read else {}


def _know(checkpoint: Checkpoint, backbone: str) -> Known:
    """A bundle says with which MONAI it was made; for a SwinUNETR that settles the order of patch merging."""
    version = re.match(r"(\d+)\.(\d+)", str(_metadata(checkpoint).get("monai_version", "")))
    if backbone != "swinunetr" or version is None:
        return Known()
    merging = "monai<1.5" if (int(version[1]), int(version[2])) < (1, 5) else "monai>=1.5"
    return Known(settings={"merging": merging})


BUNDLE = Origin(
    name="monai-bundle",
    about="a MONAI bundle (its configs/metadata.json lies beside models/)",
    backbones=(),
    recognises=lambda checkpoint: bool(_metadata(checkpoint)),
    rename=keep,
    know=_know,
    idle=_idle,
)

PLAIN = Origin(
    name="plain",
    about="a state dict under the backbone's own keys",
    backbones=(),
    recognises=lambda _checkpoint: True,
    rename=keep,
    idle=_idle,
)
