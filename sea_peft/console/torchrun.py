"""Under torchrun, several processes run one command. The user sees the output of a single one."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sea_peft.errors import UsageError

if TYPE_CHECKING:
    from sea_peft.loop.processes import Processes

_PATIENCE = datetime.timedelta(seconds=10)


@dataclasses.dataclass(frozen=True)
class Started:
    """How torchrun started this process, if it did: its number among all processes, and among those
    on this machine.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> Started:
        """From the environment. A cluster may set some of these variables for a single process, so
        torchrun's own variable is checked too.
        """
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        return cls(*(int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")))


def refuse_unless(shared: bool, what: str) -> None:
    """Raise UsageError if several processes would all do the same."""
    if not shared and Started.here().size > 1:
        raise UsageError(
            f"{what} does not share its work out among processes; start it without torchrun."
        )


@contextlib.contextmanager
def processes() -> Iterator[Processes]:
    """The processes that work on this command, connected to each other."""
    from sea_peft.loop.processes import ALONE, joined

    started = Started.here()
    if started.size == 1:
        yield ALONE
        return
    with joined(started.local_rank) as all_of_them:
        yield all_of_them


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Only the first process prints anything in here."""
    if Started.here().rank == 0:
        yield
        return
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def speaks() -> bool:
    """Whether this process should report how its command failed: the first that asks does. When one
    fails, the others fail too without it.
    """
    started = Started.here()
    if started.size == 1:
        return True
    import torch.distributed as dist

    try:
        store, rank, _ = next(dist.rendezvous("env://", timeout=_PATIENCE))
        return bool(store.compare_set("sea_peft/speaks", "", str(rank)) == str(rank).encode())
    except RuntimeError:  # torchrun itself is gone
        return started.rank == 0
