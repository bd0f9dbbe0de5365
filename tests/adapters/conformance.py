"""What every adapter family must keep on every backbone, as checks that take any units of any
network.

`test_conformance.py` feeds them whatever is registered, `test_broken_families.py` families that
break one property each. A check raises AssertionError naming the unit or its family.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import safetensors.torch
import torch
from benches import Bench, output_of
from torch import nn

from sea_peft.adapters import Adapter, Bank, CannotMerge, Offer, Unit, units_for
from sea_peft.adapters.acting import Form
from sea_peft.artefacts.profile import load_profile
from sea_peft.backbones.growth import grow, growth

# In float64 a gradient this small beside the largest is rounding.
_NOISE = 1e-10
# How units act; the first is what the families define.
FORMS: tuple[Form, ...] = ("branches", "folded", "cheapest")
# What is on offer by default.
DEFAULT = load_profile("default").offers()
# How far a parameter goes as if trained: far enough to see, not so far that a hundred units
# together overflow.
_STEP = 0.03


# -- the checks ------------------------------------------------------------------------------------


def check_identity(bench: Bench, units: Sequence[Unit]) -> None:
    """DESIGN 1: freshly built and open, the network is the backbone bit for bit; and what is
    built depends on the seed alone.
    """
    network, x = bench.fresh()
    expected = output_of(network, x)
    bank = Bank(network, units)
    rng = torch.get_rng_state()
    for unit in units:
        assert unit.id in bank.units
        _unchanged(
            _state(bank, [unit.id]),
            _state(Bank(network, [unit]), [unit.id]),
            f"building {unit.id} again",
        )
    assert torch.equal(torch.get_rng_state(), rng), (
        f"{units[0].family} draws from torch's global RNG when it is built"
    )
    bank.activate(_ids(units))
    if not torch.equal(output_of(network, x), expected):
        for unit in units:
            with bank.only([unit.id]):
                assert torch.equal(output_of(network, x), expected), (
                    f"{unit.id} is not the identity at the start"
                )
        raise AssertionError("units that are the identity alone are not so together")


def check_off(bench: Bench, units: Sequence[Unit]) -> None:
    """DESIGN 2: trained and closed again, outputs and backbone tensors are bit for bit what
    they were.
    """
    network, x = bench.fresh()
    expected = output_of(network, x)
    keys = list(network.state_dict())
    bank = _trained(network, x, units)
    bank.activate(())
    assert torch.equal(output_of(network, x), expected), (
        f"{units[0].family}: off is not off after training"
    )
    assert list(network.state_dict()) == keys, (
        f"{units[0].family} adds to the backbone's state dict"
    )
    for key, tensor in bench.network.state_dict().items():
        assert torch.equal(network.state_dict()[key], tensor), (
            f"{units[0].family} writes to the backbone's {key}"
        )


def check_toggle(bench: Bench, units: Sequence[Unit]) -> None:
    """DESIGN 3: an ablation leaves other units alone; gates, mode and RNG are restored, also on
    error.
    """
    network, x = bench.fresh()
    bank = _trained(network, x, units)
    before = _everything(bank, network, x)
    assert bool(before["output"].isfinite().all()), f"{units[0].family} makes numbers that are none"
    for toggled in (units[0::3], units[1::3], units[2::3]):
        if not toggled:
            continue
        said = " ".join(_ids(toggled))
        others = frozenset(_ids(units)) - set(_ids(toggled))
        with bank.without(*_ids(toggled)):
            assert bank.active == others, f"ablating {said} closes other gates too"
            off = output_of(network, x)
            _unchanged(before["state"], _state(bank, others), f"ablating {said}")
        again, _ = bench.fresh()
        never = Bank(again, [u for u in units if u.id in others])
        never.load_state_dict(
            {k: t for k, t in before["state"].items() if k.rpartition("/")[0] in others}
        )
        never.activate(others)
        assert torch.equal(off, output_of(again, x)), f"{said} off is not the same as never there"
        try:
            with bank.without(*_ids(toggled)):
                raise InterruptedError
        except InterruptedError:
            pass
        after = _everything(bank, network, x)
        assert after["active"] == before["active"], f"gates are not restored after ablating {said}"
        assert after["modes"] == before["modes"], f"ablating {said} changes train or eval mode"
        assert torch.equal(after["rng"], before["rng"]), (
            f"{toggled[0].family} draws from torch's global RNG"
        )
        _unchanged(before["state"], after["state"], f"ablating {said}")
        assert torch.equal(after["output"], before["output"]), (
            f"the output after ablating {said} is not what it was"
        )


def check_acts(bench: Bench, units: Sequence[Unit]) -> None:
    """DESIGN 4: every unit on offer, alone and trained, changes the output; and it leaves what
    it is given as it is.
    """
    network, x = bench.fresh()
    expected = output_of(network, x)
    bank = Bank(network, units)
    for unit in units:
        _disturb(bank[unit.id], seed=1)
        with bank.only([unit.id]):
            assert not torch.equal(output_of(network, x), expected), (
                f"{unit.id} is on offer but changes nothing"
            )
        given = [tensor.float() for tensor in bench.here(unit, bank[unit.id])]
        with torch.no_grad():
            bank[unit.id](*given)
        written = [tensor._version for tensor in given if tensor._version > 0]
        assert not written, (
            f"{unit.id} writes to the tensors that it is given, which others may still need"
        )


def check_cost(bench: Bench, units: Sequence[Unit]) -> None:
    """The cost is the numel of what is really trained: the leaves of the unit's autograd graph."""
    network, _ = bench.fresh(torch.float64)
    bank = Bank(network, units)
    for unit in units:
        adapter = bank[unit.id].double()
        _disturb(adapter, seed=1)
        numel = sum(p.numel() for p in adapter.parameters())
        assert unit.cost == numel, (
            f"{unit.id} is booked with {unit.cost} parameters and has {numel}"
        )
        trained = sum(leaf.numel() for leaf in _leaves(adapter(*bench.here(unit, adapter))))
        assert trained == unit.cost, (
            f"{unit.id} trains {trained} parameters, its cost is {unit.cost}"
        )


