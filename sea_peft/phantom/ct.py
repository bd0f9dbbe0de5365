"""Computed tomography: HU by contrast phase, point spread, kernel, noise with its spectrum,
beam hardening, streaks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from sea_peft.phantom.acquisition import FWHM, REFERENCE_VOXEL, blur, texture
from sea_peft.phantom.sampling import Grid, Layer, compose
from sea_peft.phantom.shapes import Array
from sea_peft.phantom.tissues import ORALLY_FILLED, PORTAL_VENOUS, UNENHANCED

_WATER = 0.02  # attenuation of water in 1/mm at the mean energy of a 120 kVp beam


@dataclass(frozen=True, kw_only=True)
class CT:
    """Computed tomography.

    Attributes:
        unenhanced: HU of each tissue without contrast medium at 120 kVp.
        phase: HU that iodine adds to each tissue at 120 kVp.
        enhancement: factor on `phase`; 0 = no contrast medium. A lower tube voltage raises it, to
            1.5 at 80 kVp (chosen).
        enhancement_spread: standard deviation of that factor between patients, relative.
        oral_contrast: HU that a positive oral contrast medium adds to what is in stomach and bowel.
        tissue_spread: standard deviation in HU of each soft tissue between patients.
        resolution: in-plane full width at half maximum in mm.
        slice_thickness: full width at half maximum along z in mm.
        sharpening: weight of the unsharp mask by which a bone kernel differs from a soft one.
        noise: standard deviation in HU of 5 mm voxels at the body's centre.
        noise_blur: correlation length of the noise in the slice in mm (long for soft kernels).
        starvation: HU of streaks along the patient's long axis in the slice, where few photons
            arrive.
        cupping: HU lost in the middle of the body by beam hardening.
        metal_streaks: HU of the streaks around metal.
    """

    channels: ClassVar[tuple[str, ...]] = ("CT",)
    unenhanced: Mapping[str, float] = field(default_factory=lambda: UNENHANCED)
    phase: Mapping[str, float] = field(default_factory=lambda: PORTAL_VENOUS)
    enhancement: float = 1.0
    enhancement_spread: float = 0.12
    oral_contrast: float = 0.0
    tissue_spread: float = 5.0
    resolution: float = 3.0
    slice_thickness: float = 4.0
    sharpening: float = 0.0
    noise: float = 10.0
    noise_blur: float = 3.0
    starvation: float = 0.0
    cupping: float = 0.0
    metal_streaks: float = 0.0

    def acquire(
        self, layers: list[Layer], grid: Grid, rng: np.random.Generator
    ) -> dict[str, NDArray[np.int16]]:
        """`CT`: int16 `[I, J, K]` in Hounsfield units."""
        iodine = self.enhancement * max(0.4, 1 + self.enhancement_spread * rng.normal())
        values = {}
        for tissue, hu in self.unenhanced.items():
            spread = self.tissue_spread if -200 < hu < 200 else 0.0
            drunk = self.oral_contrast * ORALLY_FILLED.get(tissue, 0.0)
            values[tissue] = (
                hu + iodine * self.phase.get(tissue, 0.0) + drunk + spread * rng.normal()
            )
        image = compose(layers, grid.shape, values, self.unenhanced["air"])
        image += texture(image, grid, rng, 4.0)
        body = np.clip((image + 1000) / 1000, 0, 2).astype(
            np.float32
        )  # attenuation relative to water
        image = blur(image, grid, self.resolution, self.slice_thickness)
        if self.sharpening:
            image += self.sharpening * (image - blur(image, grid, 9.0, 0.0))
        if self.cupping:
            depth = np.sqrt(body.sum(0, keepdims=True) * body.sum(1, keepdims=True))
            image -= (
                self.cupping * np.clip(body, 0, 1) * (depth / max(float(depth.max()), 1e-6)) ** 2
            )
        if self.metal_streaks:
            image += _metal_streaks(layers, grid, rng, self.metal_streaks)
        image += self.noise * self._noise(body, grid, rng)
        return {"CT": np.clip(np.rint(image), -1024, 3071).astype(np.int16)}

    def _noise(self, body: Array, grid: Grid, rng: np.random.Generator) -> Array:
        """Quantum noise, correlated by the kernel, stronger where rays cross more tissue.

        The variance of a ray grows with exp(attenuation). Tube current modulation removes about
        half of the exponent. A voxel averages its rays, which the two along the axes stand for.
        """
        along_x = np.exp(
            0.5 * _WATER * grid.spacing[0] * body.sum(0, keepdims=True, dtype=np.float32)
        )
        along_y = np.exp(
            0.5 * _WATER * grid.spacing[1] * body.sum(1, keepdims=True, dtype=np.float32)
        )
        level = np.sqrt((along_x + along_y) / 2)
        level /= max(float(np.quantile(level, 0.95)), 1e-6)
        noise = _correlated(grid, rng, self.noise_blur, self.slice_thickness)
        noise *= level * np.float32(np.sqrt(REFERENCE_VOXEL / np.prod(grid.spacing)))
        if self.starvation:
            # one value per row: the rays along the patient's width are those that starve
            streaks = rng.normal(size=(1, *grid.shape[1:])).astype(np.float32)
            weight = (along_x / along_x.max()) ** 2 * np.float32(self.starvation / self.noise)
            noise += streaks * weight
        return noise


def _correlated(grid: Grid, rng: np.random.Generator, in_plane: float, along_z: float) -> Array:
    """Gaussian noise of unit variance whose spectrum is that of filtered back-projection.

    In the slice the power is f exp(-(2 pi f w)^2), the ramp filter times the kernel's apodisation
    (Riederer et al., Phys Med Biol 23:446, 1978); along z it is smoothed by the slice profile.
    """
    white = rng.normal(size=grid.shape).astype(np.float32)
    fx = np.fft.fftfreq(grid.shape[0], grid.spacing[0])[:, None]
    fy = np.fft.rfftfreq(grid.shape[1], grid.spacing[1])[None, :]
    f = np.hypot(fx, fy)
    amplitude = np.sqrt(f * np.exp(-((2 * np.pi * f * in_plane / FWHM) ** 2)) + 1e-3 * f.max())
    spectrum = np.fft.rfft2(white, axes=(0, 1)) * amplitude[:, :, None]
    noise = np.fft.irfft2(spectrum, s=grid.shape[:2], axes=(0, 1)).astype(np.float32)
    noise = gaussian_filter(noise, (0, 0, along_z / FWHM / grid.spacing[2]))
    return noise / noise.std()


def _metal_streaks(
    layers: list[Layer], grid: Grid, rng: np.random.Generator, amount: float
) -> Array:
    """Bright and dark rays from metal, with the dark band between two pieces of it.

    Each voxel of metal emits cos(n angle) patterns that fall off with distance; their sum over the
    voxels is a convolution. This imitates the look of missing projections, not their inversion.
    """
    metal = np.zeros(grid.shape, dtype=np.float32)
    for layer in layers:
        if layer.tissue == "metal":
            metal[layer.where] = np.maximum(metal[layer.where], layer.share)
    x = np.fft.fftfreq(2 * grid.shape[0], 1 / (2 * grid.shape[0]))[:, None] * grid.spacing[0]
    y = np.fft.fftfreq(2 * grid.shape[1], 1 / (2 * grid.shape[1]))[None, :] * grid.spacing[1]
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    kernel = -np.cos(2 * angle)
    for n in (7, 11, 17):
        kernel = kernel + np.cos(n * angle + rng.uniform(0, 2 * np.pi))
    kernel = kernel / (1 + radius / 25) ** 1.5 * (radius > 0)
    size = (2 * grid.shape[0], 2 * grid.shape[1])
    spectrum = np.fft.rfft2(metal, s=size, axes=(0, 1)) * np.fft.rfft2(kernel)[:, :, None]
    rays = np.fft.irfft2(spectrum, s=size, axes=(0, 1))[: grid.shape[0], : grid.shape[1]]
    scale = amount / max(float(np.quantile(np.abs(rays), 0.99)), 1e-6)
    return np.clip(rays * scale, -2 * amount, 2 * amount).astype(np.float32)
