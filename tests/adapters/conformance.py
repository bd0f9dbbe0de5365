"""What every adapter family must keep on every backbone, as checks that take any units of any network.

`test_conformance.py` feeds them whatever is registered, `test_broken_families.py` families that break one
property each. A check raises AssertionError naming the unit.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from sea_peft.adapters import Adapter, Bank, CannotMerge, Offer, Unit, families, units_for
from sea_peft.adapters.liveness import acting
from sea_peft.backbones import Site, architectures, find_sites

# A network with a larger probe is slow: loops over its units take an even sample, or all when asked.
_LARGE_PROBE = 48**3
_SAMPLE = 6
# In float64 a gradient this small beside the largest is rounding.
_NOISE = 1e-10


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """A backbone to try units on: `network` is never handed out, only copies of it. `x`: [1, C, D, H, W]."""

    network: nn.Module
    sites: tuple[Site, ...]
    x: torch.Tensor
    thorough: bool = False

    @classmethod
    def of(cls, network: nn.Module, x: torch.Tensor) -> Bench:
        """Probe the network."""
        network = network.eval().requires_grad_(False)
        return cls(network, find_sites(network, x), x)

    def fresh(self, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.Tensor]:
        """A copy of the network and of the input."""
        return copy.deepcopy(self.network).to(dtype), self.x.to(dtype)

    def sample(self, units: Sequence[Unit]) -> Sequence[Unit]:
        """All units; on a slow network an even sample of them."""
        if self.thorough or self.x[0, 0].numel() <= _LARGE_PROBE or len(units) <= _SAMPLE:
            return units
        return [units[round(i * (len(units) - 1) / (_SAMPLE - 1))] for i in range(_SAMPLE)]


@functools.cache
def bench(backbone: str) -> Bench:
    """The small version of a registered architecture, with weights that depend on its name alone."""
    architecture = architectures()[backbone]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = architecture.build(in_channels=1, out_channels=3, **architecture.small)
        for (
            module
        ) in network.modules():  # norms start as ones and zeros, with which scale and shift could be confused unseen
            if not list(module.children()):
                for name, tensor in module.named_parameters():
                    if tensor.ndim == 1:
                        nn.init.uniform_(tensor, 0.5, 1.5) if name == "weight" else nn.init.normal_(tensor, std=0.1)
    return Bench.of(network, architecture.example(1, architecture.small))


def offered(bench: Bench, family: str) -> tuple[Unit, ...]:
    """Every unit of the family that acts on this backbone: what the audit space would hold of it."""
    return acting(bench.network, units_for(bench.network, bench.sites, {family: Offer()}), bench.x)


def at_every_site(units: Sequence[Unit], placement: str, level: str) -> tuple[Unit, ...]:
    """One unit a site, of this placement, at the "smallest" or the "largest" level that fits the site."""
    by_site: dict[str, list[Unit]] = {}
    for unit in units:
        if unit.placement == placement:
            by_site.setdefault(unit.site.path, []).append(unit)
    choose = min if level == "smallest" else max
    return tuple(choose(own, key=lambda u: u.level) for own in by_site.values())


# -- the checks --------------------------------------------------------------------------------------------


def check_identity(bench: Bench, units: Sequence[Unit]) -> None:
    """DESIGN 1: freshly built and open, the network is the backbone bit for bit."""
    network, x = bench.fresh()
    expected = _output(network, x)
    bank = Bank(network, units)
    bank.activate(_ids(units))
    if not torch.equal(_output(network, x), expected):
        for unit in units:
            with bank.only([unit.id]):
                assert torch.equal(_output(network, x), expected), f"{unit.id} is not the identity at the start"
        raise AssertionError("units that are the identity alone are not so together")


def check_off(bench: Bench, units: Sequence[Unit]) -> None:
    """DESIGN 2: trained and closed again, outputs and backbone tensors are bit for bit what they were."""
    network, x = bench.fresh()
    expected = _output(network, x)
    keys = list(network.state_dict())
    bank = _trained(network, x, units)
    bank.activate(())
    assert torch.equal(_output(network, x), expected), f"{units[0].family}: off is not off after training"
    assert list(network.state_dict()) == keys, f"{units[0].family} adds to the backbone's state dict"
    for key, tensor in bench.network.state_dict().items():
        assert torch.equal(network.state_dict()[key], tensor), f"{units[0].family} writes to the backbone's {key}"


def check_toggle(bench: Bench, units: Sequence[Unit]) -> None:
    """DESIGN 3: an ablation leaves other units alone; gates, mode and RNG are restored, also on error."""
    network, x = bench.fresh()
    bank = _trained(network, x, units)
    before = _everything(bank, network, x)
    for unit in (units[0], units[len(units) // 2], units[-1]):
        others = frozenset(_ids(units)) - {unit.id}
        with bank.without(unit.id):
            assert bank.active == others, f"ablating {unit.id} closes other gates too"
            off = _output(network, x)
            _unchanged(before["state"], _state(bank, others), f"ablating {unit.id}")
        again, _ = bench.fresh()
        never = Bank(again, [u for u in units if u.id != unit.id])
        never.load_state_dict({k: t for k, t in before["state"].items() if k.rpartition("/")[0] in others})
        never.activate(others)
        assert torch.equal(off, _output(again, x)), f"{unit.id} off is not the same as {unit.id} never there"
        try:
            with bank.without(unit.id):
                raise InterruptedError
        except InterruptedError:
            pass
        after = _everything(bank, network, x)
        assert after["active"] == before["active"], f"gates are not restored after ablating {unit.id}"
        assert after["modes"] == before["modes"], f"ablating {unit.id} changes train or eval mode"
        assert torch.equal(after["rng"], before["rng"]), f"{unit.family} draws from torch's global RNG"
        _unchanged(before["state"], after["state"], f"ablating {unit.id}")
        assert torch.equal(after["output"], before["output"]), f"the output after ablating {unit.id} is not what it was"


def check_acts(bench: Bench, units: Sequence[Unit]) -> None:
    """DESIGN 4: every unit on offer, alone and trained, changes the output."""
    network, x = bench.fresh()
    expected = _output(network, x)
    bank = Bank(network, units)
    for unit in bench.sample(units):
        _disturb(bank[unit.id], seed=1)
        with bank.only([unit.id]):
            assert not torch.equal(_output(network, x), expected), f"{unit.id} is on offer but changes nothing"


def check_cost(bench: Bench, units: Sequence[Unit]) -> None:
    """The cost is the numel of what is really trained: the leaves of the output's autograd graph."""
    network, x = bench.fresh()
    bank = Bank(network, units)
    for unit in units:
        _disturb(bank[unit.id], seed=1)
        numel = sum(p.numel() for p in bank[unit.id].parameters())
        assert unit.cost == numel, f"{unit.id} is booked with {unit.cost} parameters and has {numel}"
    for unit in (units[0], units[-1]):
        with bank.only([unit.id]):
            trained = sum(leaf.numel() for leaf in _leaves(network(x)))
        assert trained == unit.cost, f"{unit.id} trains {trained} parameters, its cost is {unit.cost}"


