"""Where an adapter can act: the sites of a backbone, found by kind and confirmed by one probe
forward.

Nothing here guesses from names. A module is a site if it fired in the probe and disturbing its
output changed the network's output. Its stage and its place in the execution order come from the
same forward.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
from torch import nn

from sea_peft.errors import WeightsError

KINDS = ("linear", "conv", "transposed", "norm", "block")
STAGES = ("stem", "encoder", "bottleneck", "decoder", "head")

_LEAVES: dict[str, tuple[type[nn.Module], ...]] = {
    "linear": (nn.Linear,),
    "conv": (nn.Conv3d,),
    "transposed": (nn.ConvTranspose3d,),
    "norm": (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm3d, nn.BatchNorm3d),
}

# If less than this share of a gradient is left after summing over a channel, a norm cancels it.
# Measured: at most 1e-6 is left then, and about 1e-4 or more elsewhere.
_CANCELLED = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """One place in the backbone where an adapter can act.

    Attributes:
        path: module path in the backbone.
        kind: one of `KINDS`.
        in_channels: channels of the module's input.
        out_channels: channels of its output.
        stride: how many times smaller the output is than the input, per axis; a fraction for a
            transposed convolution.
        stage: one of `STAGES`.
        order: place in the execution order, from 0.
        normed: whether a norm of single channels follows, such as an instance norm, which removes
            any constant added to a channel of the output and any factor.
    """

    path: str
    kind: str
    in_channels: int
    out_channels: int
    stride: tuple[float, float, float]
    stage: str
    order: int
    normed: bool = False


@dataclasses.dataclass(kw_only=True)
class _Seen:
    """What the probe saw of one module.

    `reach`: voxels that its dilated kernel skips, by volume (1: none). `acts`: whether a gradient
    arrives at its output. `shift`: the share of that gradient, the largest of its calls, that is
    left when summed over a channel; the median over channels. 1 if every place pulls the same way,
    0 if a norm makes them cancel.
    """

    kind: str
    order: int
    channels: tuple[int, int]
    spatial: bool
    shape_in: torch.Size
    shape_out: torch.Size
    resolution: int
    reach: int = 1
    acts: bool = False
    shift: float = 0.0


def module_kind(module: nn.Module) -> str | None:
    """The kind of a leaf module, or None when no family acts on it."""
    return next((kind for kind, classes in _LEAVES.items() if isinstance(module, classes)), None)


def is_channels_last(module: nn.Module) -> bool:
    """Whether channels are the last axis: for linear layers, layer norms and blocks of linear
    layers. In all other modules they are the second.
    """
    if isinstance(module, nn.Linear | nn.LayerNorm):
        return True
    inside = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv3d)]
    return bool(inside) and all(isinstance(m, nn.Linear) for m in inside)


def _blocks(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The smallest modules with a forward of their own that hold at least two convolutions, or two
    linear layers and no convolution.

    These are the residual blocks of convolutional networks, and the attentions and MLPs of
    transformers. Containers are skipped: `nn.Sequential` and its subclasses return their last
    child's output, and a module without a forward (`nn.ModuleList`) never fires.
    """
    found: list[str] = []
    for path, module in sorted(backbone.named_modules(), key=lambda item: -item[0].count(".")):
        if not path or type(module).forward in (nn.Sequential.forward, nn.Module.forward):
            continue
        layer = nn.Linear if is_channels_last(module) else nn.Conv3d
        layers = sum(isinstance(m, layer) for m in module.modules())
        if layers >= 2 and not any(other.startswith(path + ".") for other in found):
            found.append(path)
            yield path, module


