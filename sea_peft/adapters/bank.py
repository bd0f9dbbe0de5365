"""The bank: holds the units of one backbone and opens and closes their gates, without touching the backbone."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sea_peft.adapters.base import Adapter, CannotMerge
from sea_peft.adapters.registry import Unit, families


class Bank:
    """Every unit on offer for one backbone, each with a gate.

    A unit acts through a hook on its site's module: with its gate open the site's output y becomes `adapter(x, y)`, or its input x
    `adapter(x, x)` in a family that acts on the input; with its gate closed nothing is computed, so a closed bank is the backbone bit
    for bit. Units of one site act in the registry's order of families. Modules are built when they are first needed; their initial
    values depend on the seed and the unit's id alone.
    """

    def __init__(self, backbone: nn.Module, units: Sequence[Unit], seed: int = 0) -> None:
        self.backbone = backbone
        self.seed = seed
        self.units: dict[str, Unit] = {unit.id: unit for unit in units}
        self._adapters: dict[str, Adapter] = {}
        self._active: frozenset[str] = frozenset()
        self._at: dict[str, list[Adapter]] = {}
        self._handles: list[RemovableHandle] = []
        self._rank = {name: i for i, name in enumerate(families())}

    def __getitem__(self, unit_id: str) -> Adapter:
        """The module of a unit, on the backbone's device."""
        if unit_id not in self._adapters:
            device = next(self.backbone.parameters()).device
            self._adapters[unit_id] = self.units[unit_id].build(self.backbone, self.seed).to(device)
        return self._adapters[unit_id]

    @property
    def built(self) -> list[str]:
        """Ids of the units whose modules exist; the others are still what they would be built as."""
        return sorted(self._adapters)

    @property
    def active(self) -> frozenset[str]:
        """Ids of the units whose gates are open."""
        return self._active

    def activate(self, unit_ids: Collection[str]) -> None:
        """Open exactly these gates and close all others. Raises KeyError for an id that is not in the bank."""
        wanted = frozenset(unit_ids)
        at: dict[str, list[Adapter]] = {}
        for unit_id in sorted(wanted, key=lambda u: (self._rank[self.units[u].family], u)):
            at.setdefault(self.units[unit_id].site.path, []).append(self[unit_id])
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for path, adapters in at.items():
            module = self.backbone.get_submodule(path)
            before, after = ([a for a in adapters if a.on_input is early] for early in (True, False))
            if before:  # first of all hooks, so that whoever looks at the input sees what the module is given
                self._handles.append(module.register_forward_pre_hook(_acting_before(before), prepend=True))
            if after:
                self._handles.append(module.register_forward_hook(_acting(after)))
        self._active, self._at = wanted, at

    def forget(self) -> None:
        """Close every gate and drop every module: the next time they are needed they are built as they were at first."""
        self.activate(())
        self._adapters.clear()

    @contextlib.contextmanager
    def only(self, unit_ids: Collection[str]) -> Iterator[None]:
        """Open exactly these gates for a while; afterwards the gates are what they were, also when an exception ends it."""
        before = self._active
        self.activate(unit_ids)
        try:
            yield
        finally:
            self.activate(before)

    def without(self, *unit_ids: str) -> contextlib.AbstractContextManager[None]:
        """Close these gates for a while and leave the others as they are: the ablation."""
        return self.only(self._active.difference(unit_ids))

    def parameters(self, unit_ids: Iterable[str]) -> list[nn.Parameter]:
        """The trainable parameters of these units, in a fixed order."""
        return [p for unit_id in sorted(unit_ids) for p in self[unit_id].parameters()]

    def active_paths(self) -> frozenset[str]:
        """Module paths at which a gate is open."""
        return frozenset(self._at)

    def state_dict(self, unit_ids: Iterable[str]) -> dict[str, torch.Tensor]:
        """`<unit id>/<parameter>` → tensor on the CPU, for these units."""
        return {
            f"{unit_id}/{name}": tensor.detach().cpu().clone()
            for unit_id in sorted(unit_ids)
            for name, tensor in self[unit_id].state_dict().items()
        }

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load what `state_dict` gave. Raises KeyError or RuntimeError where a unit, a parameter or a shape does not belong."""
        grouped: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            unit_id, _, name = key.rpartition("/")
            grouped.setdefault(unit_id, {})[name] = tensor
        for unit_id, state in grouped.items():
            self[unit_id].load_state_dict(state, strict=True)

    def merged(self, unit_ids: Collection[str]) -> dict[str, torch.Tensor]:
        """Backbone tensors, by state-dict key, with these units folded in: only those that change.

        Raises CannotMerge, naming the unit, when one of them cannot be folded exactly.
        """
        changed: dict[str, torch.Tensor] = {}
        for unit_id in sorted(unit_ids, key=lambda u: (self._rank[self.units[u].family], u)):
            path = self.units[unit_id].site.path
            own = dict(self.backbone.get_submodule(path).named_parameters(recurse=False))
            now = {name: changed.get(f"{path}.{name}", tensor.detach()) for name, tensor in own.items()}
            try:
                folded = self[unit_id].merged(now)
            except CannotMerge as reason:
                raise CannotMerge(f"{unit_id} cannot be merged: {reason}") from None
            changed |= {f"{path}.{name}": tensor.detach() for name, tensor in folded.items()}
        return changed


def _acting(adapters: Sequence[Adapter]) -> Any:
    """A forward hook that lets these adapters act on the output, one after the other."""

    def hook(_module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        for adapter in adapters:
            output = adapter(inputs[0], output)
        return output

    return hook


def _acting_before(adapters: Sequence[Adapter]) -> Any:
    """A forward pre-hook that lets these adapters act on the first input, one after the other."""

    def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = inputs
        for adapter in adapters:
            x = adapter(x, x)
        return (x, *others)

    return hook
