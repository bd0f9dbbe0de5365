"""The bank: holds the units of one backbone, and opens and closes their gates without touching
the backbone.
"""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn

from sea_peft.adapters.acting import Acting, Form, acting_tensors, changed_by, is_plain, own_tensors
from sea_peft.adapters.base import Adapter, CannotMerge
from sea_peft.adapters.registry import Unit, families


class Bank:
    """Every unit on offer for one backbone, each with a gate.

    A unit with an open gate replaces its site's output y by `adapter(x, y)`, or its input x by
    `adapter(x, x)` if its family acts on the input. Closed gates compute nothing, so a bank with
    all gates closed is the backbone bit for bit. Units of one site act in the order of their
    families. Modules are built when first needed; their initial values depend on the seed and the
    unit's id alone.

    Args:
        backbone: the frozen network.
        units: the units on offer.
        seed: of their initial values.
        form: whether units act through their sites' weights ("folded", where that is exact), as
            "branches", or in whichever form is "cheapest". All three are the same function up to
            rounding.
    """

    def __init__(
        self, backbone: nn.Module, units: Sequence[Unit], seed: int = 0, form: Form = "cheapest"
    ) -> None:
        self.backbone = backbone
        self.seed = seed
        self.form: Form = form
        self.units: dict[str, Unit] = {unit.id: unit for unit in units}
        self._adapters: dict[str, Adapter] = {}
        self._active: frozenset[str] = frozenset()
        self._changes: dict[str, frozenset[str] | None] = {}
        self._at: dict[str, tuple[list[str], Acting]] = {}

    def __getitem__(self, unit_id: str) -> Adapter:
        """The module of a unit, on the backbone's device."""
        if unit_id not in self._adapters:
            device = next(self.backbone.parameters()).device
            self._adapters[unit_id] = self.units[unit_id].build(self.backbone, self.seed).to(device)
        return self._adapters[unit_id]

    @property
    def built(self) -> list[str]:
        """Ids of the units whose modules exist. The others still have their initial values."""
        return sorted(self._adapters)

    @property
    def active(self) -> frozenset[str]:
        """Ids of the units whose gates are open."""
        return self._active

    def activate(self, unit_ids: Collection[str]) -> None:
        """Open exactly these gates and close all others. Raises KeyError for an id that is not
        in the bank.
        """
        wanted = frozenset(unit_ids)
        at: dict[str, list[str]] = {}
        for unit_id in self._in_order(wanted):
            self[unit_id]  # refuses an unknown id before any gate is closed
            at.setdefault(self.units[unit_id].site.path, []).append(unit_id)
        # leaves sites with unchanged units alone: an audit closes one unit of hundreds at a time
        kept = {path: now for path, now in self._at.items() if at.get(path) == now[0]}
        for path, (_, acting) in self._at.items():
            if path not in kept:
                acting.detach()
        self._active = wanted
        self._at = {
            path: kept.get(path) or (unit_ids, self._acting(path, unit_ids))
            for path, unit_ids in at.items()
        }

    def hold(self) -> None:
        """Fold open units into their sites' weights once, instead of in every forward. For a model
        that is not trained any more.

        The bits are the same; it takes memory for the weights that change.
        """
        for _, acting in self._at.values():
            acting.hold()

    def _acting(self, path: str, unit_ids: Sequence[str]) -> Acting:
        """Let these units act at this module path until they are detached."""
        module = self.backbone.get_submodule(path)
        adapters = [self[unit_id] for unit_id in unit_ids]
        for unit_id, adapter in zip(unit_ids, adapters, strict=True):
            if unit_id not in self._changes:
                self._changes[unit_id] = changed_by(adapter, module)
        return Acting(module, adapters, [self._changes[unit_id] for unit_id in unit_ids], self.form)

    def _in_order(self, unit_ids: Iterable[str]) -> list[str]:
        """These units in the order in which units of one site act."""
        known = families()
        return sorted(
            unit_ids, key=lambda u: (known[self.units[u].family].order, self.units[u].family, u)
        )

    def forget(self) -> None:
        """Close every gate and drop every module. When needed again, they are built with their
        initial values.
        """
        self.activate(())
        self._adapters.clear()
        self._changes.clear()

    @contextlib.contextmanager
    def only(self, unit_ids: Collection[str]) -> Iterator[None]:
        """Open exactly these gates for a while. Afterwards the gates are as before, even after
        an exception.
        """
        before = self._active
        self.activate(unit_ids)
        try:
            yield
        finally:
            self.activate(before)

    def without(self, *unit_ids: str) -> contextlib.AbstractContextManager[None]:
        """Close these gates for a while and leave the others unchanged: the ablation."""
        return self.only(self._active.difference(unit_ids))

    def parameters(self, unit_ids: Iterable[str]) -> list[nn.Parameter]:
        """The trainable parameters of these units, in a fixed order."""
        return [p for unit_id in sorted(unit_ids) for p in self[unit_id].parameters()]

    def acts_before(self, *unit_ids: str) -> bool:
        """Whether closing these open units changes how their site's module runs: its input or its
        weights.

        False if only the module's output changes afterwards. The units belong to one site and are
        closed together. Holds without gradients, when units are folded into the weights.
        """
        _, acting = self._at[self.units[unit_ids[0]].site.path]
        return acting.runs_otherwise_without([self[u] for u in unit_ids])

    def inherit(self, unit_ids: Iterable[str]) -> None:
        """Start units that were never built from a smaller level that has learnt.

        Each takes over the tensors of the largest smaller level of its family and placement at its
        site. If no such level was built, the unit starts fresh.
        """
        for unit in [self.units[u] for u in unit_ids if u not in self._adapters]:
            smaller = [
                s for s in (self.units[u] for u in self.built)
                if (s.group, s.placement) == (unit.group, unit.placement) and s.cost < unit.cost
            ]  # fmt: skip
            if smaller:
                self[unit.id].inherit(self[max(smaller, key=lambda s: s.cost).id])

    def state_dict(self, unit_ids: Iterable[str]) -> dict[str, torch.Tensor]:
        """`<unit id>/<parameter>` → tensor on the CPU, for these units."""
        return {
            f"{unit_id}/{name}": tensor.detach().cpu().clone()
            for unit_id in sorted(unit_ids)
            for name, tensor in self[unit_id].state_dict().items()
        }

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load what `state_dict` returned. Raises KeyError or RuntimeError if a unit, a parameter
        or a shape does not belong.
        """
        grouped: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            unit_id, _, name = key.rpartition("/")
            grouped.setdefault(unit_id, {})[name] = tensor
        for unit_id, state in grouped.items():
            self[unit_id].load_state_dict(state, strict=True)

    def merged(self, unit_ids: Collection[str]) -> dict[str, torch.Tensor]:
        """The backbone tensors that change when these units are folded in, by state-dict key.

        The backbone may have to grow before it can hold them (`backbones.growth`): norms get the
        scale and shift that they lack, and shapes may be larger.

        Raises:
            CannotMerge: a unit cannot be folded exactly. The message names it.
        """
        changed: dict[str, torch.Tensor] = {}
        # modules within a block first: units of the block itself are added to their results
        for unit_id in sorted(
            self._in_order(unit_ids), key=lambda u: self.units[u].site.kind == "block"
        ):
            path, block = self.units[unit_id].site.path, self.units[unit_id].site.kind == "block"
            module = self.backbone.get_submodule(path)
            own = dict(module.named_parameters()) if block else own_tensors(module)
            here = own if block else acting_tensors(module, next(self[unit_id].parameters()))
            now = {
                name: changed.get(f"{path}.{name}", tensor.detach())
                for name, tensor in here.items()
            }
            try:
                tensors = self[unit_id].merged(now)
                if not block and not is_plain(module):
                    raise CannotMerge(
                        f"only the code of {type(module).__name__} knows how it uses its tensors"
                    )
                if shared := {
                    name for name in tensors.keys() & own.keys() if self._holders(own[name]) > 1
                }:
                    raise CannotMerge(f"another module uses its {sorted(shared)[0]} too")
            except CannotMerge as reason:
                raise CannotMerge(f"{unit_id} cannot be merged: {reason}") from None
            except KeyError as name:
                raise CannotMerge(
                    f"{unit_id} cannot be merged: its site has no {name} that could be changed; a"
                    " weight or spectral norm computes it from others"
                ) from None
            changed |= {f"{path}.{name}": tensor.detach() for name, tensor in tensors.items()}
        return changed

    def _holders(self, tensor: torch.Tensor) -> int:
        """How many modules of the backbone own this tensor. A module registered in two places
        counts once.
        """
        return sum(
            any(tensor is own for own in own_tensors(module).values())
            for module in self.backbone.modules()
        )
