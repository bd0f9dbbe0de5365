"""The tensors of a TorchScript archive, read without running its code.

An archive is a zip with the program under `code/`, the bytes of tensors under `data/`, and
`data.pkl`, which connects modules, names and tensors. Only the last two are read, by an unpickler
that knows tensors and plain containers. Objects of the archive's own classes become inert records
of their attributes.
"""

import collections
import io
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

_MOST_BYTES = 64 << 20  # of data.pkl: names and shapes, no values
_DEEPEST = 100
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Record:
    """An object of one of the archive's classes: its attributes and nothing else."""

    def __init__(self, *_given: object) -> None:
        self.attributes: Mapping[str, object] = {}

    def __setstate__(self, state: object) -> None:
        self.attributes = state if isinstance(state, Mapping) else {}


def _first(value: object, *_more: object) -> object:
    return value


class _Unpickler(pickle.Unpickler):
    """Builds records, lists, dictionaries and tensors, and refuses every other name."""

    def __init__(self, file: io.BytesIO, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self._archive, self._root = archive, root
        self._storages: dict[str, torch.Tensor] = {}

    def find_class(self, module: str, name: str) -> Callable[..., Any] | str:
        if module.split(".")[0] == "__torch__":
            return _Record
        if module == "torch" and name in _DTYPES:
            return name
        if module == "torch.jit._pickle":  # typed lists, and values with their type beside them
            return _first
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch", "device"): _Record,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is not a tensor")
        return known[module, name]

    def persistent_load(self, told: Any) -> torch.Tensor:
        _, kind, key, _, count = told
        if key not in self._storages:
            content = self._archive.read(f"{self._root}/data/{key}")
            found = (
                torch.frombuffer(bytearray(content), dtype=_DTYPES[kind])
                if content
                else torch.empty(0)
            )
            if len(found) != count:
                raise pickle.UnpicklingError(f"tensor {key} has {len(found)} values, not {count}")
            self._storages[key] = found
        return self._storages[key]


def _tensor(
    storage: torch.Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_more: object
) -> torch.Tensor:
    if not math.prod(size):
        return torch.empty(tuple(size), dtype=storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min(offset, *size, *stride, 0) < 0 or last >= len(storage):
        raise pickle.UnpicklingError("a tensor reaches beyond its values")
    return storage.as_strided(tuple(size), tuple(stride), offset).clone()


def root_of(file: Path) -> str | None:
    """The top folder inside a TorchScript archive; None if the file is no such archive."""
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    roots = {name.split("/")[0] for name in names}
    if len(roots) != 1:
        return None
    root = roots.pop()
    return (
        root
        if f"{root}/data.pkl" in names and any(n.startswith(f"{root}/code/") for n in names)
        else None
    )


def read_tensors(file: Path, root: str) -> dict[str, torch.Tensor]:
    """Every tensor of the archive by the names of its modules and attributes. Raises exceptions of
    any kind for a damaged archive.
    """
    with zipfile.ZipFile(file) as archive:
        if archive.getinfo(f"{root}/data.pkl").file_size > _MOST_BYTES:
            raise pickle.UnpicklingError("data.pkl is larger than any network's")
        with archive.open(f"{root}/data.pkl") as stream:
            content = stream.read(_MOST_BYTES)
        network = _Unpickler(io.BytesIO(content), archive, root).load()
    return dict(_walk(network, (), 0))


def _walk(node: object, path: tuple[str, ...], depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(node, torch.Tensor):
        yield ".".join(path), node
    elif isinstance(node, _Record) and depth < _DEEPEST:
        for name, value in node.attributes.items():
            yield from _walk(value, (*path, str(name)), depth + 1)
