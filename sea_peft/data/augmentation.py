"""The settings of augmentation, and how a user gives them. `sea_peft.data.augment` applies them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from sea_peft import documents
from sea_peft.errors import UsageError

_Probability = Annotated[float, Field(ge=0, le=1)]
_Share = Annotated[float, Field(ge=0, lt=1)]


class Augmentation(documents.Record):
    """The changes that a training crop may undergo. A field that ends in `_p` is the probability of
    a change.

    Attributes:
        rotation: largest angle about each axis, in degrees.
        scaling: largest relative change of size along each axis, drawn for each axis by itself.
        gamma: largest factor g of a gamma curve with an exponent between 1/g and g, on grey values
            stretched to 0..1 and back.
        gain: each channel's contrast, about its mean in the crop, is multiplied by 1 ± this.
        shift: its grey values are shifted by up to ± this, in standard deviations of the crop.
        noise: largest standard deviation of white noise, as a share of the crop's own.
        blur: largest sigma of a gaussian, in voxels.
        low_resolution: smallest share of voxels along an axis that the crop is sampled with and
            stretched back from.
        bias_field: largest coefficient of a smooth multiplicative field, as from MR coils.
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
AUGMENTATIONS = {"full": FULL, "grey": GREY_VALUES, "none": NONE}
"""By name: all changes; gain and shift alone, as in the papers; none."""


def load_augmentation(name: str) -> Augmentation:
    """`full`, `grey`, `none`, or a TOML file with fields of `Augmentation`; missing fields are as
    in `full`.

    Raises:
        UsageError: there is no such file, or it is not valid.
    """
    if name in AUGMENTATIONS:
        return AUGMENTATIONS[name]
    try:
        return documents.check(Augmentation, documents.load_toml(Path(name)))
    except OSError as error:
        raise UsageError(
            f"There is no augmentation {name!r} ({error.strerror}); choose default, full, grey or"
            " none, or give a TOML file.",
            "augment",
        ) from error
    except documents.Invalid as error:
        raise UsageError(f"Augmentation {name}: {error}.", "augment") from error
