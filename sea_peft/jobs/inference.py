"""From a scan to probabilities, window by window, and Dice of the result on the case's own grid."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from sea_peft.adapters import Adapted
from sea_peft.data.planes import Planes
from sea_peft.data.prepare import Scan
from sea_peft.data.sliding import SlidingWindow
from sea_peft.errors import DeviceError, OutputError
from sea_peft.jobs.windows import blended

_PLANE_VALUES = 1 << 25  # processed at once
_LARGEST_LOGIT = 1e8  # those of a trained network stay below a thousand

Forward = Callable[[torch.Tensor], torch.Tensor | tuple[torch.Tensor, ...]]
Combine = Callable[[Sequence[torch.Tensor]], tuple[torch.Tensor, ...]]


def probabilities(
    forward: Forward,
    scan: Scan,
    window: SlidingWindow,
    device: torch.device,
    batch: int,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    combine: Combine | None = None,
) -> tuple[Planes, ...]:
    """Probabilities of one or several outputs over the whole scan, `[K, D, H, W]` each, or what
    they are combined to.

    Averages the softmax over windows with gaussian weights, or the logits if the window is
    nnU-Net's.

    Args:
        forward: the network.
        scan: the prepared scan.
        window: the one that the network was trained with.
        device: where the network is.
        batch: windows at a time (`backbones.batch_for_masks`).
        folder: for temporary files of outputs that do not fit into memory.
        progress: called with (windows done, of).
        combine: called with the next planes of every output's probabilities, `[K, n, H, W]`, from
            the first to the last; what it returns is kept in their place.

    Raises:
        DeviceError: the device's memory does not suffice.
        DiskError: the disk is full.
        OutputError: logits are not finite, or too large to mean anything.
    """

    def network(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = forward(x)
        several = logits if isinstance(logits, tuple) else (logits,)
        if not all(bool(y.abs().amax() <= _LARGEST_LOGIT) for y in several):  # false for NaN too
            raise OutputError(
                f"Case {scan.id}: the network's output is not finite or beyond"
                f" ±{_LARGEST_LOGIT:.0e}, so there is no mask to go by; are these the right weights"
                " and grey values?"
            )
        return several if of_logits else tuple(y.softmax(dim=1) for y in several)

    of_logits = window.inferer == "nnunet"
    outputs: list[Planes] = []
    depth, height, width = scan.image.shape[1:]
    try:
        for slabs in blended(network, scan.image, window, device, batch, progress):
            found = tuple(slab.softmax(dim=0) for slab in slabs) if of_logits else slabs
            kept = found if combine is None else combine(found)
            outputs = outputs or [
                Planes((len(slab), depth, height, width), folder=folder) for slab in kept
            ]
            for output, slab in zip(outputs, kept, strict=True):
                output.append(slab)
    except torch.OutOfMemoryError as error:
        sizes = "×".join(str(n) for n in window.patch)
        raise DeviceError(
            f"Case {scan.id}: a window of {sizes} voxels does not fit into {device}; use a smaller"
            " --patch."
        ) from error
    return tuple(outputs)


def unadapted_and_head(model: Adapted) -> Forward:
    """A forward that gives the target logits of the unadapted backbone and of the head-only arm,
    from one pass through the backbone.
    """

    def forward(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = model.backbone(x)
        features = model.take_features(logits)
        return model.head(features, logits, gate=False), model.head(features, logits, gate=True)

    return forward


def confidences(
    probabilities: Planes, labels: Sequence[str], counted: np.ndarray | None = None
) -> dict[str, float | None]:
    """Label → 2·Σp·m / (Σp + Σm), with its probability p and the network's own mask m, on the
    network's grid; None if m is empty.

    This is the Dice that a mask would have if probabilities were right. It ranks masks well, but is
    too high by several points. `counted`: bool `[D, H, W]`, the voxels that count; None for all.
    """
    count, depth, height, width = probabilities.shape
    of_p, of_m, of_both = np.zeros(count), np.zeros(count), np.zeros(count)
    step = max(1, _PLANE_VALUES // (count * height * width))
    for start in range(0, depth, step):
        p = probabilities.read(start, start + step).numpy()
        winner = p.argmax(axis=0)
        if counted is not None:
            p, winner = p * counted[start : start + step], winner * counted[start : start + step]
        for index in range(1, count):
            m = winner == index
            of_p[index] += p[index].sum(dtype=np.float64)
            of_m[index] += np.count_nonzero(m)
            of_both[index] += p[index][m].sum(dtype=np.float64)
    return {
        label: round(float(2 * of_both[i] / (of_p[i] + of_m[i])), 4) if of_m[i] else None
        for i, label in enumerate(labels, start=1)
    }


def _masks(
    predicted: np.ndarray,
    reference: np.ndarray,
    labels: Mapping[str, tuple[int, ...]],
    if_drawn: Collection[str],
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(label, mask, reference), both bool, without labels of `if_drawn` that the reference
    lacks.
    """
    for index, (name, codes) in enumerate(labels.items(), start=1):
        r = np.isin(reference, codes)
        if name not in if_drawn or r.any():
            yield name, predicted == index, r


def dice_per_label(
    predicted: np.ndarray,
    reference: np.ndarray,
    labels: Mapping[str, tuple[int, ...]],
    if_drawn: Collection[str] = (),
) -> dict[str, float]:
    """Hard Dice of each label on one grid.

    `predicted` holds indices 1..L in the order of `labels`, `reference` the stored codes. A label
    in neither is left out; one that is in only one of them scores 0. Labels of `if_drawn`, which
    nobody may have looked for, are left out if the reference lacks them.
    """
    scores = {}
    for name, p, r in _masks(predicted, reference, labels, if_drawn):
        total = int(p.sum()) + int(r.sum())
        if total:
            scores[name] = 2.0 * int(np.logical_and(p, r).sum()) / total
    return scores


def error_rates(
    predicted: np.ndarray,
    reference: np.ndarray,
    labels: Mapping[str, tuple[int, ...]],
    if_drawn: Collection[str] = (),
) -> dict[str, dict[str, float]]:
    """`sensitivity` and `specificity` → label → rate on one grid. Arguments as for
    `dice_per_label`.

    Sensitivity is left out for a label that the reference lacks, specificity for one that fills it.
    """
    sensitivity, specificity = {}, {}
    for name, p, r in _masks(predicted, reference, labels, if_drawn):
        hit, wanted, found = int(np.logical_and(p, r).sum()), int(r.sum()), int(p.sum())
        if wanted:
            sensitivity[name] = hit / wanted
        if wanted < r.size:
            specificity[name] = 1.0 - (found - hit) / (r.size - wanted)
    return {"sensitivity": sensitivity, "specificity": specificity}


def mean_dice(
    per_case: Mapping[str, Mapping[str, float]], labels: Sequence[str]
) -> tuple[float, dict[str, float]]:
    """Mean over labels of the mean over cases; and the means per label, without labels that no
    case has.
    """
    per_label = {
        name: float(np.mean(values))
        for name in labels
        if (values := [case[name] for case in per_case.values() if name in case])
    }
    return (float(np.mean(list(per_label.values()))) if per_label else 0.0), per_label