def check_roundtrip(bench: Bench, units: Sequence[Unit], folder: Path) -> None:
    """DESIGN 18: saved and loaded into a bank of another seed, the outputs are the same bit for bit."""
    network, x = bench.fresh()
    bank = _trained(network, x, units)
    expected = _output(network, x)
    safetensors.torch.save_file(bank.state_dict(_ids(units)), folder / "adapter.safetensors")
    again, _ = bench.fresh()
    loaded = Bank(again, units, seed=99)
    loaded.load_state_dict(safetensors.torch.load_file(folder / "adapter.safetensors"))
    loaded.activate(_ids(units))
    assert torch.equal(_output(again, x), expected), f"{units[0].family} is another one after saving and loading"


def check_merge(bench: Bench, units: Sequence[Unit]) -> None:
    """DESIGN 5: merged, the change of the output is the same within 1e-5; or it is refused by name."""
    network, x = bench.fresh(torch.float64)
    baseline = _output(network, x)
    bank = Bank(network, units)
    for unit in units:
        bank[unit.id].double()
        _disturb(bank[unit.id], seed=1)
    together = _merged(bank, units)
    for part in [units] if together is not None else [[unit] for unit in bench.sample(units)]:
        tensors = _merged(bank, part)
        if tensors is None:
            continue
        with bank.only(_ids(part)):
            adapted = _output(network, x)
        plain, _ = bench.fresh(torch.float64)
        unknown = plain.load_state_dict(tensors, strict=False).unexpected_keys
        assert not unknown, f"merging {part[0].id} makes the unknown tensor {unknown}"
        change = float((adapted - baseline).abs().max())
        error = float((_output(plain, x) - adapted).abs().max())
        assert error <= 1e-5 * change, f"merging {part[0].id} is off by {error / change:.1e} of its effect"


