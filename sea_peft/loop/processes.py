"""The processes that work on one run together. The work is shared out; what comes of it is the same in all of them, as if each had done it all."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, overload

import torch
import torch.distributed as dist

from sea_peft.errors import DeviceError, LostProcessError

T = TypeVar("T")

# A process that is gone is noticed at once; this is for one that hangs. An honest wait is for another's test cases.
_PATIENCE = datetime.timedelta(hours=6)


class Processes:
    """One process alone, which has the whole of everything: nothing is sent.

    Attributes:
        rank: which of the processes this one is, from 0.
        local_rank: which of those on this machine.
        size: how many there are.
    """

    rank = local_rank = 0
    size = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @overload
    def share(self, items: range) -> range: ...
    @overload
    def share(self, items: Sequence[T]) -> Sequence[T]: ...
    def share(self, items: Sequence[Any]) -> Sequence[Any]:
        """What of these is this process's to do: every `size`-th, from its rank on. Nothing, where they are too few."""
        return items[self.rank :: self.size]

    def together(self, made: Sequence[T]) -> list[T]:
        """What all processes made of their shares, in the order of the whole. Tensors among it are on the CPU."""
        return list(made)

    def of_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, for all: where clocks and files decide."""
        return make()

    def pooled(self, sums: torch.Tensor) -> torch.Tensor:
        """The sums of all processes, added up. Going backward, each gets the gradient for what it put in itself."""
        return sums

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put the sum over all processes into each of these, by one message for all of them."""

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Give each parameter the sum of its gradients in all processes; one that has none counts as 0."""

    def require_equal(self, state: Callable[[], str]) -> None:
        """Raises DeviceError where the processes do not stand at the same state."""


ALONE = Processes()
"""The usual run."""


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, sums: torch.Tensor) -> torch.Tensor:
        total = sums.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0]


class Several(Processes):
    """Processes that were started together and have found each other (`joined`). All of them call the same methods in the same order.

    Every method that waits for others raises LostProcessError when one of them is gone.
    """

    def __init__(self, local_rank: int) -> None:
        self.rank, self.local_rank, self.size = dist.get_rank(), local_rank, dist.get_world_size()

    def together(self, made: Sequence[T]) -> list[T]:
        shares = self._gathered(list(made))
        return [shares[i % self.size][i // self.size] for i in range(sum(map(len, shares)))]

    def of_first(self, make: Callable[[], T]) -> T:
        held = [make() if self.first else None]
        with _heard():
            dist.broadcast_object_list(held)
        return held[0]  # type: ignore[return-value]

    def pooled(self, sums: torch.Tensor) -> torch.Tensor:
        with _heard():
            total: torch.Tensor = _Pooled.apply(sums)
        return total

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _heard():
            dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.add_up([parameter.grad for parameter in parameters if parameter.grad is not None])

    def require_equal(self, state: Callable[[], str]) -> None:
        if len(set(self._gathered(state()))) > 1:
            raise DeviceError(
                "The processes of this run no longer hold the same adapters, since devices of different kinds round differently; start all of "
                "them on devices of one kind."
            )

    def _gathered(self, item: T) -> list[T]:
        held: list[Any] = [None] * self.size
        with _heard():
            dist.all_gather_object(held, item)
        return held


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """What torch raises when a message does not arrive has no class of its own."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise LostProcessError(
            "Another process of this run has ended, and this one cannot go on without it."
        ) from error


@contextlib.contextmanager
def joined(local_rank: int) -> Iterator[Processes]:
    """The processes that torchrun has started, while they are connected: by gloo on CPUs, by NCCL between GPUs."""
    dist.init_process_group(timeout=_PATIENCE)
    yield Several(local_rank)
    dist.destroy_process_group()  # after a failure nobody is left to part from
