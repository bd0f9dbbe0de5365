"""Which units can act at all. A unit whose parameters cannot change the output is not offered."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from sea_peft.adapters.bank import Bank
from sea_peft.adapters.registry import Unit

# In float64 a dead unit's gradient is rounding noise, at least nine digits below any live one.
_RELATIVE_NOISE = 1e-9
# Units open at once: each keeps activations for the backward pass, and a whole audit space would
# not fit into memory.
_AT_ONCE = 128


def acting(backbone: nn.Module, units: Sequence[Unit], example: torch.Tensor) -> tuple[Unit, ...]:
    """The units whose parameters change the output of `backbone` for `example` `[B, C, D, H, W]`.

    Does a forward and backward pass in float64 with units open at their identity. A gradient of
    zero (up to rounding) means that nothing the unit could learn would show, as with a bias in
    front of an instance norm. Levels of one family at one site live or die together, so one of them
    stands for all. Probes a copy, so the backbone is untouched.
    """
    if not units:
        return ()
    probed = copy.deepcopy(backbone).double().eval().requires_grad_(False)
    first: dict[tuple[str, str], Unit] = {}
    for unit in units:
        first.setdefault((unit.group, unit.placement), unit)
    representatives = list(first.values())
    passes = -(-len(representatives) // _AT_ONCE)
    alive: set[tuple[str, str]] = set()
    for i in range(
        passes
    ):  # every n-th unit, so that no single pass holds all of the sites with the largest volumes
        alive |= _alive(probed, representatives[i::passes], example.double())
    return tuple(unit for unit in units if (unit.group, unit.placement) in alive)


def _alive(probed: nn.Module, units: Sequence[Unit], example: torch.Tensor) -> set[tuple[str, str]]:
    """(group, placement) of the units whose parameters get a gradient when all of them are open."""
    bank = Bank(probed, units)
    for unit in units:
        bank[unit.id].double()
    with bank.only([unit.id for unit in units]):
        output = probed(example)
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    parameters = [list(bank[unit.id].parameters()) for unit in units]
    flat = [p for own in parameters for p in own]
    gradients = iter(torch.autograd.grad((output * weights).sum(), flat, allow_unused=True))
    sizes = [
        max(float(g.abs().max()) if (g := next(gradients)) is not None else 0.0 for _ in own)
        for own in parameters
    ]
    floor = _RELATIVE_NOISE * max(sizes)
    return {
        (unit.group, unit.placement)
        for unit, size in zip(units, sizes, strict=True)
        if size > floor
    }
