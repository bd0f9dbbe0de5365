"""Prepared scans within a memory limit: those that do not fit lie in files and are read crop by
crop.
"""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sea_peft.data.prepare import Scan
from sea_peft.data.recipe import Recipe
from sea_peft.errors import DiskError

DEFAULT_LIMIT = 1 << 30


def scan_bytes(
    shape: Sequence[int], spacing: Sequence[float], recipe: Recipe, channels: int
) -> int:
    """Memory of a prepared scan before its foreground is cropped, label included: an upper estimate
    in bytes.

    Args:
        shape: voxels of the input.
        spacing: its voxel size in millimetres.
        recipe: the recipe that will be applied.
        channels: number of channels.
    """
    voxels = math.prod(shape) * math.prod(spacing) / math.prod(recipe.spacing)
    return math.ceil(voxels * (4 * channels + 1))


class ScanCache:
    """Keeps prepared scans in memory up to a limit and the rest in memory-mapped files.

    Crops of a spilled scan equal those of a kept one; only their pages are read. The files hold
    patient data. They have no name in any folder, so nobody else can open them, and the system
    removes them when the program ends, however it ends.

    Args:
        limit: bytes of images and labels to hold in memory.
        folder: on whose disk the files lie; the system's folder for temporary files if None.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT, folder: Path | None = None) -> None:
        self._limit = limit
        self._folder = folder
        self._held = 0

    def keep(self, scan: Scan) -> Scan:
        """The same scan, spilled to disk if it would exceed the limit.

        Raises:
            DiskError: the disk is full, or writing fails.
        """
        size = scan.image.nbytes + (scan.label.nbytes if scan.label is not None else 0)
        if self._held + size <= self._limit:
            self._held += size
            return scan
        try:
            label = self._spilled(scan.label) if scan.label is not None else None
            return replace(scan, image=self._spilled(scan.image), label=label)
        except OSError as error:
            raise DiskError(
                f"{size / 1e9:.1f} GB of scans do not fit into memory and cannot be kept on disk "
                f"({error.strerror}); free disk space, or use fewer shots or a coarser spacing."
            ) from error

    def _spilled(self, tensor: Tensor) -> Tensor:
        array = tensor.numpy()
        with tempfile.TemporaryFile(prefix=".seapeft-", dir=self._folder) as file:
            file.write(np.ascontiguousarray(array).data)  # `tofile` does not say why it failed
            file.flush()
            # the mapping keeps the file alive; "c": writing to a crop changes memory, not the file
            return torch.from_numpy(np.memmap(file, dtype=array.dtype, mode="c", shape=array.shape))
