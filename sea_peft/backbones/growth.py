"""Additions to a network, beyond its architecture, that let every change of its function be written
into its own tensors.

Norms get a scale and a shift, grouped convolutions one kernel over all channels, MLPs more hidden
units, and outputs that come from no convolution a pointwise one behind them. All but the last leave
the outputs unchanged until values are written to them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import nn

LAST = "grown_last"
"""Name in the network of the convolution behind the outputs."""
_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm3d, nn.BatchNorm3d)


class Growth(TypedDict, total=False):
    """Arguments of `grow`, as far as a network has to grow; as they stand in a card."""

    norms: bool
    dense: list[str]
    wider: dict[str, int]
    outputs: int


def growing(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """`build` for a network that can grow. It takes one more keyword argument, `grown`: the
    result of `growth`.
    """

    @functools.wraps(build)
    def grown_network(*, grown: Growth | None = None, **kwargs: Any) -> nn.Module:
        if grown is None:
            return build(**kwargs)
        own = {"out_channels": grown["outputs"]} if "outputs" in grown else {}
        network = build(**{**kwargs, **own})
        grow(network, **grown, rows=kwargs.get("out_channels"))
        return network

    return grown_network


def grow(
    network: nn.Module,
    norms: bool = False,
    dense: Sequence[str] = (),
    wider: Mapping[str, int] | None = None,
    outputs: int | None = None,
    rows: int | None = None,
) -> None:
    """Make room in a network, in place.

    Args:
        network: its other tensors stay unchanged.
        norms: whether each norm gets the scale and shift that it lacks, like MONAI's and torch's
            own norms with `affine`.
        dense: module paths of grouped convolutions to become ungrouped.
        wider: module path of an MLP (`mlp_layers`) → number of added hidden units.
        outputs: the network's channels of output so far, if a convolution is to make `rows` of
            them.
        rows: channels of output of that convolution.

    Raises:
        ValueError: a path leads to another kind of module.
        AttributeError: a path leads nowhere.
    """
    for module in network.modules() if norms else ():
        for name, value in missing(module).items():
            setattr(module, name, nn.Parameter(value))
    for path in dense:
        module = network.get_submodule(path)
        if not isinstance(module, nn.Conv3d) or module.groups == 1:
            raise ValueError(f"{path} is no grouped convolution")
        module.weight = nn.Parameter(without_groups(module.weight.detach(), module.groups))
        module.groups = 1
    for path, more in (wider or {}).items():
        layers = mlp_layers(network.get_submodule(path))
        if layers is None or more < 1:
            raise ValueError(f"{path} is no MLP that could have {more} hidden units more")
        first, second = layers.values()
        first.weight = _grown(first.weight, 0, more)
        second.weight = _grown(second.weight, 1, more)
        if first.bias is not None:
            first.bias = _grown(first.bias, 0, more)
        first.out_features = second.in_features = len(first.weight)
    if outputs is not None:
        network.add_module(LAST, nn.Conv3d(outputs, rows or outputs, 1))
        network.register_forward_hook(
            lambda grown, _inputs, output: grown.get_submodule(LAST)(output)
        )


def _grown(tensor: torch.Tensor, axis: int, more: int) -> nn.Parameter:
    """The tensor with `more` zeros added along an axis."""
    shape = [more if i == axis else n for i, n in enumerate(tensor.shape)]
    return nn.Parameter(torch.cat([tensor.detach(), tensor.new_zeros(shape)], dim=axis))


def growth(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Growth:
    """The growth that a network needs to hold these tensors, by state-dict key, as arguments of
    `grow`; empty if none.

    More rows of a classifier do not count: the network is built with those.
    """
    own = dict(network.named_parameters(remove_duplicate=False))
    found: Growth = {}
    for key, tensor in tensors.items():
        path = key.rpartition(".")[0]
        if path == LAST and key not in own:
            found["outputs"] = tensors[f"{LAST}.weight"].shape[1]
        elif key not in own:
            found["norms"] = True
        elif tensor.shape == own[key].shape:
            continue
        elif getattr(network.get_submodule(path), "groups", 1) > 1:
            found.setdefault("dense", []).append(path)
        elif tensor.ndim == 2 and len(tensor) > len(own[key]):
            while path and mlp_layers(network.get_submodule(path)) is None:
                path = path.rpartition(".")[0]
            found.setdefault("wider", {})[path] = len(tensor) - len(own[key])
    return found


def grown_further(first: Growth, then: Growth) -> Growth:
    """The growth that equals `first` followed by `then`."""
    wider = dict(first.get("wider", {}))
    for path, more in then.get("wider", {}).items():
        wider[path] = wider.get(path, 0) + more
    both: Growth = {**first, **then}
    if wider:
        both["wider"] = wider
    if dense := [*first.get("dense", ()), *then.get("dense", ())]:
        both["dense"] = dense
    if "outputs" in first:
        both["outputs"] = first["outputs"]
    return both


def missing(module: nn.Module) -> dict[str, torch.Tensor]:
    """The scale of ones and shift of zeros `[C]` that a norm lacks; empty for other modules."""
    if not isinstance(module, _NORMS):
        return {}
    if isinstance(module, nn.LayerNorm):
        shape = tuple(module.normalized_shape)
    else:
        shape = (module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features,)
    made = {"weight": torch.ones(shape), "bias": torch.zeros(shape)}
    # a tensor computed from others, as by a parametrization, is not registered, but not missing
    # either
    return {
        name: value for name, value in made.items() if module._parameters.get(name, value) is None
    }


def without_groups(kernel: torch.Tensor, groups: int) -> torch.Tensor:
    """The kernel `[out, in / groups, ...]` of a grouped convolution as `[out, in, ...]`, zero for
    channels outside the group.
    """
    rows, columns = kernel.shape[0] // groups, kernel.shape[1]
    dense = kernel.new_zeros(kernel.shape[0], columns * groups, *kernel.shape[2:])
    for group in range(groups):
        out = slice(group * rows, (group + 1) * rows)
        dense[out, group * columns : (group + 1) * columns] = kernel[out]
    return dense


def mlp_layers(block: nn.Module) -> dict[str, nn.Linear] | None:
    """The two linear layers, by name, of a block that is linear, activation, linear; None for other
    blocks.

    Only for activations a with a(k·z)/k → ReLU(z) as k grows, and with nothing else in the block
    but dropout.
    """
    inside = {name: module for name, module in block.named_modules() if not list(module.children())}
    layers = {name: module for name, module in inside.items() if isinstance(module, nn.Linear)}
    bent = sum(isinstance(module, nn.GELU | nn.SiLU | nn.ReLU) for module in inside.values())
    quiet = sum(isinstance(module, nn.Dropout | nn.Identity) for module in inside.values())
    if len(layers) != 2 or bent != 1 or len(inside) != 3 + quiet:
        return None
    first, second = layers.values()
    return layers if first.out_features == second.in_features else None
