"""The processes that work on one run together. They share the work; each ends with the same result,
as if it had done it all.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, overload

import torch
import torch.distributed as dist

from sea_peft.errors import DeviceError, LostProcessError

T = TypeVar("T")

# The death of a process is noticed at once; this catches one that hangs. The longest normal wait is
# for another's test cases.
_PATIENCE = datetime.timedelta(hours=6)


class Processes:
    """A single process, which does all of the work and sends nothing.

    Attributes:
        rank: the number of this process, from 0.
        local_rank: its number among those on this machine.
        size: number of processes.
    """

    rank = local_rank = 0
    size = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and messages."""
        return self.rank == 0

    @overload
    def share(self, items: range) -> range: ...
    @overload
    def share(self, items: Sequence[T]) -> Sequence[T]: ...
    def share(self, items: Sequence[object]) -> Sequence[object]:
        """This process's share of the items: every `size`-th, from its rank on. Empty if there
        are too few.
        """
        return items[self.rank :: self.size]

    def together(self, made: Sequence[T]) -> list[T]:
        """The results of all processes' shares, in the order of the whole. Tensors among them must
        be on the CPU.
        """
        return list(made)

    def of_first(self, make: Callable[[], T]) -> T:
        """The first process's result, for all: for whatever depends on clocks or files."""
        return make()

    def pooled(self, sums: torch.Tensor) -> torch.Tensor:
        """The sum over all processes. Backward, each process gets the gradient for its own part."""
        return sums

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over all processes, with a single message."""

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace each parameter's gradient by the sum over all processes; a missing gradient
        counts as 0.
        """

    def require_equal(self, state: Callable[[], str]) -> None:
        """Raises DeviceError unless all processes have the same state."""


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
    """Several processes, connected by `joined`. All of them must call the same methods in the same
    order.

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
        for tensor, total in zip(
            tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True
        ):
            tensor.copy_(total.view_as(tensor))

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.add_up([parameter.grad for parameter in parameters if parameter.grad is not None])

    def require_equal(self, state: Callable[[], str]) -> None:
        if len(set(self._gathered(state()))) > 1:
            raise DeviceError(
                "The processes of this run no longer hold the same adapters, since devices of"
                " different kinds round differently; start all of them on devices of one kind."
            )

    def _gathered(self, item: T) -> list[T]:
        held: list[Any] = [None] * self.size
        with _heard():
            dist.all_gather_object(held, item)
        return held


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """Turn the error that torch raises when a message does not arrive, which has no class of its
    own, into LostProcessError.
    """
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
    """Connect the processes that torchrun has started: by gloo on CPUs, by NCCL between GPUs."""
    dist.init_process_group(timeout=_PATIENCE)
    yield Several(local_rank)
    # only on success: after a failure there is nobody left to disconnect from
    dist.destroy_process_group()
