"""Grey values: the choice of a scaling for a data set, and the scaling itself."""

import re
from collections.abc import Sequence

import numpy as np

from sea_peft.data.cases import Case
from sea_peft.data.recipe import Intensity, Percentile, Recipe, Window
from sea_peft.errors import DataError

HOUNSFIELD_MINIMUM = (
    -500.0
)  # air is about -1000 HU; no MR, ultrasound or z-scored scan reaches -500
_SAMPLE = 1_000_000  # values from which percentiles are taken
_CASES_LOOKED_AT = 5
_LEAST_PADDING = 0.01


def is_ct_name(channel: str) -> bool:
    """Whether a channel's declared name says CT (`CT`, `ct`, `CTA`, `CT_venous`, …)."""
    return re.match(r"(ct|cta|cect|ncct)([^a-z]|$)", channel.lower()) is not None


def looks_like_hounsfield(array: np.ndarray) -> bool:
    """Whether values can be Hounsfield units: the minimum is -500 or less."""
    return float(array.min()) <= HOUNSFIELD_MINIMUM


def not_hounsfield(array: np.ndarray) -> str:
    """The part of a sentence about a channel that is declared as CT, but whose values are not
    Hounsfield units.
    """
    return (
        f"is declared as CT but runs from {array.min():.4g} to {array.max():.4g}, which are hardly"
        " Hounsfield units"
    )


def choose_intensity(
    recipe: Recipe, cases: Sequence[Case], channels: Sequence[str]
) -> tuple[Recipe, str | None]:
    """The recipe with an intensity that suits the scans.

    The weights' own intensity is kept, unless it is a fixed window and the scans are not in
    Hounsfield units: the window would then clip nearly everything to one grey value. Scans count as
    being in Hounsfield units if every channel is declared as CT, or if the values of every case
    examined (at most five) reach -500 or less.

    Args:
        recipe: the recipe of the weights.
        cases: cases to examine, the support cases first.
        channels: channels that will be used.

    Returns:
        The recipe to use, and a sentence for the user if it differs from the weights' recipe.
    """
    window = recipe.intensity
    if not isinstance(window, Window) or all(is_ct_name(channel) for channel in channels):
        return recipe, None
    for case in cases[:_CASES_LOOKED_AT]:
        for channel in channels:
            array = case.image(channel).array
            if not looks_like_hounsfield(array):
                sentence = (
                    f"The weights expect CT from {window.low:g} to {window.high:g} HU, but channel"
                    f" {channel} of case {case.id} runs from {array.min():.4g} to"
                    f" {array.max():.4g}, which is no CT: the 0.5 to 99.5 percentiles of each"
                    " scan's foreground are scaled to 0..1 instead."
                )
                return recipe.model_copy(update={"intensity": Percentile()}), sentence
    return recipe, None


def foreground(array: np.ndarray, intensity: Intensity) -> np.ndarray:
    """Voxels that count as body, bool of the same shape.

    For a window: those above its low end. Otherwise: those without the padding value. That is 0 or
    the scan's minimum (z-scored scans pad with either), whichever is more frequent. If it fills
    less than 1% of the scan there is no padding, and every voxel counts.
    """
    if isinstance(intensity, Window):
        return array > intensity.low
    at_zero, at_minimum = array == 0, array == array.min()
    padding = max(at_zero, at_minimum, key=np.count_nonzero)
    if np.count_nonzero(padding) < _LEAST_PADDING * array.size:
        return np.ones(array.shape, dtype=bool)
    return ~padding


def scaling(
    array: np.ndarray, inside: np.ndarray, intensity: Intensity, where: str, sample: int = _SAMPLE
) -> tuple[float, float]:
    """`(offset, factor)` such that `(x - offset) * factor` is the scaled grey value.

    Args:
        array: grey values in the scan's own units.
        inside: its foreground (see `foreground`).
        intensity: the scaling.
        where: case and channel, for the error sentence.
        sample: the most voxels to use.

    Raises:
        DataError: the foreground is empty or holds a single grey value.
    """
    if isinstance(intensity, Window):
        return intensity.low, 1.0 / (intensity.high - intensity.low)
    values = array[inside]
    values = values[:: max(1, values.size // sample)].astype(np.float64)
    if values.size and isinstance(intensity, Percentile):
        low, high = np.percentile(values, (intensity.low, intensity.high)).tolist()
        # A few grey levels (a synthetic scan, a mask as image) can put both percentiles on one of
        # them
        offset, spread = (
            (low, high - low) if high > low else (float(values.min()), float(np.ptp(values)))
        )
    elif values.size:
        offset, spread = float(values.mean()), float(values.std())
    if not values.size or spread <= 0:
        raise DataError(
            f"{where} holds a single grey value; export the scan again or take the case out"
        )
    return offset, 1.0 / spread
