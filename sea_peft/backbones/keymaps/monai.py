"""MONAI bundles, and networks of MONAI's or of any origin whose keys are the backbone's own."""

import re
from typing import Any

from sea_peft import documents
from sea_peft.backbones.checkpoints import Checkpoint
from sea_peft.backbones.keymaps.origin import Known, Origin, keep

# Parts of MONAI's networks that the outputs at inference do not depend on.
_IDLE = re.compile(
    r"vae_"  # SegResNetVAE's second decoder
    r"|deep_supervision_heads\.\d+\.|skip_layers\.(next_layer\.)*super_head\."  # DynUNet's; each head has both names
    r"|vit\.patch_embedding\.cls_token$"  # UNETR's before MONAI 0.9
    r"|vit\.blocks\.\d+\.(norm_)?cross_attn\."  # UNETR's from MONAI 1.4 on
    r"|encoder[23]\.blocks\.\d+\.1\.conv3\."  # UNETR's before MONAI 0.9: of skips that change nothing
)


def _idle(key: str) -> bool:
    return _IDLE.match(key) is not None


def _metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """`configs/metadata.json` of the bundle that the file lies in (`models/model.pt`), or {}."""
    path = checkpoint.file.parent.parent / "configs" / "metadata.json"
    try:
        read = documents.load(documents.read_bytes(path))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) and "monai_version" in read else {}


def _named(described: Any) -> tuple[str, ...] | None:
    """Names of `channel_def`, in the order of their numbers."""
    names = described.get("channel_def") if isinstance(described, dict) else None
    if not isinstance(names, dict) or sorted(names) != sorted(map(str, range(len(names)))) or not names:
        return None
    return tuple(str(names[str(i)]) for i in range(len(names)))


def _know(checkpoint: Checkpoint, backbone: str) -> Known:
    """A bundle says what its inputs and outputs are, and with which MONAI it was made; for a SwinUNETR that settles the order of patch
    merging. Orientation, voxel size and grey values stand in its transforms alone, which are code."""
    metadata = _metadata(checkpoint)
    version = re.match(r"(\d{1,4})\.(\d{1,4})", str(metadata.get("monai_version", "")))
    settings = {}
    if backbone == "swinunetr" and version is not None:
        settings["merging"] = "monai<1.5" if (int(version[1]), int(version[2])) < (1, 5) else "monai>=1.5"
    try:
        data = metadata["network_data_format"]
        image, pred = data["inputs"]["image"], data["outputs"]["pred"]
        outputs, channels = _named(pred), _named(image)
        shape = image.get("spatial_shape")
    except (KeyError, TypeError, AttributeError):
        return Known(settings=settings)
    labels = outputs[1:] if outputs and outputs[0].lower() == "background" and len(outputs) > 1 else None
    whole = isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and 8 <= n <= 1024 for n in shape)
    if channels == ("image",) and isinstance(image.get("modality"), str):
        channels = (image["modality"],)
    return Known(
        labels=labels,
        channels=channels,
        recipe=None,
        patch=(shape[0], shape[1], shape[2]) if whole else None,
        settings=settings,
    )


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
