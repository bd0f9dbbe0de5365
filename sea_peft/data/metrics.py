"""How well a mask agrees with the reference, per case and label, on the input's own grid.

With P the predicted and R the reference voxels, and surfaces of voxels that have a face neighbour
outside:

* Dice = 2|P∩R| / (|P|+|R|); sensitivity = |P∩R| / |R|; precision = |P∩R| / |P|; specificity = the
  share of the voxels outside R that are outside P.
* NSD, the normalised surface distance: the share of both surfaces that lies within a tolerance of
  the other (Nikolov et al. 2018, arXiv 1809.04430).
* HD95: the larger of the two directed 95th percentiles of surface distances, in mm.

Where something is empty (NaN values are left out of means and shown as a dash):

| | Dice, NSD | HD95 | sensitivity | precision |
|---|---|---|---|---|
| both empty | NaN | NaN | NaN | NaN |
| only P empty | 0 | NaN | 0 | NaN |
| only R empty | 0 | NaN | NaN | 0 |

NSD and HD95 equal MONAI's `compute_surface_dice` and `compute_hausdorff_distance(percentile=95)`;
here both come from one pair of distance maps of the common bounding box, which takes a fraction of
the time.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects

DEFAULT_TOLERANCE_MM = 2.0


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Agreement of one label in one case; NaN where a measure is undefined.

    Attributes:
        dice, nsd, sensitivity, specificity, precision: in 0..1.
        hd95: millimetres.
        volume_difference: predicted minus reference volume in millilitres.
        reference_volume: millilitres.
    """

    dice: float
    nsd: float
    hd95: float
    sensitivity: float
    specificity: float
    precision: float
    volume_difference: float
    reference_volume: float


def dice(predicted: np.ndarray, reference: np.ndarray) -> float:
    """Dice of two bool arrays; NaN when both are empty."""
    total = int(np.count_nonzero(predicted)) + int(np.count_nonzero(reference))
    return _ratio(2 * int(np.count_nonzero(predicted & reference)), total)


def score(
    predicted: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    tolerance: float = DEFAULT_TOLERANCE_MM,
) -> Scores:
    """All measures of one label.

    Args:
        predicted: bool `[I, J, K]`.
        reference: bool `[I, J, K]`.
        spacing: voxel size in millimetres along the three axes.
        tolerance: of the NSD, in millimetres.
    """
    inside, ours, theirs = (
        int(np.count_nonzero(a)) for a in (predicted & reference, predicted, reference)
    )
    outside = reference.size - theirs
    millilitres = math.prod(spacing) / 1000.0
    nsd, hd95 = _surface_measures(predicted, reference, spacing, tolerance)
    return Scores(
        dice=_ratio(2 * inside, ours + theirs),
        nsd=nsd,
        hd95=hd95,
        sensitivity=_ratio(inside, theirs),
        specificity=_ratio(outside - (ours - inside), outside),
        precision=_ratio(inside, ours),
        volume_difference=(ours - theirs) * millilitres,
        reference_volume=theirs * millilitres,
    )


def score_labels(
    predicted: np.ndarray,
    reference: np.ndarray,
    labels: Sequence[str],
    spacing: Sequence[float],
    tolerance: float = DEFAULT_TOLERANCE_MM,
) -> dict[str, Scores]:
    """The measures of every label of one case.

    Args:
        predicted: label indices `[I, J, K]`, 1..L in the order of `labels` (as `restore` returns
            them).
        reference: label indices likewise (see `label_indices`).
        labels: label names.
        spacing: voxel size in millimetres.
        tolerance: of the NSD, in millimetres.
    """
    return {
        name: score(predicted == index, reference == index, spacing, tolerance)
        for index, name in enumerate(labels, start=1)
    }


def mean(values: Iterable[float]) -> float:
    """Mean without NaN; NaN if nothing is left."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _surface_measures(
    predicted: np.ndarray, reference: np.ndarray, spacing: Sequence[float], tolerance: float
) -> tuple[float, float]:
    """NSD and HD95."""
    if not predicted.any() or not reference.any():
        return (0.0 if predicted.any() or reference.any() else math.nan), math.nan
    # one more voxel on every side, so that cutting makes no surface
    (inside,) = find_objects((predicted | reference).view(np.uint8))
    box = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in inside)
    ours, theirs = (_surface(mask[box]) for mask in (predicted, reference))
    to_theirs = distance_transform_edt(~theirs, sampling=spacing)[ours]
    to_ours = distance_transform_edt(~ours, sampling=spacing)[theirs]
    near = int(np.count_nonzero(to_theirs <= tolerance)) + int(
        np.count_nonzero(to_ours <= tolerance)
    )
    hd95 = max(np.percentile(to_theirs, 95), np.percentile(to_ours, 95))
    return near / (to_theirs.size + to_ours.size), float(hd95)


def _surface(mask: np.ndarray) -> np.ndarray:
    """Voxels of the mask with a face neighbour outside it (beyond the scan counts as outside)."""
    return mask & ~binary_erosion(mask)
