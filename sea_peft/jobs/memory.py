"""Estimates the memory and disk of a run from headers and one small forward pass, before it
begins.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from sea_peft.data import planes, spill
from sea_peft.data.cases import Case, FileCase
from sea_peft.data.recipe import Recipe
from sea_peft.data.spill import scan_bytes
from sea_peft.errors import DataError

# Python, torch and MONAI loaded, measured on Linux with the CPU build
BASE_MEMORY = 700 << 20
# While a case is read and prepared: file, voxels, foreground and label. Measured between 8 (window)
# and 17 (z-score)
_READING_BYTES_PER_VOXEL = 17
_HELD_LAYERS = 4  # outputs of the largest layer in memory at once, without gradients
_WINDOWS = 3  # most windows that go through a network together
_MOST_AHEAD = 1 << 30  # for a scan that is read while another is predicted

Grid = tuple[tuple[int, int, int], tuple[float, float, float]]


@dataclass(frozen=True)
class Need:
    """Bytes of memory, and bytes of disk that are freed at the end."""

    memory: int
    disk: int

    def of_processes(self, count: int) -> Need:
        """The need of `count` processes that each need this much, and of the one that waits for
        them.
        """
        return self if count == 1 else Need(count * self.memory + BASE_MEMORY, count * self.disk)


@dataclass(frozen=True)
class Activations:
    """Bytes of a network's leaf modules' outputs per voxel of its input: of all together, and
    of the largest.
    """

    total: float
    largest: float

    @classmethod
    def of(cls, network: torch.nn.Module, example: torch.Tensor) -> Activations:
        """Measured in one forward pass over `example` [1, C, D, H, W]."""
        outputs: list[int] = []

        def count(_module: torch.nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, torch.Tensor):
                outputs.append(output.numel() * output.element_size())

        with torch.no_grad(), contextlib.ExitStack() as hooks:
            for leaf in (module for module in network.modules() if not list(module.children())):
                hooks.enter_context(leaf.register_forward_hook(count))
            network(example)
        voxels = math.prod(example.shape[2:])
        return cls(sum(outputs) / voxels, max(outputs, default=0) / voxels)


def grids(cases: Iterable[Case]) -> list[Grid]:
    """Shape and voxel size of each case in files, from its header. Leaves out unreadable cases,
    which are refused elsewhere.
    """
    found = []
    for case in cases:
        if isinstance(case, FileCase) and case.images:
            try:
                found.append(next(iter(case.images.values())).grid())
            except (DataError, OSError):
                continue
    return found


def inference_need(
    cases: Iterable[Case],
    recipe: Recipe,
    channels: int,
    outputs: int,
    patch: Sequence[int],
    activations: Activations,
    ahead: Iterable[Case] = (),
) -> Need:
    """The need of predicting the largest of the cases.

    `outputs`: channels of the network's output, background included. `ahead`: cases that may be
    read while the network works on another.
    """
    reading = prepared = whole = 0
    for shape, spacing in grids(cases):
        reading = max(reading, math.prod(shape) * _READING_BYTES_PER_VOXEL * channels)
        prepared = max(prepared, scan_bytes(shape, spacing, recipe, channels))
        whole = max(
            whole,
            math.ceil(math.prod(shape) * math.prod(spacing) / math.prod(recipe.spacing))
            * 4
            * outputs,
        )
    windows = math.prod(patch) * activations.largest * _HELD_LAYERS * _WINDOWS
    blending = min(whole, planes.DEFAULT_LIMIT) * 2
    beside = max((_bytes_of_reading(grid, recipe, channels) for grid in grids(ahead)), default=0)
    memory = BASE_MEMORY + max(reading, blending + windows + beside) + prepared
    return Need(int(memory), whole // 2 if whole > planes.DEFAULT_LIMIT else 0)


def read_ahead(cases: Iterable[Case], recipe: Recipe, channels: int) -> list[Case]:
    """The cases that may be read and prepared while the network works on another: those whose
    reading takes little memory and does not silence other threads.
    """
    return [
        case
        for case in cases
        if isinstance(case, FileCase)
        and all(image.read_in_silence for image in case.images.values())
        and all(_bytes_of_reading(grid, recipe, channels) <= _MOST_AHEAD for grid in grids([case]))
    ]


def _bytes_of_reading(grid: Grid, recipe: Recipe, channels: int) -> int:
    """Memory that a case takes until it is prepared."""
    shape, spacing = grid
    return math.prod(shape) * _READING_BYTES_PER_VOXEL * channels + scan_bytes(
        shape, spacing, recipe, channels
    )


def training_need(
    shots: Iterable[Case],
    recipe: Recipe,
    channels: int,
    patch: Sequence[int],
    batch_size: int,
    activations: Activations,
) -> Need:
    """The need of training on the shots: activations of a step, forward and backward, and the
    prepared scans.
    """
    shapes = grids(shots)
    scans = sum(scan_bytes(shape, spacing, recipe, channels) for shape, spacing in shapes)
    held = min(scans, spill.DEFAULT_LIMIT)
    reading = max(
        (math.prod(shape) * _READING_BYTES_PER_VOXEL * channels for shape, _ in shapes), default=0
    )
    step = 2 * activations.total * math.prod(patch) * batch_size
    return Need(int(BASE_MEMORY + held + max(step, reading)), scans - held)


def needed(what: str, need: Need, processes: int = 1) -> str:
    """The sentence for the user. `what`: its subject. `processes`: how many each need as much.

    Examples:
        >>> needed("Ranking", Need(3 << 29, 0), 2)
        'Ranking needs about 1.5 GiB of memory in each of 2 processes.'
    """
    each = f" in each of {processes} processes" if processes > 1 else ""
    disk = f" and {need.disk / 2**30:.1f} GiB of disk while it runs" if need.disk else ""
    return f"{what} needs about {need.memory / 2**30:.1f} GiB of memory{disk}{each}."