def check_inherit(bench: Bench, units: Sequence[Unit]) -> None:
    """A larger level begins with exactly what its trained smaller sibling does, or as the identity; and leaves the sibling alone."""
    network, x = bench.fresh(torch.float64)
    baseline = _output(network, x)
    every = offered(bench, units[0].family)
    for unit in bench.sample(units):
        siblings = [u for u in every if (u.group, u.placement) == (unit.group, unit.placement) and u.cost < unit.cost]
        for smaller in siblings:
            bank = Bank(network, [unit, smaller])
            for unit_id in (unit.id, smaller.id):
                bank[unit_id].double()
            _disturb(bank[smaller.id], seed=1)
            before = _state(bank, [smaller.id])
            with bank.only([smaller.id]):
                expected = _output(network, x)
            bank[unit.id].inherit(bank[smaller.id])
            with bank.only([unit.id]):
                found = _output(network, x)
            same = torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
            assert same or torch.equal(found, baseline), f"{unit.id} does not begin as {smaller.id}"
            _unchanged(before, _state(bank, [smaller.id]), f"{unit.id} inheriting from {smaller.id}")
            _disturb(bank[unit.id], seed=2)
            _unchanged(before, _state(bank, [smaller.id]), f"training {unit.id}")


def check_gradients(bench: Bench, units: Sequence[Unit]) -> None:
    """Off the zero initialisation, gradients reach every tensor of every open unit and none of the backbone.

    One exception: a tensor that can only shift whole channels may have none where the backbone does not see
    such a shift (a full-rank unit's bias in front of an instance norm).
    """
    network, x = bench.fresh(torch.float64)
    bank = Bank(network, units)
    for unit in units:
        bank[unit.id].double()
        _disturb(bank[unit.id], seed=1)
    bank.activate(_ids(units))
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def remember(path: str) -> Callable[..., None]:
        return lambda _module, inputs, output: seen.update({path: (inputs[0].detach(), output.detach())})

    handles = [network.get_submodule(u.site.path).register_forward_hook(remember(u.site.path)) for u in units]
    output = network(x)
    for handle in handles:
        handle.remove()
    own = {id(p): f"{u.id}/{n}" for u in units for n, p in bank[u.id].named_parameters()}
    foreign = [leaf for leaf in _leaves(output) if id(leaf) not in own]
    assert not foreign, f"{units[0].family} lets gradients reach {len(foreign)} tensors that are not its own"
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3), dtype=output.dtype)
    (output * weights).sum().backward()
    touched = [name for name, p in network.named_parameters() if p.grad is not None]
    assert not touched, f"{units[0].family} lets gradients reach the backbone's {touched}"
    named = {(u, n): p for u in units for n, p in bank[u.id].named_parameters()}
    sizes = {key: 0.0 if p.grad is None else float(p.grad.abs().max()) for key, p in named.items()}
    floor = _NOISE * max(sizes.values())
    for (unit, name), size in sizes.items():
        if size <= floor:
            shifts = _only_shifts(bank[unit.id], named[unit, name], *seen[unit.site.path])
            assert shifts, f"no gradient reaches {name} of {unit.id}"