def check_roundtrip(bench: Bench, units: Sequence[Unit]) -> None:
    """DESIGN 18: saved and loaded into a bank of another seed, the outputs are the same bit for
    bit.
    """
    network, x = bench.fresh()
    bank = _trained(network, x, units)
    expected = output_of(network, x)
    again, _ = bench.fresh()
    loaded = Bank(again, units, seed=99)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "adapter.safetensors"
        safetensors.torch.save_file(bank.state_dict(_ids(units)), file)
        loaded.load_state_dict(safetensors.torch.load_file(file))
    loaded.activate(_ids(units))
    assert torch.equal(output_of(again, x), expected), (
        f"{units[0].family} is another one after saving and loading"
    )


def check_merge(bench: Bench, units: Sequence[Unit]) -> None:
    """DESIGN 5: merged, each unit's change of its site's output is the same within what its family
    says, and so is that of all of them of the network's; or merging is refused by name. What the
    default profile offers is never refused.
    """
    network, x = bench.fresh(torch.float64)
    baseline = output_of(network, x)
    bank = Bank(network, units, form="branches")
    folding = []
    for unit in units:
        adapter = bank[unit.id].double()
        _disturb(adapter, seed=1)
        tensors = _merged(bank, [unit])
        if tensors is None:
            assert unit.family not in DEFAULT, (
                f"{unit.id} is on offer by default and cannot be merged"
            )
            continue
        folding.append(unit)
        module = _holding(network, tensors, unit.id).get_submodule(unit.site.path)
        given, _ = bench.at[unit.site.path]
        with torch.no_grad():
            output = network.get_submodule(unit.site.path)(given)
            expected = adapter(given, output)
            _within(module(given), expected, expected - output, adapter.merged_within, unit.id)
    if folding:
        tensors = _merged(bank, folding)
        assert tensors is not None, "units that can be merged alone cannot be merged together"
        share = max(bank[unit.id].merged_within for unit in folding)
        with bank.only(_ids(folding)):
            adapted = output_of(network, x)
        plain = _holding(bench.fresh(torch.float64)[0], tensors, " ".join(_ids(folding)))
        _within(output_of(plain, x), adapted, adapted - baseline, share, " ".join(_ids(folding)))


def check_inherit(bench: Bench, units: Sequence[Unit]) -> None:
    """A larger level begins with exactly what its trained smaller sibling does, or as the
    identity; and leaves the sibling alone.
    """
    network, _ = bench.fresh(torch.float64)
    for unit in units:
        levels = units_for(network, [unit.site], {unit.family: Offer(placements=(unit.placement,))})
        for smaller in (u for u in levels if u.cost < unit.cost):
            bank = Bank(network, [unit, smaller])
            large, small = (bank[u.id].double() for u in (unit, smaller))
            given = bench.here(unit, large)
            _disturb(small, seed=1)
            before = _state(bank, [smaller.id])
            with torch.no_grad():
                expected, identity = small(*given), large(*given)
                large.inherit(small)
                found = large(*given)
            same = torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
            assert same or torch.equal(found, identity), f"{unit.id} does not begin as {smaller.id}"
            _unchanged(
                before, _state(bank, [smaller.id]), f"{unit.id} inheriting from {smaller.id}"
            )
            _disturb(large, seed=2)
            _unchanged(before, _state(bank, [smaller.id]), f"training {unit.id}")


