"""Under torchrun: several processes run one command, and what is seen of them is what one would show."""

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
    """How torchrun has started this process, if it was torchrun: which of how many it is, and which of those on this machine."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> Started:
        """By its environment. A cluster may set some of these variables for a process that it starts alone, so torchrun's own is asked too."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        return cls(*(int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")))


def refuse_unless(shared: bool, what: str) -> None:
    """Raises UsageError where several processes would all do the same."""
    if not shared and Started.here().size > 1:
        raise UsageError(f"{what} does not share its work out among processes; start it without torchrun.")


@contextlib.contextmanager
def processes() -> Iterator[Processes]:
    """Those that work on this command together, connected to each other."""
    from sea_peft.loop.processes import ALONE, joined

    started = Started.here()
    if started.size == 1:
        yield ALONE
        return
    with joined(started.local_rank) as all_of_them:
        yield all_of_them


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Nothing is printed in here, but by the first process."""
    if Started.here().rank == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def speaks() -> bool:
    """Whether it is for this process to say how its command has failed: for the first that asks. When one has failed, the others do too,
    for want of it."""
    started = Started.here()
    if started.size == 1:
        return True
    import torch.distributed as dist

    try:
        store, rank, _ = next(dist.rendezvous("env://", timeout=_PATIENCE))
        return bool(store.compare_set("sea_peft/speaks", "", str(rank)) == str(rank).encode())
    except RuntimeError:  # torchrun itself is gone
        return started.rank == 0
