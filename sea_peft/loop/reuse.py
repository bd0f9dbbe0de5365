"""Reuse of what a toggled unit cannot have changed: exact, for any wiring, without knowing the backbone."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

# Outputs kept of one reference pass; beyond it later blocks are computed anew.
MEMORY_LIMIT = 1 << 30

_WEIGHTED = (nn.Conv3d, nn.ConvTranspose3d, nn.Linear)


def reusable(network: nn.Module) -> tuple[str, ...]:
    """Paths of the modules worth remembering: everything below the network with at least two layers of weights and a forward of its own,
    whatever it holds, and single convolutions outside of those. Finer grains cost more in bookkeeping than they save."""
    blocks = [
        path
        for path, module in network.named_modules()
        if path
        and type(module).forward not in (nn.Sequential.forward, nn.Module.forward)
        and sum(isinstance(m, _WEIGHTED) for m in module.modules()) >= 2
    ]
    inside = tuple(path + "." for path in blocks)
    alone = [
        path
        for path, module in network.named_modules()
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d) and path and not path.startswith(inside)
    ]
    return (*blocks, *alone)


@dataclasses.dataclass
class _Kept:
    """A module's output in the reference pass, and how often it had been written to when the module returned it."""

    output: torch.Tensor
    version: int

    @property
    def intact(self) -> bool:
        """Whether the output is still what the module returned."""
        return self.output._version == self.version


class BlockReuse:
    """While entered, modules of the network remember what they returned in the first forward, the reference pass, and return it again for as
    long as a forward is the reference pass's.

    A forward under `toggled(path)` is the reference pass's until the unit at that path acts: everything that has returned by then was
    given the very same values. So whatever comes earlier in the reference pass's own order is skipped, whole decoders' worth of skips and sums
    included, and whatever comes later is computed: the numbers are those of a plain forward, bit for bit. A module that holds the toggled
    one runs; one that fires twice, writes into its input, or whose output was written to afterwards (`tensor._version`) is never skipped.
    Forward hooks (adapters) on a module still act, on the kept output.

    All forwards in the context must be of one input tensor, in eval mode and without gradients. `paths`: what to remember (`reusable`).
    `limit`: bytes of kept outputs; `kept_bytes` says how many there are.
    """

    def __init__(self, network: nn.Module, paths: Sequence[str], limit: int = MEMORY_LIMIT) -> None:
        self._network = network
        self._modules = {path: network.get_submodule(path) for path in paths}
        # by module, not by name: some networks register one module under several paths
        self._inside = {path: set(module.modules()) - {module} for path, module in self._modules.items()}
        self._limit = limit
        self._kept: dict[str, _Kept] = {}
        self._fired: set[str] = set()
        self._input: torch.Tensor | None = None
        self._reference = True
        self._toggled: list[nn.Module] = []  # of all contexts that are entered
        self._diverged = False
        self.reused = 0

    def __enter__(self) -> BlockReuse:
        for path, module in self._modules.items():
            module.forward = self._remembering(path, module.forward)
        # before the network's own hooks, which may put another tensor in the place of what is given (as nnU-Net's for CT do)
        self._before = self._network.register_forward_pre_hook(self._begin, prepend=True)
        self._after = self._network.register_forward_hook(self._end)
        return self

    def __exit__(self, *exception: object) -> None:
        self._before.remove()
        self._after.remove()
        for module in self._modules.values():
            del module.forward  # the instance's own attribute; the class's forward shows again
        self._kept.clear()
        self._input = None

    @property
    def kept_bytes(self) -> int:
        """Memory that kept outputs hold; views of one storage count once."""
        storages = {
            k.output.untyped_storage().data_ptr(): k.output.untyped_storage().nbytes() for k in self._kept.values()
        }
        return sum(storages.values())

    @contextlib.contextmanager
    def toggled(self, path: str, before: bool = False) -> Iterator[None]:
        """Forwards in here differ from the reference pass at this module path and nowhere else: in what becomes of the module's output, or,
        `before` it runs, in what it is given or in the weights that it runs with. Nested, they differ at each of the paths."""
        module = self._network.get_submodule(path)
        handle = (
            module.register_forward_pre_hook(lambda _module, _inputs: self._diverge())
            if before
            else module.register_forward_hook(lambda _module, _inputs, _output: self._diverge())
        )
        self._toggled.append(module)
        try:
            with handle:
                yield
        finally:
            self._toggled.pop()

    def _begin(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self._input is None:
            self._input = inputs[0]
        elif inputs[0] is not self._input:
            raise ValueError("forwards that reuse one another's blocks must be of one input tensor")
        self._diverged = False

    def _end(self, _module: nn.Module, _inputs: object, _output: object) -> None:
        self._reference = False

    def _diverge(self) -> None:
        self._diverged = True

    def _remembering(self, path: str, forward: Any) -> Any:
        def wrapped(*inputs: Any, **kwargs: Any) -> Any:
            if self._reference:
                return self._first(path, forward, inputs, kwargs)
            kept = self._kept.get(path)
            if kept is None or self._diverged or not (self._inside[path].isdisjoint(self._toggled) and kept.intact):
                return forward(*inputs, **kwargs)
            self.reused += 1
            return kept.output

        return wrapped

    def _first(self, path: str, forward: Any, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The reference pass through one module."""
        given = [*inputs, *kwargs.values()]
        before = [x._version for x in given if isinstance(x, torch.Tensor)]
        output = forward(*inputs, **kwargs)
        unwritten = before == [x._version for x in given if isinstance(x, torch.Tensor)]
        if path in self._fired:
            self._kept.pop(path, None)
        elif isinstance(output, torch.Tensor) and unwritten:
            self._kept[path] = _Kept(output, output._version)
            if self.kept_bytes > self._limit:
                del self._kept[path]
        self._fired.add(path)
        return output