def check_gradients(bench: Bench, units: Sequence[Unit]) -> None:
    """Off the zero initialisation, gradients reach every tensor of every open unit and none of
    the backbone.
    """
    network, x = bench.fresh(torch.float64)
    bank = Bank(network, units)
    for unit in units:
        _disturb(bank[unit.id].double(), seed=1)
    bank.activate(_ids(units))
    output = network(x)
    own = {id(p): f"{u.id}/{n}" for u in units for n, p in bank[u.id].named_parameters()}
    foreign = [leaf for leaf in _leaves(output) if id(leaf) not in own]
    assert not foreign, (
        f"{units[0].family} lets gradients reach {len(foreign)} tensors that are not its own"
    )
    weights = torch.randn(
        output.shape, generator=torch.Generator().manual_seed(3), dtype=output.dtype
    )
    (output * weights).sum().backward()
    touched = [name for name, p in network.named_parameters() if p.grad is not None]
    assert not touched, f"{units[0].family} lets gradients reach the backbone's {touched}"
    named = {(u.id, n): p for u in units for n, p in bank[u.id].named_parameters()}
    sizes = {key: 0.0 if p.grad is None else float(p.grad.abs().max()) for key, p in named.items()}
    floor = _NOISE * max(sizes.values())
    unreached = [f"{name} of {unit}" for (unit, name), size in sizes.items() if not size > floor]
    assert not unreached, f"no gradient reaches {', '.join(unreached)}"


def check_forms(bench: Bench, units: Sequence[Unit]) -> None:
    """Through the weights or as branches: the same outputs and the same gradients, up to
    rounding, and the backbone as it was.
    """
    network, x = bench.fresh(torch.float64)
    modules = {path: set(vars(module)) for path, module in network.named_modules()}
    outputs, gradients = {}, {}
    for form in FORMS:
        bank = Bank(network, units, form=form)
        for unit in units:
            _disturb(bank[unit.id].double(), seed=1)
        bank.activate(_ids(units))
        output = network(x)
        weights = torch.randn(
            output.shape, generator=torch.Generator().manual_seed(3), dtype=output.dtype
        )
        gradients[form] = torch.autograd.grad(
            (output * weights).sum(), bank.parameters(_ids(units))
        )
        outputs[form] = (output.detach(), output_of(network, x))
        bank.activate(())
        left = [
            path for path, module in network.named_modules() if set(vars(module)) != modules[path]
        ]
        assert not left, f"{units[0].family}, {form}, leaves something at {left[0]}"
    names = [
        f"{name} of {unit.id}"
        for unit in sorted(units, key=lambda u: u.id)
        for name, _ in bank[unit.id].named_parameters()
    ]
    for form in FORMS[1:]:
        for found, expected in zip(outputs[form], outputs[FORMS[0]], strict=True):
            assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9), (
                f"{units[0].family} is another function when it is {form}"
            )
        for name, found, expected in zip(names, gradients[form], gradients[FORMS[0]], strict=True):
            error, size = float((found - expected).abs().max()), float(expected.abs().max())
            assert error <= 1e-7 * size, f"the gradient of {name} is another when it is {form}"


# -- how -------------------------------------------------------------------------------------------


def _within(
    found: torch.Tensor, expected: torch.Tensor, change: torch.Tensor, share: float, what: str
) -> None:
    error, size = float((found - expected).abs().max()), float(change.abs().max())
    assert error <= share * size, f"merging {what} is off by {error / size:.1e} of its effect"


def _ids(units: Sequence[Unit]) -> list[str]:
    return [unit.id for unit in units]


@torch.no_grad()
def _disturb(adapter: Adapter, seed: int) -> None:
    """As if trained: every parameter takes a random step."""
    generator = torch.Generator().manual_seed(seed)
    for p in adapter.parameters():
        p += _STEP * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


def _trained(network: nn.Module, x: torch.Tensor, units: Sequence[Unit]) -> Bank:
    """A bank with all units open after two optimizer steps and a random disturbance."""
    bank = Bank(network, units)
    bank.activate(_ids(units))
    parameters = bank.parameters(_ids(units))
    assert len({id(p) for p in parameters}) == len(parameters), (
        f"units of {units[0].family} share tensors"
    )
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
        "output": output_of(network, x),
        "active": bank.active,
        "modes": (
            {u: bank[u].training for u in bank.built}
            | {n: m.training for n, m in network.named_modules()}
        ),
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


def _holding(network: nn.Module, tensors: dict[str, torch.Tensor], who: str) -> nn.Module:
    """A copy of the network that has grown as it must, with these tensors in it."""
    made = copy.deepcopy(network)
    grow(made, **growth(made, tensors))
    unknown = made.double().load_state_dict(tensors, strict=False).unexpected_keys
    assert not unknown, f"merging {who} makes the unknown tensor {unknown}"
    return made


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


CHECKS = (
    check_identity,
    check_off,
    check_toggle,
    check_acts,
    check_cost,
    check_roundtrip,
    check_merge,
    check_inherit,
    check_gradients,
    check_forms,
)
