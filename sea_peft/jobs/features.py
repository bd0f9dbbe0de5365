"""How scans differ: the output of the network's bottleneck for each, as one vector."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from sea_peft.adapters import Adapted
from sea_peft.backbones import Site
from sea_peft.backbones.sites import is_channels_last


class Pooled:
    """Channel means of one module's output, over all windows and all places in them."""

    def __init__(self) -> None:
        self._sum: torch.Tensor | None = None
        self._places = 0

    def add(self, output: torch.Tensor, last: bool) -> None:
        """Add one forward's output `[B, C, …]`, or with `last` `[B, …, C]`."""
        by_channel = output.detach().movedim(-1 if last else 1, 0).flatten(1)
        found = by_channel.sum(
            dim=1, dtype=torch.float64
        ).cpu()  # of a few thousand places a window
        self._sum = found if self._sum is None else self._sum + found
        self._places += by_channel.shape[1]

    def take(self) -> np.ndarray:
        """The means `[C]` of the outputs since the last call. Raises ValueError if there were
        none.
        """
        if self._sum is None:
            raise ValueError("the network has not run")
        means: np.ndarray = (self._sum / self._places).numpy()
        self.forget()
        return means

    def forget(self) -> None:
        """Drop the outputs of a scan that could not be finished."""
        self._sum, self._places = None, 0


@contextlib.contextmanager
def pooling(model: Adapted) -> Iterator[Pooled]:
    """Pool the bottleneck's output in every forward, open units included. Set the gates before."""
    path = bottleneck(model.sites)
    module = model.backbone.get_submodule(path)
    pooled, last = Pooled(), is_channels_last(module)

    def hook(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        pooled.add(output, last)

    handle = module.register_forward_hook(hook)
    try:
        yield pooled
    finally:
        handle.remove()


def bottleneck(sites: Sequence[Site]) -> str:
    """Path of the module that sees most of a scan at once.

    This is the last block at the bottleneck, else the last convolution or linear layer there. In a
    network that is never coarser than its input, it is the last of these before the head. It is
    never a norm, whose output has the same means for every scan.
    """
    for stage in ("bottleneck", "encoder", "stem"):
        there = [site for site in sites if site.stage == stage and site.kind != "norm"]
        if there:
            return max(there, key=lambda site: (site.kind == "block", site.order)).path
    return sites[0].path


def distances(features: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Euclidean distance of each of `features` `[n, C]` to the nearest of `to` `[m, C]`;
    infinite if m is 0.
    """
    if not len(to):
        return np.full(len(features), np.inf)
    apart: np.ndarray = np.linalg.norm(features[:, None] - to[None], axis=-1).min(axis=1)
    return apart
