"""The grey values that a picture shows from black to white, and their name."""

from __future__ import annotations

import dataclasses

import numpy as np

from sea_peft.data.recipe import Intensity, Window

_SOFT_TISSUE = Window(low=-160, high=240)
_WIDEST = 1500.0  # of a CT window in which soft tissues still differ
_PERCENTILES = (
    1.0,
    99.9,
)  # a bright lesion is a few voxels of a thousand, and must not be white all over
_SAMPLE = 2_000_000  # voxels that percentiles are computed from


@dataclasses.dataclass(frozen=True)
class Shades:
    """The grey values shown as black (`low`) and white (`high`). `name`: printed under the
    picture.
    """

    low: float
    high: float
    name: str


def shades(array: np.ndarray, channel: str, intensity: Intensity) -> Shades:
    """For a scan in its own units.

    A CT is shown through the network's window, or through a soft-tissue window if that is too wide
    to see anything. Other scans are shown between percentiles of all but their darkest value.
    """
    window = (
        intensity
        if isinstance(intensity, Window)
        else _SOFT_TISSUE
        if channel.upper() == "CT"
        else None
    )
    if window is None:
        return _between_percentiles(array, channel)
    if window.high - window.low > _WIDEST:
        window = _SOFT_TISSUE
    width, level = window.high - window.low, (window.high + window.low) / 2
    return Shades(window.low, window.high, f"{channel} window W {width:g} L {level:g}")


def scaled_shades(array: np.ndarray, channel: str, intensity: Intensity) -> Shades:
    """For a scan as the network sees it."""
    if isinstance(intensity, Window):
        width, level = intensity.high - intensity.low, (intensity.high + intensity.low) / 2
        return Shades(0.0, 1.0, f"{channel} window W {width:g} L {level:g}")
    return _between_percentiles(array, channel)


def _between_percentiles(array: np.ndarray, channel: str) -> Shades:
    sample = np.ravel(array)[:: 1 + array.size // _SAMPLE]
    inside = sample[sample > sample.min()]
    low, high = np.percentile(inside if inside.size else sample, _PERCENTILES)
    names = " to ".join(f"{p:g}" for p in _PERCENTILES)
    return Shades(
        float(low),
        max(float(high), float(low) + 1e-6),
        f"{channel}, grey values from percentile {names}",
    )
