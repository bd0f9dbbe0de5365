"""From a case to tensors by the recipe, and from the network's output back to the case's own
grid.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sea_peft.data import as_nnunet
from sea_peft.data.cases import Case
from sea_peft.data.codes import MOST_CODE, require_codes
from sea_peft.data.geometry import Box, Geometry, crop, whole_geometry
from sea_peft.data.grids import require_finite, require_same_grid
from sea_peft.data.intensity import (
    foreground,
    is_ct_name,
    looks_like_hounsfield,
    not_hounsfield,
    scaling,
)
from sea_peft.data.planes import Planes
from sea_peft.data.recipe import Recipe, Window, ZScore
from sea_peft.data.resample import ReadPlanes
from sea_peft.errors import DataError

_PLANE_VALUES = 1 << 25  # processed at once
_MOST_VOXELS = 500_000_000  # 2 GB a channel; a whole-body CT at 1 mm has a third of it


@dataclass(frozen=True, eq=False, kw_only=True)
class Scan:
    """A case after the recipe, as the loop sees it.

    Attributes:
        id: case id.
        image: float32 `[C, D, H, W]`, channels in the wanted order.
        label: uint8 `[D, H, W]`, 0 = background, 1..L in the order of the selected labels, 255 =
            not counted (`codes.IGNORED`); None if unlabelled.
        geometry: leads back to the input's own grid.
        notes: assumptions and oddities, each a sentence.
    """

    id: str
    image: Tensor
    label: Tensor | None
    geometry: Geometry
    notes: tuple[str, ...] = ()


def prepare(
    case: Case,
    recipe: Recipe,
    channels: Sequence[str],
    labels: Mapping[str, tuple[int, ...]] | None = None,
) -> Scan:
    """Read a case and bring it to the recipe's orientation, spacing and grey values.

    Args:
        case: where the volumes come from.
        recipe: the preprocessing of the weights.
        channels: channel names, in the order the network wants them.
        labels: selected label name → codes; None leaves the label out (predict).

    Raises:
        DataError: a channel is missing, unreadable, not finite, of one grey value, or on another
            grid than the others; or the label is on another grid than the image.
    """
    volumes = {channel: case.image(channel) for channel in channels}
    first = volumes[channels[0]]
    for channel, volume in volumes.items():
        require_finite(case.id, channel, volume)
        require_same_grid(case.id, f"channel {channel}", volume, f"channel {channels[0]}", first)
    masks = _foregrounds({channel: volume.array for channel, volume in volumes.items()}, recipe)
    geometry = whole_geometry(
        first.shape, first.affine, recipe.orientation, recipe.spacing, recipe.resampler
    )
    if recipe.crop_foreground:
        body = np.logical_or.reduce(list(masks.values()))
        geometry = _cropped(geometry, body, recipe)
    if math.prod(geometry.grid) > _MOST_VOXELS:
        own = " × ".join(f"{size:.4g}" for size in first.spacing)
        raise DataError(
            f"case {case.id}: voxels of {own} mm would become {' × '.join(map(str, geometry.grid))}"
            " voxels at the weights' spacing; is the voxel size in millimetres?"
        )
    image = torch.empty((len(channels), *geometry.grid))
    for index, channel in enumerate(channels):
        where = f"case {case.id}: channel {channel}"
        _fill(image[index], volumes[channel].array, masks[channel], geometry, recipe, where)
    label = None
    if labels is not None and (stored := case.label()) is not None:
        require_same_grid(case.id, "label", stored, "image", first)
        indices = label_indices(stored.array, labels, f"case {case.id}: label")
        label = geometry.labels_to_grid(indices, len(labels))
        if indices.any() and not bool(label.any()):
            sizes = " × ".join(f"{size:g}" for size in recipe.spacing)
            raise DataError(
                f"case {case.id}: none of the label's {np.count_nonzero(indices)} voxels is left in"
                f" the body at the weights' voxel size of {sizes} mm; choose a finer spacing or"
                " take the case out"
            )
    notes = [
        f"case {case.id}: channel {c} {note}"
        for c, volume in volumes.items()
        for note in volume.notes
    ]
    for channel, volume in volumes.items():
        if (
            isinstance(recipe.intensity, Window)
            and is_ct_name(channel)
            and not looks_like_hounsfield(volume.array)
        ):
            notes.append(
                f"case {case.id}: channel {channel} {not_hounsfield(volume.array)}; is it a CT at"
                " all?"
            )
    return Scan(id=case.id, image=image, label=label, geometry=geometry, notes=tuple(notes))


def label_indices(
    stored: np.ndarray, labels: Mapping[str, tuple[int, ...]], where: str = "the label"
) -> np.ndarray:
    """Stored codes → uint8 indices 0..L in the order of `labels`; codes of no selected label become
    0.

    Args:
        stored: a label map of any real dtype.
        labels: label name → codes.
        where: case and field, for the error sentence.

    Raises:
        DataError: values cannot be label codes at all: interpolated ones, for instance.
    """
    require_codes(stored, where)
    table = np.zeros(MOST_CODE + 1, dtype=np.uint8)
    for index, wanted in enumerate(labels.values(), start=1):
        table[list(wanted)] = index
    codes = stored if stored.dtype.kind in "bui" else np.rint(stored)
    return table[codes.astype(np.uint16, copy=False)]


def restore(probabilities: Planes | Tensor, geometry: Geometry) -> np.ndarray:
    """Bring the network's output back to the input's own grid.

    Args:
        probabilities: `[K, D, H, W]` on the recipe's grid, background first. They are resampled
            linearly (in nnU-Net's way, their logarithms); the strongest label wins.
        geometry: the scan's geometry.

    Returns:
        uint8 `[I, J, K]` label indices, 0 = background and outside the cropped box.
    """
    planes = probabilities if isinstance(probabilities, Planes) else Planes.of(probabilities)
    strengths = _strengths(planes, geometry)

    # Resampling is linear, so the lead over the background can be resampled instead of both, and
    # only near the voxels where some label leads
    def lead(start: int, stop: int) -> Tensor:
        values = strengths(start, stop)
        return values[1:] - values[:1]

    oriented = np.zeros(geometry.oriented_shape, dtype=np.uint8)
    box = oriented[geometry.box]
    region = _leading_box(lead, planes.shape)
    if region is not None:
        for part, slab in geometry.slabs(lead, planes.shape[0] - 1, region):
            best, winner = slab.max(dim=0)
            box[part] = torch.where(best > 0, winner + 1, 0).to(torch.uint8).numpy()
    return geometry.to_input(oriented)


def restore_probability(
    probabilities: Planes | Tensor, index: int, geometry: Geometry
) -> np.ndarray:
    """One label's probability on the input's own grid.

    Args:
        probabilities: `[K, D, H, W]` on the recipe's grid.
        index: which of the K labels; 0 = background, which is 1 outside the cropped box.
        geometry: the scan's geometry.

    Returns:
        float32 `[I, J, K]`.
    """
    planes = probabilities if isinstance(probabilities, Planes) else Planes.of(probabilities)
    outside = 1.0 if index == 0 else 0.0
    if geometry.resampler != "nnunet":
        return _restored(lambda a, b: planes.read(a, b)[index : index + 1], geometry, outside)
    oriented = np.full(geometry.oriented_shape, outside, dtype=np.float32)
    box = oriented[geometry.box]
    for part, slab in geometry.slabs(_strengths(planes, geometry), planes.shape[0]):
        box[part] = slab.softmax(dim=0)[index].numpy()
    return geometry.to_input(oriented)


def restore_map(values: Planes, geometry: Geometry) -> np.ndarray:
    """A map `[1, D, H, W]` on the recipe's grid → float32 `[I, J, K]` on the input's own, resampled
    linearly; 0 outside the cropped box.
    """
    return _restored(values.read, geometry, outside=0.0)


def _restored(read: ReadPlanes, geometry: Geometry, outside: float) -> np.ndarray:
    oriented = np.full(geometry.oriented_shape, outside, dtype=np.float32)
    box = oriented[geometry.box]
    for part, slab in geometry.slabs(read, 1):
        box[part] = slab[0].numpy()
    return geometry.to_input(oriented)


def _strengths(planes: Planes, geometry: Geometry) -> ReadPlanes:
    """The values to be resampled: probabilities or, in nnU-Net's way, their logarithms.

    nnU-Net resamples logits, from which the logarithms differ by one number per voxel.
    """
    if geometry.resampler == "nnunet":
        return lambda a, b: planes.read(a, b).clamp(min=planes.least).log()
    return planes.read


def _leading_box(lead: ReadPlanes, shape: tuple[int, int, int, int]) -> Box | None:
    """The smallest box around the voxels of `[D, H, W]` where some label leads; None if there
    is none.
    """
    _, depth, height, width = shape
    hits = [torch.zeros(n, dtype=torch.bool) for n in (depth, height, width)]
    step = max(1, _PLANE_VALUES // (shape[0] * height * width))
    for start in range(0, depth, step):
        leads = (lead(start, start + step) > 0).any(dim=0)
        hits[0][start : start + step] = leads.any(dim=2).any(dim=1)
        hits[1] |= leads.any(dim=2).any(dim=0)
        hits[2] |= leads.any(dim=1).any(dim=0)
    return _span_of(hits)


def _bounding_box(mask: np.ndarray) -> Box | None:
    """The smallest box around the true voxels of `[D, H, W]`; None if there is none."""
    return _span_of(
        [
            torch.from_numpy(mask.any(axis=tuple(a for a in range(3) if a != axis)))
            for axis in range(3)
        ]
    )


def _span_of(hits: Sequence[Tensor]) -> Box | None:
    """First to last true entry along each axis."""
    where = [torch.nonzero(hit).ravel() for hit in hits]
    if not all(len(at) for at in where):
        return None
    d, h, w = (slice(int(at[0]), int(at[-1]) + 1) for at in where)
    return d, h, w


def _cropped(geometry: Geometry, body: np.ndarray, recipe: Recipe) -> Geometry:
    """The geometry of the body's bounding box plus the recipe's margin; of the whole scan if it
    is empty.
    """
    box = _bounding_box(geometry.oriented(body))
    if box is None:
        return geometry
    start, size = [], []
    for axis, span in enumerate(box):
        margin = round(recipe.margin / recipe.spacing[axis] * geometry.step[axis])
        start.append(max(0, span.start - margin))
        size.append(min(geometry.size[axis], span.stop + margin) - start[axis])
    return crop(geometry, (start[0], start[1], start[2]), (size[0], size[1], size[2]))


def _foregrounds(channels: Mapping[str, np.ndarray], recipe: Recipe) -> dict[str, np.ndarray]:
    """The body in each channel; in nnU-Net's way, one body for all."""
    if recipe.resampler == "nnunet":
        return dict.fromkeys(channels, as_nnunet.body(list(channels.values())))
    return {channel: foreground(array, recipe.intensity) for channel, array in channels.items()}


def _fill(
    grid: Tensor,
    array: np.ndarray,
    inside: np.ndarray,
    geometry: Geometry,
    recipe: Recipe,
    where: str,
) -> None:
    """Bring one channel to the recipe's grid `[D, H, W]` and grey values, in place."""
    if recipe.resampler == "nnunet":
        grid.copy_(_scaled_first(array, inside, geometry, recipe, where))
        return
    # a few planes at a time
    offset, factor = scaling(array, inside, recipe.intensity, where)
    for part, slab in geometry.grid_slabs(geometry.boxed(array), 1):
        grid[part] = (slab[0] - offset) * factor
    if recipe.intensity.kind != "zscore":
        grid.clamp_(0.0, 1.0)
    if recipe.intensity.kind != "window":
        for part, slab in geometry.grid_slabs(geometry.boxed(inside), 1):
            grid[part][slab[0] < 0.5] = 0.0  # outside the body stays 0


def _scaled_first(
    array: np.ndarray, inside: np.ndarray, geometry: Geometry, recipe: Recipe, where: str
) -> Tensor:
    """One channel in nnU-Net's way, which scales and clips grey values before it resamples:
    `[D, H, W]`.
    """
    box = geometry.oriented(array)[geometry.box]
    body = geometry.oriented(inside)[geometry.box]
    if isinstance(recipe.intensity, ZScore) and recipe.intensity.over == "box":
        body = np.ones_like(body)
    offset, factor = scaling(box, body, recipe.intensity, where, sample=box.size)
    values = (torch.from_numpy(np.array(box, dtype=np.float32, order="C")) - offset) * factor
    if recipe.intensity.kind != "zscore":
        values.clamp_(0.0, 1.0)
    if recipe.intensity.kind != "window":
        values[torch.from_numpy(~body)] = 0.0
    return as_nnunet.resized(values, geometry.grid, geometry.nearest[0])
