"""Which units can act at all: a unit whose parameters cannot change the output is not offered."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from sea_peft.adapters.bank import Bank
from sea_peft.adapters.registry import Unit

# In float64 a dead unit's gradient is rounding noise, at least nine digits below any live one.
_RELATIVE_NOISE = 1e-9


def acting(backbone: nn.Module, units: Sequence[Unit], example: torch.Tensor) -> tuple[Unit, ...]:
    """Those of `units` whose parameters change the output of `backbone` for `example` [B, C, D, H, W].

    One forward and backward in float64 with every unit open at its identity: a gradient of zero (up to rounding) means that nothing the
    unit could learn would show, as with a bias in front of an instance norm. Levels of one family at one site live or die together,
    so one of them stands for all. The backbone is not touched (a copy is probed).
    """
    if not units:
        return ()
    probed = copy.deepcopy(backbone).double().eval().requires_grad_(False)
    first: dict[tuple[str, str], Unit] = {}
    for unit in units:
        first.setdefault((unit.group, unit.placement), unit)
    bank = Bank(probed, list(first.values()))
    for unit in first.values():
        bank[unit.id].double()
    bank.activate([unit.id for unit in first.values()])
    output = probed(example.double())
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    parameters = {key: list(bank[unit.id].parameters()) for key, unit in first.items()}
    flat = [p for ps in parameters.values() for p in ps]
    gradients = iter(torch.autograd.grad((output * weights).sum(), flat, allow_unused=True))
    size = {
        key: max(float(g.abs().max()) if (g := next(gradients)) is not None else 0.0 for _ in ps)
        for key, ps in parameters.items()
    }
    floor = _RELATIVE_NOISE * max(size.values())
    return tuple(unit for unit in units if size[unit.group, unit.placement] > floor)
