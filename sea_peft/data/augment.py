"""Random changes of training crops. Each crop has its own generator, so a resumed run repeats every
draw bit for bit.

Nothing is flipped, since labels distinguish left and right. Rotation and scaling act on a box
larger than the crop, so that they bring in more of the scan instead of a border.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import torch
from monai.transforms import AdjustContrast, GaussianSmooth, RandBiasField
from scipy.spatial.transform import Rotation
from torch import Tensor

from sea_peft.data.augmentation import Augmentation

Size = tuple[int, int, int]
Spacing = tuple[float, float, float]


@functools.lru_cache
def box_for(spec: Augmentation, patch: Size, spacing: Spacing) -> Size:
    """Sides of the box that holds every voxel that a crop of `patch` can need after rotation
    and scaling.
    """
    half = np.asarray(patch) / 2
    reach = half * (1 + spec.scaling)
    for angles in itertools.product((-1, 0, 1), repeat=3):
        moved = np.abs(
            _matrix(spec.rotation * np.asarray(angles), np.full(3, 1 + spec.scaling), spacing)
        )
        reach = np.maximum(reach, moved @ half)
    d, h, w = (2 * math.ceil(r) + 1 for r in reach)
    return d, h, w


def turn(
    spec: Augmentation,
    image: Tensor,
    label: Tensor,
    patch: Size,
    spacing: Spacing,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """The middle of a box, rotated and scaled.

    Args:
        spec: angles and scales.
        image: float32 `[C, *box]`.
        label: uint8 `[*box]`.
        patch: sides of the result.
        spacing: voxel size in mm, since rotation is of bodies, not of grids.
        rng: the crop's generator.

    Returns:
        Image `[C, *patch]`, linearly interpolated, and label `[*patch]` of the nearest voxels.
    """
    angles = spec.rotation * rng.uniform(-1, 1, 3)
    moved = _matrix(angles, 1 + spec.scaling * rng.uniform(-1, 1, 3), spacing)
    box = np.asarray(label.shape)
    # torch counts from -1 to 1 across each axis, and the axes from the last to the first
    relative = (moved * np.asarray(patch)[None] / box[:, None])[::-1, ::-1]
    theta = torch.tensor(np.concatenate([relative, np.zeros((3, 1))], axis=1), dtype=torch.float32)
    grid = torch.nn.functional.affine_grid(theta[None], [1, 1, *patch], align_corners=False)
    sample = functools.partial(torch.nn.functional.grid_sample, grid=grid, align_corners=False)
    return sample(image[None], mode="bilinear")[0], sample(
        label[None, None].float(), mode="nearest"
    )[0, 0].to(torch.uint8)


def _matrix(angles: np.ndarray, scales: np.ndarray, spacing: Spacing) -> np.ndarray:
    """3 × 3 matrix from voxels of the crop to voxels of the box, both counted from the middle.
    `angles`: degrees about each axis.
    """
    mm = np.diag(spacing)
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix: np.ndarray = np.linalg.inv(mm) @ rotation @ mm @ np.diag(scales)
    return matrix


def recolour(spec: Augmentation, image: Tensor, rng: np.random.Generator) -> Tensor:
    """Change the grey values of a crop, float32 `[C, d, h, w]`, as another scanner or protocol
    might.
    """
    if rng.random() < spec.bias_field_p:
        field = RandBiasField(prob=1.0, degree=3, coeff_range=(0.0, spec.bias_field))
        field.set_random_state(seed=int(rng.integers(2**31)))
        image = _plain(field(image))
    if rng.random() < spec.blur_p:
        image = _plain(GaussianSmooth(sigma=float(rng.uniform(0.2, 1.0)) * spec.blur)(image))
    if rng.random() < spec.low_resolution_p:
        image = _coarser(image, rng.uniform(spec.low_resolution, 1.0, 3))
    if rng.random() < spec.gamma_p:
        gamma = spec.gamma ** float(rng.uniform(-1, 1))
        image = _plain(AdjustContrast(gamma=gamma, retain_stats=True)(image))
    if rng.random() < spec.noise_p:
        size = float(rng.uniform(0, spec.noise)) * float(image.std())
        image = image + size * torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
    # relative to the crop's own mean and deviation, so that a change does not depend on the range
    # that the recipe maps to 0..1
    mean, deviation = image.mean((1, 2, 3), keepdim=True), image.std((1, 2, 3), keepdim=True)
    gain, shift = (float(rng.uniform(-most, most)) for most in (spec.gain, spec.shift))
    return image + gain * (image - mean) + shift * deviation


def _coarser(image: Tensor, shares: np.ndarray) -> Tensor:
    sides = [max(2, round(n * share)) for n, share in zip(image.shape[1:], shares, strict=True)]
    small = torch.nn.functional.interpolate(image[None], size=sides, mode="nearest")
    return torch.nn.functional.interpolate(
        small, size=image.shape[1:], mode="trilinear", align_corners=False
    )[0]


def _plain(found: Tensor) -> Tensor:
    """The tensor without MONAI's record of what was done to it."""
    return torch.as_tensor(found).as_subclass(Tensor)
