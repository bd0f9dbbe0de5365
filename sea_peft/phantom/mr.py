"""Magnetic resonance: magnitude images of one or several sequences of one visit, with the same
tissues, coils and patient.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sea_peft.phantom.acquisition import REFERENCE_VOXEL, blur, texture
from sea_peft.phantom.relaxation import ABDOMEN, Sequence, SpoiledGradientEcho, Tissue
from sea_peft.phantom.sampling import Grid, Layer, compose
from sea_peft.phantom.shapes import Array


@dataclass(frozen=True, kw_only=True)
class MR:
    """A scanner with its protocol. Images are scaled so that `reference` has a signal of 100, then
    by the receiver gain.

    Attributes:
        sequences: channel → sequence.
        tissues: relaxation times and proton densities.
        tesla: field strength.
        reference: the tissue whose signal, per channel, is 100.
        tissue_spread: standard deviation of each tissue between patients, relative, per channel.
        resolution: in-plane full width at half maximum in mm.
        slice_thickness: full width at half maximum along z in mm.
        bias: strength of the receive coils' field: standard deviation of its logarithm.
        motion: standard deviation in mm of the patient's shifts while lines are read.
        noise: standard deviation of the noise in either quadrature channel for 5 mm voxels; the
            magnitude of both is Rician (Gudbjartsson and Patz, MRM 34:910, 1995).
        gain: range of the receiver gain; MR has no unit.
        stripped: whether everything outside the drawn parts was set to 0 afterwards (skull
            stripping).
    """

    sequences: Mapping[str, Sequence] = field(
        default_factory=lambda: {"MR": SpoiledGradientEcho(tr=4.2, flip=12)}
    )
    tissues: Mapping[str, Tissue] = field(default_factory=lambda: ABDOMEN)
    tesla: float = 3.0
    reference: str = "muscle"
    tissue_spread: float = 0.06
    resolution: float = 3.5
    slice_thickness: float = 5.0
    bias: float = 0.2
    motion: float = 0.0
    noise: float = 8.0
    gain: tuple[float, float] = (1.0, 6.0)
    stripped: bool = False

    @property
    def channels(self) -> tuple[str, ...]:
        return tuple(self.sequences)

    def acquire(
        self, layers: list[Layer], grid: Grid, rng: np.random.Generator
    ) -> dict[str, NDArray[np.int16]]:
        """Channel → int16 `[I, J, K]` in arbitrary units, 0 or more."""
        coils = _smooth_field(grid, rng, self.bias)
        kept = (
            compose(layers, grid.shape, dict.fromkeys(self.tissues, 1.0), 0.0) > 0.5
            if self.stripped
            else None
        )
        images = {}
        for channel, sequence in self.sequences.items():
            image = self._magnitude(sequence, layers, grid, coils, rng)
            if kept is not None:
                image = np.where(kept, np.maximum(image, 1.0), 0.0)
            images[channel] = np.clip(np.rint(image), 0, 32767).astype(np.int16)
        return images

    def _magnitude(
        self,
        sequence: Sequence,
        layers: list[Layer],
        grid: Grid,
        coils: Array,
        rng: np.random.Generator,
    ) -> Array:
        signal = {
            name: sequence.signal(tissue, self.tesla) for name, tissue in self.tissues.items()
        }
        scale = 100 / signal[self.reference]
        values = {
            t: scale * s * max(0.3, 1 + self.tissue_spread * rng.normal())
            for t, s in signal.items()
        }
        image = compose(layers, grid.shape, values, 0.0)
        image += texture(image, grid, rng, 4.0, above=50.0)
        image = blur(image, grid, self.resolution, self.slice_thickness) * coils
        if self.motion:
            image = _shifted_lines(image, grid, rng, self.motion)
        sigma = self.noise * np.sqrt(REFERENCE_VOXEL / np.prod(grid.spacing))
        real, imaginary = (rng.normal(size=(2, *grid.shape)) * sigma).astype(np.float32)
        magnitude = np.hypot(np.maximum(image, 0) + real, imaginary) * rng.uniform(*self.gain)
        return magnitude.astype(np.float32)


def _smooth_field(grid: Grid, rng: np.random.Generator, strength: float) -> Array:
    """A positive field of second order over the field of view, whose logarithm has the standard
    deviation `strength`.
    """
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in grid.shape), indexing="ij", sparse=True)
    w = rng.normal(size=6)
    log = (
        w[0] * x + w[1] * y + w[2] * z + w[3] * x * y + w[4] * (x**2 - 0.33) + w[5] * (y**2 - 0.33)
    )
    return np.exp(strength * log / log.std()).astype(np.float32)


def _shifted_lines(
    image: Array, grid: Grid, rng: np.random.Generator, amount: float, blocks: int = 6
) -> Array:
    """Ghosts and blur of a patient who moves along the phase-encoding axis (y) between `blocks` of
    k-space lines.

    A shift by d multiplies the line of spatial frequency f by exp(−2πi f d); the block around f = 0
    stays.
    """
    frequency = np.fft.fftfreq(grid.shape[1], grid.spacing[1])
    order = np.argsort(
        np.argsort(frequency)
    )  # lines are read from the most negative to the most positive
    shifts = rng.normal(size=blocks) * amount
    shifts[blocks // 2] = 0.0
    shift = shifts[order * blocks // len(order)]
    phase = np.exp(-2j * np.pi * frequency * shift).astype(np.complex64)
    moved = np.fft.ifft(np.fft.fft(image, axis=1) * phase[None, :, None], axis=1)
    return np.abs(moved).astype(np.float32)
