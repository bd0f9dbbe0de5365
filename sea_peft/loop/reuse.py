"""Reuse of what a toggled unit cannot have changed: exact, for any wiring, without knowing the backbone."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn

from sea_peft.backbones import Site


@dataclasses.dataclass
class _Kept:
    """A module's inputs and output in the baseline pass, with the versions that say whether somebody has written into them since."""

    inputs: tuple[Any, ...]
    output: torch.Tensor
    versions: list[int]

    @property
    def intact(self) -> bool:
        """Whether inputs are what the module was given and the output is what it returned."""
        return _versions(*self.inputs, self.output) == self.versions


class BlockReuse:
    """While entered, blocks of the backbone remember their first pass and return its output whenever their inputs are the same again.

    The first forward inside the context is the baseline. In later forwards a block whose inputs equal the baseline's, value for value,
    and which does not hold a toggled site returns what it returned then: the numbers are those of a plain forward, bit for bit.
    Equality is checked on the tensors themselves (memory-bound, a small part of a convolution), so skips and sums between blocks need
    no special treatment. Blocks are the sites of kind `block`, and leaf sites outside of them. Where a block's inputs or output were
    written to in place (`tensor._version`), by the block itself or later, it is computed anew. Forward hooks (adapters) on a block still
    act, on the kept output.
    """

    def __init__(self, backbone: nn.Module, sites: Sequence[Site]) -> None:
        blocks = [site.path for site in sites if site.kind == "block"]
        inside = tuple(path + "." for path in blocks)
        leaves = [s.path for s in sites if s.kind in ("conv", "transposed") and not s.path.startswith(inside)]
        self._modules = {path: backbone.get_submodule(path) for path in (*blocks, *leaves)}
        self._kept: dict[str, _Kept] = {}
        self._toggled: tuple[str, ...] = ()
        self.reused = 0

    def __enter__(self) -> BlockReuse:
        for path, module in self._modules.items():
            module.forward = self._remembering(path, module.forward)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module in self._modules.values():
            del module.forward  # the instance's own attribute; the class's forward shows again
        self._kept.clear()

    @contextlib.contextmanager
    def toggled(self, *paths: str) -> Iterator[None]:
        """Forwards in here differ from the baseline at these module paths."""
        before, self._toggled = self._toggled, paths
        try:
            yield
        finally:
            self._toggled = before

    def _remembering(self, path: str, forward: Any) -> Any:
        def wrapped(*inputs: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            kept = self._kept.get(path)
            if kept is None:
                given = _versions(*inputs)
                output = forward(*inputs, **kwargs)
                if not kwargs and isinstance(output, torch.Tensor):
                    self._kept[path] = _Kept(inputs, output, [*given, output._version])
                return output
            # a unit on the block itself acts in a hook after this forward, so only what is inside the block matters
            holds = any(p.startswith(path + ".") for p in self._toggled)
            if not holds and not kwargs and kept.intact and _same(kept.inputs, inputs):
                self.reused += 1
                return kept.output
            return forward(*inputs, **kwargs)

        return wrapped


def _versions(*values: Any) -> list[int]:
    """How often each tensor was written to; 0 for what is none."""
    return [value._version if isinstance(value, torch.Tensor) else 0 for value in values]


def _same(kept: tuple[Any, ...], given: tuple[Any, ...]) -> bool:
    """Whether two argument tuples hold the same tensors, by identity or value for value."""
    return len(kept) == len(given) and all(
        a is b or (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and torch.equal(a, b))
        for a, b in zip(kept, given, strict=True)
    )
