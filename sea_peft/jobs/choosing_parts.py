"""Which connected parts of masks an adapter keeps: chosen on scans held out while searching,
among rules that no shot speaks against.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from sea_peft.data.codes import IGNORED
from sea_peft.data.metrics import dice
from sea_peft.jobs.keeping import Keep, keep_parts, parts

Rules = Mapping[str, Sequence[Keep]]
Gains = dict[str, dict[str, float]]
"""Label → rule → Dice that it adds in one scan."""

_LEAST_GAIN = 0.002  # Dice, mean over the scans held out, from which on a rule is worth having
_LEAST_ML = 0.001
# share of a label's volume in a scan: what is smaller has slipped from a pen, and is no part
_CRUMB = 0.005
# of the smallest part drawn in any shot: a rule must not remove what may well be there
_SMALLEST = 0.5


def candidates(
    shots: Sequence[np.ndarray], labels: Sequence[str], millilitres: float
) -> dict[str, list[Keep]]:
    """Rules by label that would leave what is drawn in every shot as it is, the strictest first;
    labels that no shot holds have none.

    Args:
        shots: label indices `[D, H, W]` of each shot, 1..L in the order of `labels`.
        labels: names of the labels.
        millilitres: of a voxel.
    """
    drawn: dict[str, list[np.ndarray]] = {}
    for shot in shots:
        counted = np.where(shot == IGNORED, 0, shot)
        for index, box in enumerate(ndimage.find_objects(counted, max_label=len(labels)), start=1):
            if box is not None:
                drawn.setdefault(labels[index - 1], []).append(_part_sizes(counted[box] == index))
    found = {}
    for label, sizes in drawn.items():
        smallest = _SMALLEST * millilitres * min(float(each.min()) for each in sizes)
        least = [Keep(least_ml=float(f"{smallest:.2g}"))] if smallest >= _LEAST_ML else []
        found[label] = [Keep(most=max(len(each) for each in sizes)), *least]
    return found


def gains(
    predicted: np.ndarray,
    reference: np.ndarray,
    labels: Mapping[str, tuple[int, ...]],
    rules: Rules,
    millilitres: float,
) -> Gains:
    """What each rule adds in one scan; a label that the reference lacks is left out.

    Args:
        predicted: label indices `[I, J, K]`, 1..L in the order of `labels`.
        reference: the stored codes of what is drawn.
        labels: label → its codes.
        rules: label → rules to try.
        millilitres: of a voxel.
    """
    found: Gains = {}
    for index, (label, codes) in enumerate(labels.items(), start=1):
        drawn = np.isin(reference, codes)
        if label not in rules or not drawn.any():
            continue
        mask = predicted == index
        (box,) = ndimage.find_objects((mask | drawn).view(np.uint8))
        mask, drawn = mask[box], drawn[box]
        before = dice(mask, drawn)
        found[label] = {
            str(rule): (
                dice(keep_parts(mask.view(np.uint8), {1: rule}, millilitres) == 1, drawn) - before
            )
            for rule in rules[label]
        }
    return found


def chosen(scans: Sequence[Gains]) -> dict[str, tuple[str, float]]:
    """Label → the rule that adds most and takes nothing in any scan, and its mean gain; labels
    for which none is worth having are left out.
    """
    kept = {}
    for label in dict.fromkeys(label for scan in scans for label in scan):
        of_rule: dict[str, list[float]] = {}
        for rule, gain in (pair for scan in scans for pair in scan.get(label, {}).items()):
            of_rule.setdefault(rule, []).append(gain)
        means = {
            rule: statistics.fmean(gained) for rule, gained in of_rule.items() if min(gained) >= 0
        }
        best = max(
            means, key=lambda rule: means[rule], default=None
        )  # of equals the first, which is the strictest
        if best is not None and means[best] >= _LEAST_GAIN:
            kept[label] = (best, means[best])
    return kept


def _part_sizes(mask: np.ndarray) -> np.ndarray:
    """Voxels of each connected part, without crumbs."""
    numbered, count = parts(mask)
    sizes = np.bincount(numbered.ravel(), minlength=count + 1)[1:]
    return sizes[sizes >= _CRUMB * sizes.sum()]
