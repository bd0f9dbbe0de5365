"""Reuse of block outputs that a toggled unit cannot have changed: exact, for any wiring, without
knowing the backbone.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

# Bytes of outputs kept from one reference pass; later blocks beyond it are computed again.
MEMORY_LIMIT = 1 << 30

_WEIGHTED = (nn.Conv3d, nn.ConvTranspose3d, nn.Linear)


def reusable(network: nn.Module) -> tuple[str, ...]:
    """Paths of the modules whose outputs are worth keeping.

    These are all modules below the network with a forward of their own and at least two layers with
    weights, and single convolutions outside of those. A finer grain costs more in bookkeeping than
    it saves.
    """
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
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d)
        and path
        and not path.startswith(inside)
    ]
    return (*blocks, *alone)


@dataclasses.dataclass
class _Kept:
    """A module's output in the reference pass, with its tensor version when the module returned
    it.
    """

    output: torch.Tensor
    version: int

    @property
    def intact(self) -> bool:
        """Whether the output is still what the module returned."""
        return self.output._version == self.version


class BlockReuse:
    """Skips modules whose output cannot differ from the reference pass.

    While the context is entered, modules remember their outputs in the first forward, the reference
    pass. A later forward under `toggled(path)` equals the reference pass until the unit at that
    path acts: every module that returns before then has been given the very same values. So modules
    that come earlier in the order of the reference pass return their kept outputs, and later ones
    are computed. The numbers are those of a plain forward, bit for bit.

    A module that contains the toggled one always runs. A module is never skipped if it fires twice,
    writes into its input, or has had its output written to (`tensor._version`). Forward hooks
    (adapters) on a skipped module still act, on the kept output.

    All forwards in the context must be of one input tensor, in eval mode and without gradients.

    Args:
        network: the backbone.
        paths: modules to remember (see `reusable`).
        limit: most bytes of kept outputs.
    """

    def __init__(self, network: nn.Module, paths: Sequence[str], limit: int = MEMORY_LIMIT) -> None:
        self._network = network
        self._modules = {path: network.get_submodule(path) for path in paths}
        # by module, not by name: some networks register one module under several paths
        self._inside = {
            path: set(module.modules()) - {module} for path, module in self._modules.items()
        }
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
        # before the network's own hooks, which may replace the input tensor (as nnU-Net's for CT
        # do)
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
        """Bytes that kept outputs hold; views of one storage count once."""
        storages = {
            k.output.untyped_storage().data_ptr(): k.output.untyped_storage().nbytes()
            for k in self._kept.values()
        }
        return sum(storages.values())

    @contextlib.contextmanager
    def toggled(self, path: str, before: bool = False) -> Iterator[None]:
        """Declare that forwards in here differ from the reference pass at this module path and
        nowhere else.

        They differ in the module's output or, with `before`, already in its input or weights.
        Nested contexts differ at each of their paths.
        """
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

    def _begin(self, _module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if self._input is None:
            self._input = inputs[0]
        elif inputs[0] is not self._input:
            raise ValueError("forwards that reuse one another's blocks must be of one input tensor")
        self._diverged = False

    def _end(self, _module: nn.Module, _inputs: object, _output: object) -> None:
        self._reference = False

    def _diverge(self) -> None:
        self._diverged = True

    def _remembering(self, path: str, forward: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*inputs: object, **kwargs: object) -> object:
            if self._reference:
                return self._first(path, forward, inputs, kwargs)
            kept = self._kept.get(path)
            if (
                kept is None
                or self._diverged
                or not (self._inside[path].isdisjoint(self._toggled) and kept.intact)
            ):
                return forward(*inputs, **kwargs)
            self.reused += 1
            return kept.output

        return wrapped

    def _first(
        self,
        path: str,
        forward: Callable[..., object],
        inputs: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> object:
        """Run one module in the reference pass, and keep its output where that is safe."""
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
