"""Scanners, and the parts of imaging that all of them share.

A scanner acts on the tissue values of the parts, in this order: emission or attenuation of the
tissues, blur by the point spread and the slice thickness, artefacts, noise. `ct` and `mr` are small
models of the physics, documented there.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from sea_peft.phantom.sampling import Grid, Layer
from sea_peft.phantom.shapes import Array

FWHM = 2.3548  # full width at half maximum of a Gaussian of unit standard deviation
REFERENCE_VOXEL = 125.0  # mm^3; noise levels are given for voxels of 5 mm


class Acquisition(Protocol):
    """A scanner with its protocol. `channels`: its images, in order."""

    @property
    def channels(self) -> tuple[str, ...]: ...

    def acquire(
        self, layers: list[Layer], grid: Grid, rng: np.random.Generator
    ) -> dict[str, NDArray[np.int16]]:
        """Channel → int16 `[I, J, K]`, in Hounsfield units for CT, in arbitrary units of 0 or
        more for MR.
        """
        ...


def blur(image: Array, grid: Grid, in_plane: float, along_z: float) -> Array:
    """Gaussian point spread with these full widths at half maximum in mm."""
    sigma = [w / FWHM / s for w, s in zip((in_plane, in_plane, along_z), grid.spacing, strict=True)]
    return gaussian_filter(image, sigma, mode="nearest")


def texture(
    image: Array, grid: Grid, rng: np.random.Generator, amount: float, above: float = -50.0
) -> Array:
    """Uneven parenchyma: a Gaussian random field with a correlation length of 8 mm, in soft
    tissue only.
    """
    field_ = gaussian_filter(
        rng.normal(size=grid.shape).astype(np.float32), [8.0 / s for s in grid.spacing]
    )
    return field_ * (amount / max(float(field_.std()), 1e-6)) * (image > above)
