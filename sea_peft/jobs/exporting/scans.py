"""Prepares a scan for the exported network, and brings its probabilities back to the scan's own
grid. Needs numpy and nibabel only.

`seapeft export` copies this file into the folders that it makes, so they run without sea_peft. It
does the same as `seapeft predict`; `recipe` and `window` are those of the JSON file beside the
network.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from nibabel import orientations

Recipe = Mapping[str, Any]
Part = Mapping[str, Any]  # of a recipe
_SAMPLE = 1_000_000  # values from which percentiles, means and deviations are taken
_LEAST_PADDING = 0.01


def to_grid(
    channels: Sequence[np.ndarray], affine: np.ndarray, recipe: Recipe
) -> tuple[np.ndarray, np.ndarray]:
    """Bring a scan to the network's orientation, voxel size and grey values.

    Args:
        channels: stored grey values `[I, J, K]`, one array per channel, in the network's order.
        affine: 4×4, from voxels to RAS+ mm.
        recipe: of the network.

    Returns:
        float32 `[C, D, H, W]`, and an array for `to_mask` that leads back to the scan's grid. It
            holds 3 + 3 + 3 + 16 numbers: the scan's shape, start and size of the box that the
            network sees (along its axes), and the affine.
    """
    inside = [_foreground(array, recipe["intensity"]) for array in channels]
    axes, flips = _turned(affine, recipe["orientation"])
    shape = channels[0].shape
    start, size = [0, 0, 0], [shape[axis] for axis in axes]
    steps = _steps(affine, axes, recipe)
    if recipe["crop_foreground"]:
        body = _oriented(np.logical_or.reduce(inside), axes, flips)
        for axis in range(3):
            where = np.flatnonzero(body.any(axis=tuple(a for a in range(3) if a != axis)))
            if not len(where):
                start, size = [0, 0, 0], [shape[a] for a in axes]
                break
            step = _same(steps[axis], shape[axes[axis]])
            margin = round(recipe["margin"] / recipe["spacing"][axis] * step)
            start[axis] = max(0, int(where[0]) - margin)
            size[axis] = min(shape[axes[axis]], int(where[-1]) + 1 + margin) - start[axis]
    box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
    image = np.stack(
        [
            _channel(
                array,
                body,
                lambda values: _oriented(values, axes, flips)[box],
                steps,
                recipe["intensity"],
            )
            for array, body in zip(channels, inside, strict=True)
        ]
    )
    return image, np.array([*shape, *start, *size, *np.asarray(affine, dtype=np.float64).ravel()])


def to_mask(
    probabilities: np.ndarray, way_back: np.ndarray, recipe: Recipe, values: Sequence[int]
) -> np.ndarray:
    """Bring probabilities `[1 + L, D, H, W]`, background first, back to the scan's own grid.

    `values`: the mask's value for each of the L labels. Returns `[I, J, K]`, uint8, or uint16 if a
    value needs it.
    """
    shape, start, size = (tuple(int(n) for n in way_back[i : i + 3]) for i in (0, 3, 6))
    affine = np.asarray(way_back[9:]).reshape(4, 4)
    axes, flips = _turned(affine, recipe["orientation"])
    steps = [_same(step, n) for step, n in zip(_steps(affine, axes, recipe), size, strict=True)]
    at = [
        (np.arange(n) + 0.5 - n / 2) / step + (m / 2 - 0.5)
        for n, m, step in zip(size, probabilities.shape[1:], steps, strict=True)
    ]
    best = np.zeros(size, dtype=np.float32)
    winner = np.zeros(size, dtype=np.uint16 if max(values) > 255 else np.uint8)
    for index, value in enumerate(values, start=1):  # the label that exceeds the background most
        lead = _interpolated(probabilities[index].astype(np.float32) - probabilities[0], at)
        leads = lead > best
        best[leads], winner[leads] = lead[leads], value
    oriented = np.zeros([shape[axis] for axis in axes], dtype=winner.dtype)
    oriented[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = winner
    turned = oriented[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    return np.ascontiguousarray(turned.transpose(np.argsort(axes)))


def blended(
    network: Callable[[np.ndarray], np.ndarray], image: np.ndarray, window: Part
) -> np.ndarray:
    """Probabilities `[1 + L, D, H, W]` of a scan `[C, D, H, W]`, from overlapping windows.

    `network`: a window `[1, C, *patch]` → logits `[1, 1 + L, *patch]`. Averages probabilities with
    gaussian weights, or logits if the window is nnU-Net's.
    """
    patch, inner = window["patch"], image.shape[1:]
    before = [max(0, r - n) // 2 for r, n in zip(patch, inner, strict=True)]
    after = [max(0, r - n) - b for r, n, b in zip(patch, inner, before, strict=True)]
    image = np.pad(
        image, [(0, 0), *zip(before, after, strict=True)], constant_values=window["pad"]
    )  # where a scan is smaller than the window
    weight, total, over = _weight(window), None, np.zeros(image.shape[1:], dtype=np.float32)
    for d, h, w in _places(image.shape[1:], window):
        output = network(np.ascontiguousarray(image[None, :, d, h, w], dtype=np.float32))[0]
        output = output if window["inferer"] == "nnunet" else _softmax(output)
        total = np.zeros((len(output), *over.shape), dtype=np.float32) if total is None else total
        total[:, d, h, w] += output * weight
        over[d, h, w] += weight
    assert total is not None, "a scan has at least one window"
    mean = total / over
    mean = _softmax(mean) if window["inferer"] == "nnunet" else mean
    d, h, w = (slice(b, b + n) for b, n in zip(before, inner, strict=True))
    return mean[:, d, h, w]


def _channel(
    array: np.ndarray,
    inside: np.ndarray,
    boxed: Callable[[np.ndarray], np.ndarray],
    steps: Sequence[float],
    intensity: Part,
) -> np.ndarray:
    """One channel on the network's grid, scaled."""
    offset, factor = _scaling(array, inside, intensity)
    values = boxed(array).astype(np.float32)
    same = [_same(step, n) for step, n in zip(steps, values.shape, strict=True)]
    sizes = [max(1, round(n / step)) for n, step in zip(values.shape, same, strict=True)]
    at = [
        (np.arange(m) + 0.5 - m / 2) * step + (n / 2 - 0.5)
        for n, m, step in zip(values.shape, sizes, same, strict=True)
    ]
    grid = (_interpolated(values, at) - np.float32(offset)) * np.float32(factor)
    if intensity["kind"] != "zscore":
        grid = grid.clip(0.0, 1.0)
    if intensity["kind"] != "window":  # outside the body stays 0
        grid[_interpolated(boxed(inside).astype(np.float32), at) < 0.5] = 0.0
    return grid


