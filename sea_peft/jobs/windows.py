"""Sliding windows over a whole scan, in memory that grows with the area of a plane instead of with
the scan.

Windows, their overlap and their gaussian weights are MONAI's, with the same result
(`sliding_window_inference`, mode "gaussian"), or they are nnU-Net's. MONAI keeps one sum over the
whole scan per channel. Here windows are visited from the first plane to the last, and planes that
no later window touches are yielded at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, product

import torch
from torch import Tensor

from sea_peft.data.sliding import SlidingWindow

Network = Callable[[Tensor], tuple[Tensor, ...]]
Place = tuple[slice, ...]


@torch.no_grad()
def blended(
    network: Network,
    image: Tensor,
    window: SlidingWindow,
    device: torch.device,
    batch: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[Tensor, ...]]:
    """The network's outputs over `image`, a few planes at a time.

    Args:
        network: windows `[B, C, *roi]` → one or several outputs `[B, K, *roi]`.
        image: `[C, D, H, W]` on the CPU. Padded on both sides if it is smaller than the window.
        window: its patch is `roi` here.
        device: where the network is.
        batch: least number of windows per forward, if a row has as many; never twice as many.
        progress: called with (windows done, of).

    Yields:
        The next planes of each output, float32 `[K, n, H, W]` on the CPU. Together they make up D.
    """
    roi, shape = window.patch, image.shape[1:]
    before = [max(0, r - n) // 2 for r, n in zip(roi, shape, strict=True)]
    size = [max(r, n) for r, n in zip(roi, shape, strict=True)]
    if size != list(shape):
        after = [s - n - b for s, n, b in zip(size, shape, before, strict=True)]
        pads = [n for b, a in reversed(list(zip(before, after, strict=True))) for n in (b, a)]
        image = torch.nn.functional.pad(image, pads, value=window.pad)
    inner = [slice(b, b + n) for b, n in zip(before, shape, strict=True)]
    weight = _weight(window).to(device)
    places = _places(size, window)
    rows = [(start, list(row)) for start, row in groupby(places, lambda place: place[0].start)]
    seen = 0
    sums: list[Tensor] = []
    weights = torch.zeros(roi[0], *size[1:])
    for number, (start, row) in enumerate(rows):
        for together in _shared_out(row, batch):
            outputs = network(torch.stack([image[:, d, h, w] for d, h, w in together]).to(device))
            sums = sums or [torch.zeros(y.shape[1], roi[0], *size[1:]) for y in outputs]
            for i, (_, h, w) in enumerate(together):
                for total, output in zip(sums, outputs, strict=True):
                    total[:, :, h, w] += (output[i] * weight).float().cpu()
                weights[:, h, w] += weight.cpu()
            seen += len(together)
            if progress is not None:
                progress(seen, len(places))
        done = (rows[number + 1][0] if number + 1 < len(rows) else size[0]) - start
        planes = slice(max(0, inner[0].start - start), min(done, inner[0].stop - start))
        if planes.start < planes.stop:
            over = weights[planes, inner[1], inner[2]]
            yield tuple(total[:, planes, inner[1], inner[2]] / over for total in sums)
        if number + 1 < len(rows):  # what later windows touch too moves to the front
            for held in (*sums, weights):
                along = held.ndim - 3
                kept = held.narrow(along, done, roi[0] - done).clone()
                held.zero_()
                held.narrow(along, 0, roi[0] - done).copy_(kept)


def _shared_out(row: Sequence[Place], batch: int) -> Iterator[Sequence[Place]]:
    """The windows of a row in order, in even batches of at least `batch`: a last window by itself
    would cost most.
    """
    parts = max(1, len(row) // batch)
    for i in range(parts):
        yield row[i * len(row) // parts : (i + 1) * len(row) // parts]


def _weight(window: SlidingWindow) -> Tensor:
    """The weight of each voxel of a window.

    MONAI bounds a gaussian from below by 1/1000 of its maximum, which is reached beyond 0.46 of a
    side, in more than half of a cube. nnU-Net bounds it by the limit of half precision for ten
    times its values, and centres it one voxel behind the cube's middle.
    """
    if window.inferer == "monai":
        from monai.data.utils import compute_importance_map

        return torch.as_tensor(compute_importance_map(window.patch, mode="gaussian"))
    d, h, w = (torch.exp(-(((torch.arange(n) - n // 2) / (n / 8)) ** 2) / 2) for n in window.patch)
    return (d[:, None, None] * h[:, None] * w).clamp(min=2.0**-24 / 10)


def windows_in(shape: Sequence[int], window: SlidingWindow) -> int:
    """How many windows a scan of this shape takes."""
    return len(_places([max(r, n) for r, n in zip(window.patch, shape, strict=True)], window))


def _places(size: Sequence[int], window: SlidingWindow) -> list[Place]:
    """The positions of the windows in a scan of `size`, ordered along D, then H, then W."""
    roi, share = window.patch, 1 - window.overlap
    if window.inferer == "monai":
        from monai.data.utils import dense_patch_slices

        steps = [r if r == n else max(1, int(r * share)) for r, n in zip(roi, size, strict=True)]
        return dense_patch_slices(size, roi, steps)
    starts = []
    for n, r in zip(
        size, roi, strict=True
    ):  # as few as reach the end in steps of at most that share, evenly spread
        count = math.ceil((n - r) / (r * share))
        starts.append([round((n - r) / max(1, count) * i) for i in range(count + 1)])
    return [
        tuple(slice(s, s + r) for s, r in zip(corner, roi, strict=True))
        for corner in product(*starts)
    ]
