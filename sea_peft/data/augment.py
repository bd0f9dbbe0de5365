"""Random changes of training crops. Every draw comes from one generator that belongs to the crop, so that a resumed run repeats it bit for bit.

Nothing is flipped: left and right are labels' meanings. Rotation and scaling act on a box that is larger than the crop, so that what they
bring in is the scan and not a border.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from monai.transforms import AdjustContrast, GaussianSmooth, RandBiasField
from pydantic import Field
from scipy.spatial.transform import Rotation
from torch import Tensor

from sea_peft import documents
from sea_peft.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Size = tuple[int, int, int]
Spacing = tuple[float, float, float]
_Probability = Annotated[float, Field(ge=0, le=1)]
_Share = Annotated[float, Field(ge=0, lt=1)]


class Augmentation(documents.Record):
    """What may be done to a crop. A field that ends in `_p` is the probability that it is done at all.

    Attributes:
        rotation: Largest angle about each axis, in degrees.
        scaling: Largest relative change of size along each axis, drawn for each axis alone.
        gamma: Largest factor g of a gamma curve with an exponent between 1/g and g, on grey values stretched to 0..1 and back.
        gain: Grey values are multiplied by 1 ± this.
        shift: And shifted by ± this, in units of the prepared grey values.
        noise: Largest standard deviation of white noise, as a share of the crop's own.
        blur: Largest sigma of a gaussian, in voxels.
        low_resolution: Smallest number of voxels along an axis, as a share, that the crop is sampled with and stretched back from.
        bias_field: Largest coefficient of a smooth multiplicative field, as coils leave it on MR.
    """

    rotation: Annotated[float, Field(ge=0, le=180)] = 12.0
    scaling: _Share = 0.15
    spatial_p: _Probability = 0.7
    gamma: Annotated[float, Field(ge=1, le=5)] = 1.4
    gamma_p: _Probability = 0.3
    gain: _Share = 0.1
    shift: Annotated[float, Field(ge=0, le=1)] = 0.1
    noise: Annotated[float, Field(ge=0, le=1)] = 0.15
    noise_p: _Probability = 0.15
    blur: Annotated[float, Field(gt=0, le=5)] = 0.6
    blur_p: _Probability = 0.1
    low_resolution: Annotated[float, Field(gt=0.1, le=1)] = 0.6
    low_resolution_p: _Probability = 0.1
    bias_field: Annotated[float, Field(ge=0, le=1)] = 0.1
    bias_field_p: _Probability = 0.0


FULL = Augmentation()
GREY_VALUES = Augmentation(spatial_p=0, gamma_p=0, noise_p=0, blur_p=0, low_resolution_p=0)
NONE = GREY_VALUES.model_copy(update={"gain": 0.0, "shift": 0.0})
_LARGEST = 1 << 20
AUGMENTATIONS = {"full": FULL, "grey": GREY_VALUES, "none": NONE}
"""By name: all of it; gain and shift alone, as in the papers; crops as they are."""


def load_augmentation(name: str) -> Augmentation:
    """`full`, `grey`, `none`, or a TOML file with fields of `Augmentation`, where what is left out is as in `full`.

    Raises:
        UsageError: There is no such file, or it is not valid.
    """
    if name in AUGMENTATIONS:
        return AUGMENTATIONS[name]
    try:
        found = tomllib.loads(documents.read_bytes(Path(name), _LARGEST).decode("utf-8"))
        return documents.check(Augmentation, found)
    except OSError as error:
        raise UsageError(
            f"--augment {name}: choose default, full, grey or none, or give a TOML file ({error.strerror})."
        ) from error
    except documents.Invalid as error:
        raise UsageError(f"--augment {name}, field {error}.") from error
    except (ValueError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UsageError(f"--augment {name} is not valid TOML: {said}.") from error


@functools.lru_cache
def box_for(spec: Augmentation, patch: Size, spacing: Spacing) -> Size:
    """Sides of the box that holds every voxel that a crop of `patch` can ask for after rotation and scaling."""
    half = np.asarray(patch) / 2
    reach = half * (1 + spec.scaling)
    for angles in itertools.product((-1, 0, 1), repeat=3):
        moved = np.abs(_matrix(spec.rotation * np.asarray(angles), np.full(3, 1 + spec.scaling), spacing))
        reach = np.maximum(reach, moved @ half)
    d, h, w = (2 * math.ceil(r) + 1 for r in reach)
    return d, h, w


def turn(
    spec: Augmentation, image: Tensor, label: Tensor, patch: Size, spacing: Spacing, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """The middle of a box, rotated and scaled.

    Args:
        spec: Angles and scales.
        image: Float32 `[C, *box]`.
        label: Uint8 `[*box]`.
        patch: Sides of the result.
        spacing: Of a voxel, in mm: bodies are rotated, not grids.
        rng: The crop's generator.

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
    return sample(image[None], mode="bilinear")[0], sample(label[None, None].float(), mode="nearest")[0, 0].to(
        torch.uint8
    )


def _matrix(angles: np.ndarray, scales: np.ndarray, spacing: Spacing) -> np.ndarray:
    """3 × 3: from voxels of the crop to voxels of the box, both counted from the middle. `angles`: degrees about each axis."""
    mm = np.diag(spacing)
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix: np.ndarray = np.linalg.inv(mm) @ rotation @ mm @ np.diag(scales)
    return matrix


def recolour(spec: Augmentation, image: Tensor, rng: np.random.Generator) -> Tensor:
    """Other grey values of a crop, float32 `[C, d, h, w]`: what another scanner or protocol may give."""
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
    return image * (1 + float(rng.uniform(-spec.gain, spec.gain))) + float(rng.uniform(-spec.shift, spec.shift))


def _coarser(image: Tensor, shares: np.ndarray) -> Tensor:
    sides = [max(2, round(n * share)) for n, share in zip(image.shape[1:], shares, strict=True)]
    small = torch.nn.functional.interpolate(image[None], size=sides, mode="nearest")
    return torch.nn.functional.interpolate(small, size=image.shape[1:], mode="trilinear", align_corners=False)[0]


def _plain(found: Tensor) -> Tensor:
    """Without MONAI's record of what was done."""
    return torch.as_tensor(found).as_subclass(Tensor)
