"""Divides the labels of a scan between training and audit, for runs at one shot."""

from __future__ import annotations

from dataclasses import replace

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from sea_peft.data.codes import IGNORED
from sea_peft.data.prepare import Scan
from sea_peft.errors import DataError


def hold_out_labels(scan: Scan, fraction: float = 0.3) -> tuple[Scan, Scan]:
    """Divide the labels of one scan between training and audit.

    Each label is cut across the axis along which it is longest, where the part beyond the cut holds
    `fraction` of its voxels. A single cut through the scan would leave small organs wholly on one
    side, and training would then learn that they are nowhere. An unlabelled voxel goes where the
    nearest labelled one went.

    Both parts keep the whole image, so that the network sees the same as in prediction; in each,
    the voxels of the other part are `IGNORED`. No voxel counts in both parts, but they are of one
    patient, so an audit on the second is not independent. A label that is one voxel thick along
    every axis stays whole, in the part to train on.

    Returns:
        The scan to train on and the scan to audit on; they share the image's memory.

    Raises:
        DataError: nothing is labelled, or no label can be cut.
    """
    label = scan.label
    if label is None or not bool((label > 0).any()):
        raise DataError(
            f"case {scan.id}: nothing is labelled, so no part can be held out; choose another case"
        )
    drawn = (label > 0) & (label != IGNORED)
    beyond = torch.zeros_like(drawn)
    for index in label[drawn].unique().tolist():
        beyond[_beyond_the_cut(torch.nonzero(label == index), fraction)] = True
    if not bool(beyond.any()):
        raise DataError(
            f"case {scan.id}: its labels are too small to hold out a part of them; give two shots"
        )
    nearest = distance_transform_edt(~drawn.numpy(), return_distances=False, return_indices=True)
    held = torch.from_numpy(beyond.numpy()[tuple(nearest)])
    return replace(scan, label=label.masked_fill(held, IGNORED)), replace(
        scan, label=label.masked_fill(~held, IGNORED)
    )


def _beyond_the_cut(voxels: Tensor, fraction: float) -> tuple[Tensor, ...]:
    """Indices of a label's voxels beyond its cut; none where it cannot be cut.

    `voxels`: `[n, 3]`, at least one.
    """
    low, high = voxels.amin(dim=0), voxels.amax(dim=0)
    axis = int((high - low).argmax())
    along = voxels[:, axis]
    before = along.bincount().cumsum(0)  # voxels up to and including each plane
    cut = int((before <= (1 - fraction) * len(along)).sum())
    cut = max(int(low[axis]) + 1, min(cut, int(high[axis])))
    return voxels[along >= cut].unbind(dim=1)
