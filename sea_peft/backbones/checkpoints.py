"""Reading foreign checkpoints without running anything that is in them."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from sea_peft.errors import WeightsError

_WRAPPERS = ("module", "_orig_mod")  # of parallel and of compiled networks


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds. `tensors`: by key, without the prefixes of parallel and compiled networks. `content`: its top level, of which the
    tensors are a part (empty for safetensors). `sha256`: of the file."""

    file: Path
    tensors: dict[str, torch.Tensor]
    content: Mapping[str, Any]
    sha256: str

    def has_key_under(self, *prefixes: str) -> bool:
        """Whether any key begins with one of these."""
        return any(key.startswith(prefixes) for key in self.tensors)


def read_checkpoint(file: Path) -> Checkpoint:
    """The tensors of a checkpoint on the CPU. Nothing in the file is executed. Raises WeightsError."""
    if not file.is_file():
        raise WeightsError(f"There is no file {file}; check the path.")
    content: Any = {}
    try:
        if file.suffix == ".safetensors":
            found = safetensors.torch.load_file(file)
        else:
            with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_scalars()):
                warnings.simplefilter("ignore")  # of the pickle protocol of old files
                content = torch.load(file, map_location="cpu", weights_only=True)
            found = _state_dict(content)
    # Damaged bytes end torch's reader in ways that no list of exception types covers; each one means "unreadable".
    except Exception as error:
        if "unsupported" in str(error).lower():
            raise WeightsError(
                f"{file.name} holds more than tensors, and loading it could run any code; have it saved as safetensors, or as a "
                "plain state dict."
            ) from error
        raise WeightsError(f"{file.name} is not a readable {file.suffix} checkpoint; get it again.") from error
    if not found:
        raise WeightsError(f"{file.name} holds no state dict (tensors by name); save the network's state_dict().")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Checkpoint(file, _unwrapped(found), content if isinstance(content, Mapping) else {}, digest)


def _numpy_scalars() -> list[Any]:
    """What torch's safe loader has to know beyond tensors to read numpy numbers, which nnU-Net logs into its checkpoints: the function
    that makes one from bytes, under its names in numpy 1 and 2, and the types of numbers. None of them can run code."""
    scalar = np.float64(0.0).__reduce__()[0]
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*names, np.dtype, *sorted(kinds, key=lambda kind: kind.__name__)]


def _state_dict(content: Any) -> dict[str, torch.Tensor]:
    """The largest dictionary of tensors in what a checkpoint holds: training programs nest it under one name or another."""
    if not isinstance(content, Mapping):
        return {}
    own = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    nested = [_state_dict(value) for value in content.values() if isinstance(value, Mapping)]
    return max([own, *nested], key=len)


def _unwrapped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors without the leading name parts that wrapping modules put in front of every key."""
    while {key.partition(".")[0] for key in tensors} in [{wrapper} for wrapper in _WRAPPERS]:
        tensors = {key.partition(".")[2]: tensor for key, tensor in tensors.items()}
    return tensors
