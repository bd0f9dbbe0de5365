"""The preprocessing recipe: it belongs to the weights, the adapter records it, and predict
replays it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sea_peft.documents import Record

_GreyValue = Annotated[float, Field(ge=-1e9, le=1e9)]


class Window(Record):
    """Fixed range in the scan's own units (Hounsfield units for CT), clipped and scaled to 0..1."""

    kind: Literal["window"] = "window"
    low: _GreyValue
    high: _GreyValue

    @model_validator(mode="after")
    def _ordered(self) -> Window:
        if not self.low < self.high:
            raise ValueError(f"window low {self.low:g} must lie below high {self.high:g}")
        return self


class ZScore(Record):
    """Zero mean and unit variance inside the foreground of each channel, and 0 outside; or over the
    whole cropped box.
    """

    kind: Literal["zscore"] = "zscore"
    over: Literal["foreground", "box"] = Field(
        default="foreground", exclude_if=lambda over: over == "foreground"
    )


class Percentile(Record):
    """Percentiles `low`..`high` of each channel's foreground scaled to 0..1 and clipped; 0
    outside.
    """

    kind: Literal["percentile"] = "percentile"
    low: float = Field(default=0.5, ge=0, le=100)
    high: float = Field(default=99.5, ge=0, le=100)

    @model_validator(mode="after")
    def _ordered(self) -> Percentile:
        if not self.low < self.high:
            raise ValueError(f"percentile low {self.low:g} must lie below high {self.high:g}")
        return self


Intensity = Annotated[Window | ZScore | Percentile, Field(discriminator="kind")]
Resampler = Literal["linear", "nnunet"]
"""How scans are resampled: by linear interpolation about a scan's centre, or as nnU-Net's
preprocessor does (`as_nnunet`).
"""
_Millimetres = Annotated[float, Field(ge=0.01, le=100)]


class Recipe(Record):
    """How a scan becomes a tensor.

    Attributes:
        orientation: axis codes of the tensor's D, H, W axes (`RAS`: towards right, anterior,
            superior).
        spacing: voxel size in millimetres along D, H, W.
        intensity: scaling of the grey values.
        crop_foreground: whether to cut away everything around the foreground (defined in
            `intensity.foreground`).
        margin: millimetres kept around the foreground.
        resampler: how scans are resampled. nnU-Net's way also takes all voxels that are not 0 as
            foreground.
    """

    orientation: str = Field(default="RAS", pattern="^[RLAPSI]{3}$")
    spacing: tuple[_Millimetres, _Millimetres, _Millimetres] = (1.5, 1.5, 1.5)
    intensity: Intensity = Window(low=-175.0, high=250.0)
    crop_foreground: bool = True
    margin: float = Field(default=10.0, ge=0, le=1000)
    # not written if it is the default: records state only what is particular to a network
    resampler: Resampler = Field(
        default="linear", exclude_if=lambda resampler: resampler == "linear"
    )

    @model_validator(mode="after")
    def _three_axes(self) -> Recipe:
        if not all(set(pair) & set(self.orientation) for pair in ("RL", "AP", "SI")):
            raise ValueError(f"orientation {self.orientation} must name each body axis once")
        return self