def _scaling(array: np.ndarray, inside: np.ndarray, intensity: Part) -> tuple[float, float]:
    """(offset, factor): (x − offset)·factor is the scaled grey value."""
    if intensity["kind"] == "window":
        return intensity["low"], 1.0 / (intensity["high"] - intensity["low"])
    values = array[inside]
    values = values[:: max(1, values.size // _SAMPLE)].astype(np.float64)
    if not values.size or not np.ptp(values):
        raise ValueError("the scan holds a single grey value")
    if intensity["kind"] == "zscore":
        return float(values.mean()), 1.0 / float(values.std())
    low, high = np.percentile(values, (intensity["low"], intensity["high"])).tolist()
    if high <= low:
        low, high = float(values.min()), float(values.max())
    return low, 1.0 / (high - low)


def _foreground(array: np.ndarray, intensity: Part) -> np.ndarray:
    """The voxels that count as body: those above the window's lower end, or without the value that
    the scan is padded with.
    """
    if intensity["kind"] == "window":
        return array > intensity["low"]
    padding = max(array == 0, array == array.min(), key=np.count_nonzero)
    return (
        ~padding
        if np.count_nonzero(padding) >= _LEAST_PADDING * array.size
        else np.ones(array.shape, dtype=bool)
    )


def _turned(affine: np.ndarray, orientation: str) -> tuple[list[int], list[bool]]:
    """For each axis of the network, the scan's axis that it runs along and whether it runs
    against it.
    """
    change = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt(tuple(orientation))
    )
    axes, flips = [0, 0, 0], [False, False, False]
    for source, (target, sign) in enumerate(change):
        axes[int(target)], flips[int(target)] = source, sign < 0
    return axes, flips


def _oriented(array: np.ndarray, axes: Sequence[int], flips: Sequence[bool]) -> np.ndarray:
    return array.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


def _steps(affine: np.ndarray, axes: Sequence[int], recipe: Recipe) -> list[float]:
    """Voxels of the scan per voxel of the network, along the network's axes."""
    lengths = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    return [mm / float(lengths[axis]) for mm, axis in zip(recipe["spacing"], axes, strict=True)]


def _same(step: float, voxels: int) -> float:
    """The step, rounded to one if it differs in its last digits only."""
    return 1.0 if abs(step - 1) * voxels < 0.05 else step


def _interpolated(values: np.ndarray, at: Sequence[np.ndarray]) -> np.ndarray:
    """Linear interpolation of `[D, H, W]` at places along each axis. Beyond the ends the end
    value holds.
    """
    for axis, places in enumerate(at):
        n = values.shape[axis]
        if len(places) == n and np.array_equal(places, np.arange(n)):
            continue
        places = places.clip(0, n - 1)
        below = np.floor(places).astype(int)
        share = (
            (places - below).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        )
        low, high = (values.take(i, axis=axis) for i in (below, (below + 1).clip(max=n - 1)))
        values = low * (1 - share) + high * share
    return values


def _weight(window: Part) -> np.ndarray:
    """The weight of each voxel of a window: MONAI's gaussian, or nnU-Net's."""
    ours = window["inferer"] == "monai"
    sides = [(np.arange(n) - ((n - 1) / 2 if ours else n // 2)) / (n / 8) for n in window["patch"]]
    d, h, w = (np.exp(-(side**2) / 2).astype(np.float32) for side in sides)
    weight = d[:, None, None] * h[:, None] * w
    return weight.clip(min=max(float(weight.min()), 1e-3) if ours else 2.0**-24 / 10)


def _places(size: Sequence[int], window: Part) -> list[tuple[slice, slice, slice]]:
    """The positions of windows: in equal steps but for the last, as MONAI's, or evenly spread,
    as nnU-Net's.
    """
    share, starts = 1 - window["overlap"], []
    for n, r in zip(size, window["patch"], strict=True):
        if window["inferer"] == "monai":
            step = r if r == n else max(1, int(r * share))
            count = max(1, math.ceil((n - r) / step) + 1)
            starts.append([min(i * step, n - r) for i in range(count)])
        else:
            count = math.ceil((n - r) / (r * share))
            starts.append([round((n - r) / max(1, count) * i) for i in range(count + 1)])
    d, h, w = window["patch"]
    return [
        (slice(i, i + d), slice(j, j + h), slice(k, k + w))
        for i in starts[0]
        for j in starts[1]
        for k in starts[2]
    ]


def _softmax(logits: np.ndarray) -> np.ndarray:
    strength = np.exp(logits - logits.max(axis=0, keepdims=True))
    return strength / strength.sum(axis=0, keepdims=True)
