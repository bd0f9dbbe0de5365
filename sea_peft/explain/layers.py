"""The outputs of a network's layers, on their way through a forward."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from sea_peft.backbones.sites import is_channels_last

Look = Callable[[str, torch.Tensor], torch.Tensor | None]


@contextlib.contextmanager
def watching(network: nn.Module, paths: Iterable[str], look: Look) -> Iterator[None]:
    """Call `look(path, y)` during a forward with the output y `[B, C, D, H, W]` of each of these
    modules, adapters included.

    The result of `look` replaces y; None keeps y. Outputs that lie on no voxel grid (token lists)
    are skipped. `look` must copy what it needs of y at once, since the next module may write into
    y. Gates opened or closed inside the context act after the hooks set here, so set the gates
    first.
    """

    def hook_for(
        path: str, last: bool
    ) -> Callable[[nn.Module, object, object], torch.Tensor | None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> torch.Tensor | None:
            if not isinstance(output, torch.Tensor) or output.ndim != 5:
                return None
            seen = look(path, output.movedim(-1, 1) if last else output)
            return seen.movedim(1, -1) if last and seen is not None else seen

        return hook

    with contextlib.ExitStack() as hooks:
        for path in paths:
            module = network.get_submodule(path)
            hooks.enter_context(
                module.register_forward_hook(hook_for(path, is_channels_last(module)))
            )
        yield


def overlap(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Hard Dice of two boolean masks of one shape; 0 if only one of them is empty, NaN if both
    are.
    """
    total = int(found.sum()) + int(wanted.sum())
    return 2.0 * int((found & wanted).sum()) / total if total else float("nan")
