"""The checkpoint of a run in progress: tensors and JSON types in one file, replaced whole, read without unpickling code."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sea_peft.artefacts import atomic
from sea_peft.errors import DeviceError, WeightsError

_NAME = "state.pt"


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Replace the checkpoint in `folder` by `state` (JSON types and tensors). Raises DeviceError when it cannot be written."""
    import torch

    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    with atomic.writing(folder):
        folder.mkdir(exist_ok=True)
    atomic.write_bytes(folder / _NAME, buffer.getvalue())


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The state of the checkpoint in `folder`, None when the run was ended before the first one.

    Raises WeightsError when the file is damaged: what the run folder holds besides it stays as it is.
    """
    import torch

    path = folder / _NAME
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen unrelated types for a damaged file
        raise WeightsError(
            f"The checkpoint {path} is damaged ({type(error).__name__}) and cannot be resumed from; start a new run "
            "(the trace up to there is kept)."
        ) from error
    return state


def remove_checkpoint(folder: Path) -> None:
    """The run is done: nothing is left to resume."""
    try:
        (folder / _NAME).unlink(missing_ok=True)
        if folder.is_dir():
            folder.rmdir()
    except OSError as error:
        raise DeviceError(f"The checkpoint in {folder} cannot be removed ({error.strerror}); remove it by hand.") from error