def candidates(backbone: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """Module path → (kind, module) for each module that may become a site, in registration
    order.
    """
    leaves = {
        path: (kind, m)
        for path, m in backbone.named_modules()
        if (kind := module_kind(m)) is not None
    }
    return leaves | {path: ("block", m) for path, m in _blocks(backbone)}


def find_sites(backbone: nn.Module, example: torch.Tensor) -> tuple[Site, ...]:
    """Probe the backbone once and return its sites in execution order.

    Of a random weighting of the network's output, the gradient at each candidate's output shows
    whether acting there has an effect. The backbone is left unchanged (mode, hooks, gradients).

    Args:
        backbone: the network.
        example: `[B, C, D, H, W]`, of a size that it accepts.

    Raises:
        WeightsError: it does not return `[B, K, D, H, W]` on the same grid.
    """
    generator = torch.Generator().manual_seed(0)
    seen: dict[str, _Seen] = {}
    resolution = [math.prod(example.shape[2:])]
    nothing = torch.zeros(
        (), device=example.device, requires_grad=True
    )  # added everywhere, for gradients to flow

    def hook_for(path: str, kind: str, module: nn.Module) -> Callable[..., torch.Tensor | None]:
        def hook(
            _module: nn.Module, inputs: tuple[object, ...], output: object
        ) -> torch.Tensor | None:
            x = inputs[0] if inputs else None  # a hook does not see what is passed by keyword
            if not (isinstance(x, torch.Tensor) and isinstance(output, torch.Tensor)):
                return None
            axis = -1 if is_channels_last(module) else 1
            spatial = axis == 1 and x.ndim == output.ndim == 5
            if spatial:
                resolution[0] = math.prod(output.shape[2:])
            if path not in seen:
                channels = (x.shape[axis], output.shape[axis])
                reach = math.prod(module.dilation) if isinstance(module, nn.Conv3d) else 1
                seen[path] = _Seen(
                    kind=kind,
                    order=len(seen),
                    channels=channels,
                    spatial=spatial,
                    shape_in=x.shape,
                    shape_out=output.shape,
                    resolution=resolution[0],
                    reach=reach,
                )

            def look(gradient: torch.Tensor) -> None:
                over = [i for i in range(gradient.ndim) if i != axis % gradient.ndim]
                left, whole = gradient.sum(over).abs(), gradient.abs().sum(over)
                seen[path].acts |= bool(whole.any())
                share = left / whole.clamp_min(torch.finfo(whole.dtype).tiny)
                seen[path].shift = max(seen[path].shift, float(share.median()))

            # a tensor of its own, so that the gradient at it is that of this place alone
            own = output + nothing
            own.register_hook(look)
            return own

        return hook

    modes = {module: module.training for module in backbone.modules()}
    try:
        backbone.eval()
        with torch.enable_grad(), contextlib.ExitStack() as hooks:
            for path, (kind, module) in candidates(backbone).items():
                hooks.enter_context(module.register_forward_hook(hook_for(path, kind, module)))
            output = backbone(example)
            _require_grid(output, example)
            weights = torch.randn(output.shape, generator=generator).to(output)
            # plus a constant: with noise alone every sum over a channel would be nearly zero
            weights += torch.randn((1, output.shape[1], 1, 1, 1), generator=generator).to(output)
            objective = (output * weights).sum()
            if seen:
                torch.autograd.grad(objective, nothing, allow_unused=True)
    finally:
        for module, mode in modes.items():
            module.training = mode

    acts = [path for path, s in seen.items() if s.acts and _is_what_it_seems(path, seen)]
    return _staged({path: seen[path] for path in acts}, example, output.shape)


def _is_what_it_seems(path: str, seen: dict[str, _Seen]) -> bool:
    """Whether a block of linear layers acts on tokens: one of its layers must have the same input
    as the block itself.

    In a channel attention they see pooled channels, and the block's own channels are not on the
    last axis.
    """
    own = seen[path]
    if own.kind != "block" or own.spatial:
        return True
    inside = (s for other, s in seen.items() if other.startswith(path + ".") and s.kind == "linear")
    return own.shape_in[-1] == own.shape_out[-1] and any(s.shape_in == own.shape_in for s in inside)


def _require_grid(output: object, example: torch.Tensor) -> None:
    found = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if (
        not isinstance(output, torch.Tensor)
        or output.ndim != 5
        or output.shape[2:] != example.shape[2:]
    ):
        raise WeightsError(
            f"The backbone maps {list(example.shape)} to {found}, not to [B, K, D, H, W] on the"
            " same grid; wrap it in a module that does."
        )


def _staged(seen: dict[str, _Seen], example: torch.Tensor, output: torch.Size) -> tuple[Site, ...]:
    """Give each site its stage.

    The smallest resolution is the bottleneck; before it is the encoder, after it the decoder. The
    first convolution at the input's resolution is the stem, and the last one that makes the
    network's output channels is the head. If the resolution never shrinks, the most dilated
    convolutions are the bottleneck, since they see the scan most coarsely. Without dilations there
    is none, and everything between stem and head is encoder.
    """
    if not seen:
        return ()
    lowest = min(s.resolution for s in seen.values())
    at_bottom = [s.order for s in seen.values() if s.resolution == lowest]
    if lowest == math.prod(example.shape[2:]):
        widest = max(s.reach for s in seen.values())
        at_bottom = [s.order for s in seen.values() if s.reach == widest > 1] or [len(seen)]
    convolutions = [(p, s) for p, s in seen.items() if s.kind in ("conv", "transposed", "linear")]
    stem = min(convolutions, key=lambda item: item[1].order)[0] if convolutions else None
    last = max(convolutions, key=lambda item: item[1].order) if convolutions else None
    head = (
        last[0]
        if last and last[1].channels[1] == output[1] and last[1].shape_out[2:] == output[2:]
        else None
    )

    def stage(path: str, s: _Seen) -> str:
        if path == head:
            return "head"
        if path == stem:
            return "stem"
        if s.order < min(at_bottom):
            return "encoder"
        return "decoder" if s.order > max(at_bottom) else "bottleneck"

    # the output of a block that holds the head is class logits, which the target's head adapts
    inside = {
        path: s for path, s in seen.items() if head is None or not head.startswith(path + ".")
    }
    sites = []
    for order, (path, s) in enumerate(sorted(inside.items(), key=lambda item: item[1].order)):
        strides = (
            [a / b for a, b in zip(s.shape_in[2:], s.shape_out[2:], strict=True)]
            if s.spatial
            else [1.0] * 3
        )
        sites.append(
            Site(
                path=path,
                kind=s.kind,
                in_channels=s.channels[0],
                out_channels=s.channels[1],
                stride=(strides[0], strides[1], strides[2]),
                stage=stage(path, s),
                order=order,
                normed=s.shift < _CANCELLED,
            )
        )
    return tuple(sites)
