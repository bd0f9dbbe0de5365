"""Training crops as a pure function of (seed, step), and the fixed crops of an audit.

Nothing is remembered between calls and no global random state is used, so a run that is killed and
resumed sees exactly the crops that it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sea_peft.data import augment
from sea_peft.data.augmentation import GREY_VALUES, Augmentation
from sea_peft.data.codes import IGNORED
from sea_peft.data.prepare import Scan
from sea_peft.data.sliding import SlidingWindow
from sea_peft.errors import DataError

_POSITIONS_KEPT = 200_000  # voxels remembered per scan and label, evenly spread
_BACKGROUND_TRIES = 16
_TRAINING, _FIXED = 0, 1  # separate random streams


@dataclass(frozen=True)
class _Padded:
    image: Tensor  # [C, D, H, W], at least the patch along each axis
    label: Tensor  # [D, H, W]
    positions: tuple[np.ndarray, ...]  # flat voxel indices of each label that is present
    spacing: tuple[float, float, float]  # mm


class CropSampler:
    """Random crops from scans held in memory.

    Every second crop is centred on a voxel of a label, drawn uniformly over the labels present in
    the scan; the others on a background voxel inside the body.

    Args:
        scans: labelled scans.
        window: its patch is the crop's size. A smaller scan is padded on both sides, as for
            prediction.
        seed: seed of the run.
        augmentation: changes of training crops.

    Raises:
        DataError: there is no scan, or one has no label.
    """

    def __init__(
        self,
        scans: Sequence[Scan],
        window: SlidingWindow,
        seed: int,
        augmentation: Augmentation = GREY_VALUES,
    ) -> None:
        if not scans:
            raise DataError("no scan to crop from")
        self._window, self._patch = window, window.patch
        self._seed = seed
        self._augmentation = augmentation
        self._scans = [_padded(scan, window) for scan in scans]

    def batch(
        self, step: int, batch_size: int, which: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The crops of one step, or only those numbered in `which`, from 0.

        Returns:
            Images float32 `[B, C, d, h, w]` and labels uint8 `[B, d, h, w]`.
        """
        return _stacked(
            self._changed(step * batch_size + i)
            for i in (range(batch_size) if which is None else which)
        )

    def fixed(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` crops without augmentation, the same in every call; scans take turns.

        Returns:
            Images float32 `[count, C, d, h, w]` and labels uint8 `[count, d, h, w]`.
        """
        crops = []
        for i in range(count):
            held = self._scans[i % len(self._scans)]
            box = self._box(held, i // len(self._scans), self._rng(_FIXED, i))
            crops.append((held.image[_all_channels(box)].clone(), held.label[box].clone()))
        return _stacked(crops)

    def _rng(self, stream: int, index: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, stream, index])

    def _box(self, held: _Padded, turn: int, rng: np.random.Generator) -> tuple[slice, ...]:
        """The place of a crop: around a labelled voxel in every second turn, else around a
        background voxel.
        """
        centre = (
            _label_voxel(held, rng)
            if turn % 2 == 0 and held.positions
            else _background_voxel(held, rng)
        )
        return _box_around(centre, held.label.shape, self._patch)

    def _changed(self, index: int) -> tuple[Tensor, Tensor]:
        """An augmented crop for training."""
        rng = self._rng(_TRAINING, index)
        held = self._scans[int(rng.integers(len(self._scans)))]
        box = self._box(held, index, rng)
        if rng.random() < self._augmentation.spatial_p:
            image, label = _around(
                held,
                box,
                augment.box_for(self._augmentation, self._patch, held.spacing),
                self._window.pad,
            )
            image, label = augment.turn(
                self._augmentation, image, label, self._patch, held.spacing, rng
            )
        else:
            image, label = held.image[_all_channels(box)], held.label[box].clone()
        return augment.recolour(self._augmentation, image, rng), label


def _stacked(crops: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*crops, strict=True)
    return torch.stack(images), torch.stack(labels)


def _around(
    held: _Padded, box: tuple[slice, ...], wide: tuple[int, int, int], value: float
) -> tuple[Tensor, Tensor]:
    """The box of sides `wide` with the same middle as `box`. Outside the scan it holds the grey
    `value`, and no label.
    """
    inside, pads = [], []
    for span, side, n in zip(box, wide, held.label.shape, strict=True):
        start = (span.start + span.stop - side) // 2
        inside.append(slice(max(0, start), min(n, start + side)))
        pads.append((max(0, -start), max(0, start + side - n)))
    flat = [n for pair in reversed(pads) for n in pair]
    pad = torch.nn.functional.pad
    return pad(held.image[_all_channels(inside)], flat, value=value), pad(
        held.label[tuple(inside)], flat
    )


def _all_channels(box: Sequence[slice]) -> tuple[slice, ...]:
    return (slice(None), *box)


def labelled_crop(scan: Scan, window: SlidingWindow) -> tuple[Tensor, Tensor]:
    """The crop around the middle of all labels in a scan, or around the scan's own middle if it has
    none.

    Args:
        scan: a labelled scan.
        window: its patch is the crop's size. A smaller scan is padded on both sides.

    Returns:
        Image float32 `[C, d, h, w]` and label uint8 `[d, h, w]`.

    Raises:
        DataError: the scan has no label.
    """
    held = _padded(scan, window)
    labelled = torch.nonzero(held.label).double()
    middle = labelled.mean(dim=0) if len(labelled) else torch.tensor(held.label.shape) / 2
    box = _box_around(tuple(int(m) for m in middle), held.label.shape, window.patch)
    return held.image[_all_channels(box)], held.label[box]


def _padded(scan: Scan, window: SlidingWindow) -> _Padded:
    if scan.label is None:
        raise DataError(f"case {scan.id} has no label; crops need labelled cases")
    pads: list[int] = []
    for wanted, has in zip(reversed(window.patch), reversed(scan.label.shape), strict=True):
        missing = max(0, wanted - has)
        pads += [missing // 2, missing - missing // 2]
    image, label = scan.image, scan.label
    if any(pads):  # padding copies, and a scan that was spilled to disk must stay there
        image, label = (
            torch.nn.functional.pad(image, pads, value=window.pad),
            torch.nn.functional.pad(label, pads),
        )
    flat = label.numpy().ravel()
    positions = []
    for index in np.unique(flat[(flat > 0) & (flat != IGNORED)]):
        found = np.flatnonzero(flat == index)
        positions.append(found[:: max(1, len(found) // _POSITIONS_KEPT)].astype(np.int64))
    return _Padded(image, label, tuple(positions), scan.geometry.spacing)


def _label_voxel(held: _Padded, rng: np.random.Generator) -> tuple[int, ...]:
    of_label = held.positions[int(rng.integers(len(held.positions)))]
    flat = int(of_label[int(rng.integers(len(of_label)))])
    return tuple(int(i) for i in np.unravel_index(flat, held.label.shape))


def _background_voxel(held: _Padded, rng: np.random.Generator) -> tuple[int, ...]:
    """An unlabelled voxel inside the body (grey value not 0); if none is found, the last one tried
    that is not ignored.
    """
    voxel: tuple[int, ...] = (0, 0, 0)
    for _ in range(_BACKGROUND_TRIES):
        tried = tuple(int(rng.integers(n)) for n in held.label.shape)
        if held.label[tried] == IGNORED:
            continue
        voxel = tried
        grey = held.image[:, voxel[0], voxel[1], voxel[2]]
        if held.label[voxel] == 0 and bool((grey != 0).any()):
            break
    return voxel


def _box_around(
    centre: tuple[int, ...], shape: Sequence[int], patch: tuple[int, int, int]
) -> tuple[slice, ...]:
    """The patch around `centre`, moved inward if it would stick out."""
    starts = (min(max(0, c - p // 2), n - p) for c, n, p in zip(centre, shape, patch, strict=True))
    return tuple(slice(s, s + p) for s, p in zip(starts, patch, strict=True))
