"""From a scan to probabilities, window by window where it must be; and the Dice of what comes back on the case's own grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from monai.inferers import sliding_window_inference

from sea_peft.adapters import Adapted
from sea_peft.data.prepare import Scan
from sea_peft.errors import DeviceError

OVERLAP = 0.25
# An axis up to this many patches long goes through the network whole: fewer windows, no seams, and the same memory within a factor.
_WHOLE_UP_TO = 1.5

Forward = Callable[[torch.Tensor], torch.Tensor | tuple[torch.Tensor, ...]]


def window(shape: Sequence[int], patch: Sequence[int], divisor: int) -> tuple[int, ...]:
    """The inference window for a scan of `shape` voxels: the whole axis, rounded up to the divisor, where it is short; else the patch."""
    return tuple(
        -(-n // divisor) * divisor if n <= _WHOLE_UP_TO * p else p for n, p in zip(shape, patch, strict=True)
    )


@torch.no_grad()
def probabilities(
    forward: Forward, scan: Scan, patch: Sequence[int], divisor: int, device: torch.device, overlap: float = OVERLAP
) -> tuple[torch.Tensor, ...]:
    """Softmax of `forward`'s logits over the whole scan, gaussian-weighted windows: one or several [K, D, H, W] on the CPU, float32.

    Raises DeviceError when the device's memory does not suffice.
    """
    roi = window(scan.image.shape[1:], patch, divisor)

    def network(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = forward(x)
        return tuple(y.softmax(dim=1) for y in (logits if isinstance(logits, tuple) else (logits,)))

    try:
        outputs = sliding_window_inference(
            scan.image[None],
            roi,
            1,
            network,
            overlap=overlap,
            mode="gaussian",
            sw_device=device,
            device=torch.device("cpu"),
            progress=False,
        )
    except torch.OutOfMemoryError as error:
        sizes = "×".join(str(n) for n in roi)
        raise DeviceError(f"Case {scan.id}: a window of {sizes} voxels does not fit into {device}; use a smaller --patch.") from error
    return tuple(y[0] for y in outputs) if isinstance(outputs, tuple | list) else (outputs[0],)


def unadapted_and_head(model: Adapted) -> Forward:
    """A forward that gives the unadapted backbone's and the head-only arm's target logits from one pass through the frozen backbone."""

    def forward(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = model.backbone(x)
        features = model.take_features(logits)
        return model.head(features, logits, gate=False), model.head(features, logits, gate=True)

    return forward


def dice_per_label(predicted: np.ndarray, reference: np.ndarray, labels: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """Hard Dice of every label on one grid. `predicted` holds indices 1..L in the order of `labels`, `reference` the stored codes.

    A label that is in neither is left out; one that is in one of them only scores 0.
    """
    scores = {}
    for index, (name, codes) in enumerate(labels.items(), start=1):
        p, r = predicted == index, np.isin(reference, codes)
        total = int(p.sum()) + int(r.sum())
        if total:
            scores[name] = 2.0 * int(np.logical_and(p, r).sum()) / total
    return scores


def mean_dice(per_case: Mapping[str, Mapping[str, float]], labels: Sequence[str]) -> tuple[float, dict[str, float]]:
    """Mean over labels of the mean over cases, and the latter per label (labels that no case has are left out)."""
    per_label = {
        name: float(np.mean(values))
        for name in labels
        if (values := [case[name] for case in per_case.values() if name in case])
    }
    return (float(np.mean(list(per_label.values()))) if per_label else 0.0), per_label

