"""Training crops as a pure function of (seed, step), and the fixed crops of an audit.

Nothing is remembered between calls and no global random state is touched, so a run that is killed and resumed
sees exactly the crops it would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sea_peft.data.codes import IGNORED
from sea_peft.data.prepare import Scan
from sea_peft.errors import DataError

INTENSITY_JITTER = 0.1  # scale by 1 ± 0.1 and shift by ± 0.1
_POSITIONS_KEPT = 200_000  # voxels remembered per scan and label, evenly spread
_BACKGROUND_TRIES = 16
_TRAINING, _FIXED = 0, 1  # separate random streams


@dataclass(frozen=True)
class _Padded:
    image: Tensor  # [C, D, H, W], at least the patch along each axis
    label: Tensor  # [D, H, W]
    positions: tuple[np.ndarray, ...]  # flat voxel indices of each label that is present


class CropSampler:
    """Random crops from scans held in memory.

    Half of the crops (exactly every second one) are centred on a voxel of a label, drawn uniformly over the
    labels present in the scan; the others on a background voxel inside the body. Grey values are scaled by 1
    ± 0.1 and shifted by ± 0.1; nothing is flipped, because left and right are labels' meanings.

    Args:
        scans: Labelled scans.
        patch: Crop size `(d, h, w)` in voxels; a smaller scan is padded with 0 on both sides.
        seed: Seed of the run.

    Raises:
        DataError: No scan, or one without a label.
    """

    def __init__(self, scans: Sequence[Scan], patch: tuple[int, int, int], seed: int) -> None:
        if not scans:
            raise DataError("no scan to crop from")
        self._patch = patch
        self._seed = seed
        self._scans = [_padded(scan, patch) for scan in scans]

    def batch(self, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """The crops of one step.

        Returns:
            Images float32 `[B, C, d, h, w]` and labels uint8 `[B, d, h, w]`.
        """
        crops = [self._crop(_TRAINING, step * batch_size + i, jitter=True) for i in range(batch_size)]
        return torch.stack([image for image, _ in crops]), torch.stack([label for _, label in crops])

    def fixed(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` crops without augmentation, the same at every call; scans take turns.

        Returns:
            Images float32 `[count, C, d, h, w]` and labels uint8 `[count, d, h, w]`.
        """
        crops = [self._crop(_FIXED, i, jitter=False, scan=i % len(self._scans)) for i in range(count)]
        return torch.stack([image for image, _ in crops]), torch.stack([label for _, label in crops])

    def _crop(self, stream: int, index: int, jitter: bool, scan: int | None = None) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self._seed, stream, index])
        held = self._scans[int(rng.integers(len(self._scans))) if scan is None else scan]
        turn = index if scan is None else index // len(self._scans)
        centre = _label_voxel(held, rng) if turn % 2 == 0 and held.positions else _background_voxel(held, rng)
        box = _box_around(centre, held.label.shape, self._patch)
        everywhere = (slice(None), *box)
        image = held.image[everywhere].clone()
        if jitter:
            image *= 1.0 + float(rng.uniform(-INTENSITY_JITTER, INTENSITY_JITTER))
            image += float(rng.uniform(-INTENSITY_JITTER, INTENSITY_JITTER))
        return image, held.label[box].clone()


def labelled_crop(scan: Scan, patch: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """The crop around the middle of everything that is labelled in a scan (around the scan's own where nothing is).

    Args:
        scan: A labelled scan.
        patch: Crop size in voxels; a smaller scan is padded with 0 on both sides.

    Returns:
        Image float32 `[C, d, h, w]` and label uint8 `[d, h, w]`.

    Raises:
        DataError: The scan has no label.
    """
    held = _padded(scan, patch)
    labelled = torch.nonzero(held.label).double()
    middle = labelled.mean(dim=0) if len(labelled) else torch.tensor(held.label.shape) / 2
    box = _box_around(tuple(int(m) for m in middle), held.label.shape, patch)
    everywhere = (slice(None), *box)
    return held.image[everywhere], held.label[box]


def hold_out_labels(scan: Scan, fraction: float = 0.3) -> tuple[Scan, Scan]:
    """Share the labels of one scan between training and audit, for audits at one shot.

    Both parts keep the whole image, so that the network sees what it sees at prediction; in each, the voxels of the other part are
    `IGNORED`. The cut runs across the longest axis, where the part beyond it holds `fraction` of the labelled voxels. No voxel counts in
    both parts, but they are of one patient: an audit on the second is not independent.

    Returns:
        The scan to train on and the scan to audit on; they share the image's memory.

    Raises:
        DataError: Nothing is labelled.
    """
    if scan.label is None or not bool((scan.label > 0).any()):
        raise DataError(f"case {scan.id}: nothing is labelled, so no part can be held out; choose another case")
    label = scan.label
    axis = int(np.argmax(label.shape))
    others = tuple(a for a in range(3) if a != axis)
    share = (label > 0).sum(dim=others).cumsum(0)
    cut = int((share <= (1 - fraction) * share[-1]).sum())
    cut = min(max(cut, 1), label.shape[axis] - 1)
    kept, held = label.clone(), label.clone()
    kept.narrow(axis, cut, label.shape[axis] - cut).fill_(IGNORED)
    held.narrow(axis, 0, cut).fill_(IGNORED)
    return replace(scan, label=kept), replace(scan, label=held)


def _padded(scan: Scan, patch: tuple[int, int, int]) -> _Padded:
    if scan.label is None:
        raise DataError(f"case {scan.id} has no label; crops need labelled cases")
    pads: list[int] = []
    for wanted, has in zip(reversed(patch), reversed(scan.label.shape), strict=True):
        missing = max(0, wanted - has)
        pads += [missing // 2, missing - missing // 2]
    image, label = scan.image, scan.label
    if any(pads):  # padding copies, and a scan that was spilled to disk must stay there
        image, label = (torch.nn.functional.pad(tensor, pads) for tensor in (image, label))
    flat = label.numpy().ravel()
    positions = []
    for index in np.unique(flat[(flat > 0) & (flat != IGNORED)]):
        found = np.flatnonzero(flat == index)
        positions.append(found[:: max(1, len(found) // _POSITIONS_KEPT)].astype(np.int64))
    return _Padded(image, label, tuple(positions))


def _label_voxel(held: _Padded, rng: np.random.Generator) -> tuple[int, ...]:
    of_label = held.positions[int(rng.integers(len(held.positions)))]
    flat = int(of_label[int(rng.integers(len(of_label)))])
    return tuple(int(i) for i in np.unravel_index(flat, held.label.shape))


def _background_voxel(held: _Padded, rng: np.random.Generator) -> tuple[int, ...]:
    """An unlabelled voxel inside the body (grey value not 0), or the last one tried that is not ignored where none is found."""
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


def _box_around(centre: tuple[int, ...], shape: Sequence[int], patch: tuple[int, int, int]) -> tuple[slice, ...]:
    """The patch around `centre`, moved inward where it would stick out."""
    starts = (min(max(0, c - p // 2), n - p) for c, n, p in zip(centre, shape, patch, strict=True))
    return tuple(slice(s, s + p) for s, p in zip(starts, patch, strict=True))
