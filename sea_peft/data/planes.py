"""A network's output over a whole scan, written and read plane by plane: in memory, or beyond a
limit in a file.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from sea_peft.errors import DiskError

DEFAULT_LIMIT = 1 << 30


class Planes:
    """Values `[K, D, H, W]`: appended in the order of D, then read in any order.

    Up to `limit` bytes they are kept as float32 in memory. Larger ones go as float16 into a file
    without a name, which disappears with the program however it ends. Probabilities lose at most
    0.0005 by that.

    Args:
        shape: K, D, H, W.
        limit: bytes of memory.
        folder: where the file is made; the system's folder for temporary files if None.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        limit: int = DEFAULT_LIMIT,
        folder: Path | None = None,
    ) -> None:
        self.shape = shape
        self._filled = 0
        self._memory: Tensor | None = None
        self._file: IO[bytes] | None = None
        if 4 * math.prod(shape) <= limit:
            self._memory = torch.empty(shape)
        else:
            with self._on_disk():
                self._file = tempfile.TemporaryFile(prefix=".seapeft-", dir=folder)  # noqa: SIM115  (kept open)
            weakref.finalize(self, _discard, self._file)

    @classmethod
    def of(cls, values: Tensor) -> Planes:
        """Planes that hold the float32 tensor `[K, D, H, W]` itself."""
        k, d, h, w = values.shape
        made = cls((k, 0, h, w))
        made.shape, made._memory, made._filled = (k, d, h, w), values, d
        return made

    @property
    def least(self) -> float:
        """The smallest value above 0 that is kept exactly: float32's in memory, float16's last
        step in a file.
        """
        return torch.finfo(torch.float32).tiny if self._memory is not None else 2.0**-24

    def append(self, planes: Tensor) -> None:
        """Add the next planes, float32 `[K, n, H, W]`. Raises `DiskError` if the disk is full."""
        if self._memory is not None:
            self._memory[:, self._filled : self._filled + planes.shape[1]] = planes
        elif self._file is not None:
            with self._on_disk():
                self._file.write(
                    planes.transpose(0, 1).to(torch.float16).contiguous().numpy().tobytes()
                )
                self._file.flush()  # what is left in the buffer would fail only when it is read
        self._filled += planes.shape[1]

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        """Say in one sentence that the disk refused."""
        try:
            yield
        except OSError as error:
            raise DiskError(
                f"{2 * math.prod(self.shape) / 1e9:.1f} GB of probabilities cannot be kept on disk "
                f"({error.strerror}); free disk space, or choose fewer labels."
            ) from error

    def read(self, start: int, stop: int) -> Tensor:
        """Planes from `start` to before `stop` (or the last one) as float32 `[K, n, H, W]`."""
        stop = min(stop, self._filled)
        if self._memory is not None:
            return self._memory[:, start:stop]
        assert self._file is not None
        k, _, h, w = self.shape
        self._file.seek(start * k * h * w * 2)
        held = np.frombuffer(self._file.read((stop - start) * k * h * w * 2), dtype=np.float16)
        return torch.from_numpy(held.reshape(stop - start, k, h, w).astype(np.float32)).transpose(
            0, 1
        )

    def tensor(self) -> Tensor:
        """All of it, float32 `[K, D, H, W]`."""
        return self.read(0, self._filled)


def _discard(file: IO[bytes]) -> None:
    """Close a file that is no longer needed, ignoring what a full disk did not take."""
    with contextlib.suppress(OSError):
        file.close()
