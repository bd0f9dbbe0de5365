"""Reads checkpoints from elsewhere without running any code in them."""

import dataclasses
import hashlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from sea_peft.backbones import torchscript
from sea_peft.errors import WeightsError

_START = 512  # bytes that tell the type of a file
_IN_FOLDERS = (
    "models/model.pt",  # a MONAI bundle
    "fold_*/checkpoint_final.pth",  # a trained nnU-Net
    "*__*__*/fold_*/checkpoint_final.pth",  # the folder of its data set
    "checkpoint_final.pth",
    "model.safetensors",  # model hubs
    "pytorch_model.bin",
    "*.safetensors",
    "*.pt",
    "*.pth",
)
_WRAPPERS = ("module", "_orig_mod")  # of parallel and of compiled networks


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        file: where it was read from.
        tensors: by key, without the prefixes of parallel and compiled networks.
        content: its top level, which includes the tensors (empty for safetensors).
        sha256: of the file.
    """

    file: Path
    tensors: dict[str, torch.Tensor]
    content: Mapping[str, Any]
    sha256: str

    def has_key_under(self, *prefixes: str) -> bool:
        """Whether any key begins with one of these."""
        return any(key.startswith(prefixes) for key in self.tensors)


def read_checkpoint(file: Path) -> Checkpoint:
    """The tensors of a checkpoint on the CPU, whatever its file is called. Nothing in the file is
    executed.

    Accepts safetensors; files by `torch.save` of tensors, numbers, text and plain arrays; and the
    tensors of TorchScript. `file` may be a folder with one checkpoint, such as a MONAI bundle, a
    trained nnU-Net fold or a model hub's snapshot.

    Raises:
        WeightsError: the file is no such checkpoint. The message says what it is instead.
    """
    file = _checkpoint_in(file) if file.is_dir() else file
    if not file.is_file():
        raise WeightsError(f"There is no file {file}; check the path.")
    with file.open("rb") as stream:
        start = stream.read(_START)
    content: Any = {}
    try:
        if _is_safetensors(start, file.stat().st_size):
            found = safetensors.torch.load_file(file)
        elif (root := torchscript.root_of(file)) is not None:
            found = torchscript.read_tensors(file, root)
        else:
            _refuse_other_kinds(file, start)
            with warnings.catch_warnings(), torch.serialization.safe_globals(_plain_numpy()):
                warnings.simplefilter("ignore")  # about the pickle protocol of old files
                content = torch.load(file, map_location="cpu", weights_only=True)
            found = _state_dict(content)
    except WeightsError:
        raise
    # Damaged bytes end torch's reader in ways that no list of exception types covers; each one
    # means "unreadable".
    except Exception as error:
        if "unsupported global" in str(error).lower() or "unsupported class" in str(error).lower():
            raise WeightsError(_more_than_tensors(file.name, str(error))) from error
        raise WeightsError(f"{file.name} is not a readable checkpoint; get it again.") from error
    if not found:
        raise WeightsError(
            f"{file.name} holds no state dict (tensors by name); save the network's state_dict()."
        )
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Checkpoint(
        file, _unwrapped(found), content if isinstance(content, Mapping) else {}, digest
    )


def _checkpoint_in(folder: Path) -> Path:
    """The one checkpoint in a folder of a known layout. Raises WeightsError if there is none,
    or more than one.
    """
    for pattern in _IN_FOLDERS:
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(file.relative_to(folder)) for file in found[:3])
            raise WeightsError(
                f"{folder} holds {len(found)} checkpoints ({names}, …); give one of them."
            )
    raise WeightsError(
        f"{folder} is a folder without a checkpoint that is known by its name; give the file"
        " itself."
    )


def _is_safetensors(start: bytes, size: int) -> bool:
    """Whether the first eight bytes are the length of a JSON header that follows."""
    return (
        len(start) > 9
        and start[8:9] == b"{"
        and 2 <= int.from_bytes(start[:8], "little") <= size - 8
    )


def _refuse_other_kinds(file: Path, start: bytes) -> None:
    """Raise WeightsError for files that are often mistaken for checkpoints, saying what the file is
    and what to do.
    """
    text = start.lstrip().lower()
    kinds = (
        (
            text.startswith(b"version https://git-lfs"),
            "a pointer of Git LFS; run `git lfs pull` where it was cloned, and give the file then",
        ),
        (
            text.startswith((b"<!doctype", b"<html", b"<?xml")),
            "a web page, not a download; get the file itself",
        ),
        (text.startswith((b"{", b"[")), "JSON text; give the file with the tensors"),
        (
            start.startswith(b"\x89HDF"),
            "HDF5, as Keras and TensorFlow write it; convert it to a PyTorch state dict",
        ),
        (start.startswith(b"\x1f\x8b"), "a gzip archive; unpack it, and give the checkpoint in it"),
        (start[257:262] == b"ustar", "a tar archive; unpack it, and give the checkpoint in it"),
        (
            start[:1] == b"\x08" and (b"onnx" in start[:64] or b"pytorch" in start[:64]),
            "an ONNX graph; give the PyTorch checkpoint it was made from",
        ),
        (not start, "empty; get it again"),
    )
    for matches, what in kinds:
        if matches:
            raise WeightsError(f"{file.name} is {what}.")
    if start.startswith(b"PK") and zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
        if not any(name.endswith("data.pkl") for name in names):
            inside = next(
                (name for name in names if name.endswith((".pth", ".pt", ".safetensors", ".bin"))),
                None,
            )
            unpack = f"unpack it, and give {inside}" if inside else "there is no checkpoint in it"
            raise WeightsError(f"{file.name} is a zip archive of other files; {unpack}.")


def _more_than_tensors(name: str, told: str) -> str:
    """The refusal of a file that contains other objects; it names the first."""
    found = re.search(r"GLOBAL ([\w.]{1,80})", told)
    what = f" ({found[1]})" if found else ""
    return (
        f"{name} holds more than tensors{what}, and loading it could run any code; where it was"
        " made, load it and save network.state_dict() with torch.save or safetensors."
    )


def _plain_numpy() -> list[Any]:
    """What torch's safe loader must allow, beyond tensors, to read numpy's numbers and plain
    arrays, which nnU-Net and others log into checkpoints.

    These are the functions that make them from bytes, under their names in numpy 1 and 2, and the
    types of numbers. None of them can run code.
    """
    scalar, array = np.float64(0.0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    made = {"scalar": scalar, "_reconstruct": array}
    names = [
        (made[name], f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name in made
    ]
    return [*names, np.ndarray, np.dtype, *sorted(kinds, key=lambda kind: kind.__name__)]


def _state_dict(content: Any) -> dict[str, torch.Tensor]:
    """The largest dictionary of tensors in a checkpoint's content, since training programs nest it
    under various names.
    """
    if not isinstance(content, Mapping):
        return {}
    own = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    nested = [_state_dict(value) for value in content.values() if isinstance(value, Mapping)]
    return max([own, *nested], key=len)


def _unwrapped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors without the leading name parts that wrapper modules add to every key."""
    while {key.partition(".")[0] for key in tensors} in [{wrapper} for wrapper in _WRAPPERS]:
        tensors = {key.partition(".")[2]: tensor for key, tensor in tensors.items()}
    return tensors
