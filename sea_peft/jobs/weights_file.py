"""Pretrained weights as two files: the tensors, and beside them the card that says what they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from sea_peft.artefacts import atomic
from sea_peft.backbones.weights import checked_card, unique_tensors


def save_weights(
    folder: Path, network: nn.Module, card: Mapping[str, Any], half: bool, instead: str = atomic.INSTEAD
) -> Path:
    """Write `<name>.safetensors` and its card `<name>.json`, both or neither.

    Args:
        folder: made where it is not there.
        network: whose tensors are written, each once.
        card: all of Card's fields but `sha256`.
        half: whether floating-point tensors are written as float16.
        instead: how the user can have them written elsewhere.

    Returns:
        The card's path.

    Raises:
        WeightsError: the card is not valid.
        DeviceError: the disk is full or the place is not writable.
    """
    cast = {
        key: (t.half() if half and t.is_floating_point() else t).contiguous()
        for key, t in unique_tensors(network).items()
    }
    content = safetensors.torch.save(cast)
    described = checked_card({**card, "sha256": hashlib.sha256(content).hexdigest()})
    file = folder / f"{described.name}.safetensors"
    path = file.with_suffix(".json")
    with atomic.writing(folder, instead):
        folder.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(file, content, instead)
    try:  # the card comes last: weights are known by it
        atomic.write_text(path, described.model_dump_json(indent=2) + "\n", instead)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return path
