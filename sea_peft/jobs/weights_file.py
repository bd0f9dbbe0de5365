"""Pretrained weights as two files: the tensors, and beside them the card that describes them."""

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import nn

from sea_peft import atomic
from sea_peft.backbones.weights import checked_card, read_card, unique_tensors
from sea_peft.errors import UsageError, WeightsError


def save_weights(folder: Path, network: nn.Module, card: Mapping[str, object], half: bool) -> Path:
    """Write `<name>.safetensors` and its card `<name>.json`, both or neither.

    The card is written first. A process that is killed between the two leaves a card without
    weights, which every reader ignores (`cards`, `refuse_to_replace`), and never weights without a
    card.

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
        DiskError: the disk is full or the place is not writable.
    """
    cast = {
        key: (t.half() if half and t.is_floating_point() else t).contiguous()
        for key, t in unique_tensors(network).items()
    }
    content = safetensors.torch.save(cast)
    described = checked_card({**card, "sha256": hashlib.sha256(content).hexdigest()})
    file = folder / f"{described.name}.safetensors"
    path = file.with_suffix(".json")
    atomic.make_folder(folder)
    atomic.write_text(path, described.model_dump_json(indent=2) + "\n")
    try:
        atomic.write_bytes(file, content)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def refuse_to_replace(file: Path) -> None:
    """Raise UsageError if weights or their card would replace something other than a card that a
    killed process left without weights.
    """
    card = file.with_suffix(".json")
    with contextlib.suppress(WeightsError):
        if not file.exists() and read_card(card).name == file.stem:
            return
    for path in (file, card):
        if path.exists():
            raise UsageError(f"{path} exists already; choose another --out.")