# -- how ---------------------------------------------------------------------------------------------------


def _ids(units: Sequence[Unit]) -> list[str]:
    return [unit.id for unit in units]


@torch.no_grad()
def _output(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return network(x)


@torch.no_grad()
def _disturb(adapter: Adapter, seed: int) -> None:
    """As if trained: every parameter takes a random step of a tenth."""
    generator = torch.Generator().manual_seed(seed)
    for p in adapter.parameters():
        p += 0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


def _trained(network: nn.Module, x: torch.Tensor, units: Sequence[Unit]) -> Bank:
    """A bank with all units open after two optimizer steps and a random disturbance."""
    bank = Bank(network, units)
    bank.activate(_ids(units))
    parameters = bank.parameters(_ids(units))
    assert len({id(p) for p in parameters}) == len(parameters), f"units of {units[0].family} share tensors"
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        (network(x) - 1.0).square().mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    for unit in units:
        _disturb(bank[unit.id], seed=2)
    return bank


def _state(bank: Bank, unit_ids: Sequence[str] | frozenset[str]) -> dict[str, torch.Tensor]:
    return bank.state_dict(unit_ids)


def _everything(bank: Bank, network: nn.Module, x: torch.Tensor) -> dict:
    """Output, gates, modes, tensors, and the RNG after all that."""
    return {
        "output": _output(network, x),
        "active": bank.active,
        "modes": {u: bank[u].training for u in bank.built} | {n: m.training for n, m in network.named_modules()},
        "state": _state(bank, bank.built),
        "rng": torch.get_rng_state(),
    }


def _unchanged(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], by: str) -> None:
    for key, tensor in after.items():
        assert torch.equal(tensor, before[key]), f"{by} changes {key}"


def _leaves(output: torch.Tensor) -> Iterator[torch.Tensor]:
    """Every tensor that a backward pass from `output` would give a gradient to."""
    stack, visited = [output.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack.extend(following for following, _ in node.next_functions)


def _merged(bank: Bank, units: Sequence[Unit]) -> dict[str, torch.Tensor] | None:
    """The merged tensors, or None where merging is refused, which must name a unit and say why."""
    try:
        return bank.merged(_ids(units))
    except CannotMerge as error:
        refusal = str(error)
    unit_id, _, reason = refusal.partition(" cannot be merged: ")
    assert unit_id in _ids(units), f"merging is refused without naming the unit: {refusal}"
    assert len(reason.split()) > 2, f"merging is refused without a reason: {refusal}"
    return None


@torch.no_grad()
def _only_shifts(adapter: Adapter, parameter: nn.Parameter, x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether all that `parameter` can do to the site's output y is to add a constant to whole channels."""
    before = adapter(x, y)
    parameter += 1.0
    change = (adapter(x, y) - before).flatten(2)
    parameter -= 1.0
    return bool(change.abs().max() > 0) and float(change.std(dim=-1).max()) <= 1e-9


CHECKS = (
    check_identity,
    check_off,
    check_toggle,
    check_acts,
    check_cost,
    check_merge,
    check_inherit,
    check_gradients,
)


def cases() -> list[tuple[str, str, str, str]]:
    """(backbone, family, placement, level) of everything that is registered."""
    return [
        (backbone, name, placement, level)
        for backbone in architectures()
        for name, family in families().items()
        for placement in family.placements
        for level in (("smallest", "largest") if len(family.levels) > 1 else ("smallest",))
    ]
