"""How a network from elsewhere expects scans: what the user says of it, what its origin says, and
what is assumed.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from sea_peft.backbones import Architecture
from sea_peft.backbones.grey_values import as_they_are, hounsfield_units
from sea_peft.backbones.keymaps import Known
from sea_peft.backbones.limits import Size
from sea_peft.data.intensity import is_ct_name
from sea_peft.data.recipe import Intensity, Recipe, Window, ZScore
from sea_peft.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Unscaled:
    """Unscaled grey values. `range`: their lowest and highest value; None for a CT, whose
    Hounsfield units are known.
    """

    range: tuple[float, float] | None = None


Scaling = Intensity | Unscaled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """What the user says of a checkpoint. None leaves it to the origin or the file itself.

    Attributes:
        labels: class names in the order of the network's outputs, without the background, which is
            output 0.
        channels: names in the order of the network's inputs.
        orientation: axis codes of D, H, W; RAS by default.
        spacing: mm along D, H, W.
        intensity: scaling of grey values; z-score by default.
        patch: voxels of a training crop, along D, H, W.
        settings: keyword arguments of the architecture that the tensors do not tell.
        licence: of the checkpoint.
    """

    labels: Sequence[str] | None = None
    channels: Sequence[str] | None = None
    orientation: str | None = None
    spacing: tuple[float, float, float] | None = None
    intensity: Scaling | None = None
    patch: tuple[int, int, int] | None = None
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)
    licence: str = "not stated"


@dataclasses.dataclass(frozen=True)
class Expected:
    """One requirement of a network on scans.

    Attributes:
        what: the property.
        value: its value, in words.
        by: who says so: `you`, `origin` (of the checkpoint), or `assumed` if nobody does.
    """

    what: str
    value: str
    by: str


def scaling(intensity: Scaling, channels: Sequence[str]) -> tuple[Intensity, dict[str, object]]:
    """The recipe's intensity and the network's settings for a scaling of grey values.

    Raises UsageError for unscaled values without a range, unless they are of a CT.
    """
    if not isinstance(intensity, Unscaled):
        return intensity, {}
    if intensity.range is None and not all(is_ct_name(channel) for channel in channels):
        raise UsageError(
            f"Grey values of {', '.join(channels)} have no range of their own as those of a CT"
            " have; give --intensity none:LOW,HIGH."
        )
    return hounsfield_units() if intensity.range is None else as_they_are(*intensity.range)


def recipe_of(
    given: Given, known: Known, channels: Sequence[str], file: str
) -> tuple[Recipe, dict[str, object]]:
    """The origin's recipe with the user's changes, and the settings of the map in front of the
    network that belongs to it.

    Raises UsageError if nobody says the voxel size.
    """
    said = known.recipe.model_fields_set if known.recipe is not None else set()
    if "spacing" not in said and given.spacing is None:
        raise UsageError(
            f"{file} does not say at which voxel size it was trained; give --spacing MM,MM,MM."
        )
    base = (known.recipe or Recipe()).model_copy(
        update={} if "intensity" in said else {"intensity": ZScore()}
    )
    changes: dict[str, object] = {}
    if given.orientation is not None:
        changes["orientation"] = given.orientation
    if given.spacing is not None:
        changes["spacing"] = given.spacing
    in_front: dict[str, object] = {}
    if given.intensity is not None:
        changes["intensity"], in_front = scaling(given.intensity, channels)
    return Recipe.model_validate({**base.model_dump(), **changes}), in_front


def expectations(
    given: Given,
    known: Known,
    arch: Architecture,
    recipe: Recipe,
    patch: Size,
    labels: Sequence[str] | None,
    channels: Sequence[str],
    settings: Mapping[str, object],
) -> tuple[Expected, ...]:
    """How scans will be prepared, and who says so."""

    def by(said: object, by_origin: object) -> str:
        return "you" if said is not None else "origin" if by_origin is not None else "assumed"

    exact, of_origin = (
        arch.limits_of({}).exact,
        known.recipe.model_fields_set - known.assumed if known.recipe is not None else set(),
    )
    rows = [
        (
            "labels",
            ", ".join(labels or ()) or "none",
            by(given.labels, known.labels or known.recipe or not labels or None),
        ),
        ("channels", ", ".join(channels), by(given.channels, known.channels)),
        (
            "orientation",
            recipe.orientation,
            by(given.orientation, "orientation" in of_origin or None),
        ),
        (
            "spacing",
            " × ".join(f"{mm:g}" for mm in recipe.spacing) + " mm",
            by(given.spacing, "spacing" in of_origin or None),
        ),
        (
            "intensity",
            in_words(recipe.intensity, settings),
            by(given.intensity, "intensity" in of_origin or None),
        ),
        ("patch", " × ".join(map(str, patch)), by(given.patch, known.patch or exact)),
    ]
    return tuple(Expected(*row) for row in rows)


def in_words(intensity: Intensity, settings: Mapping[str, object]) -> str:
    """A scaling of grey values as `--intensity` takes it, combined with the network's settings."""
    if (
        isinstance(intensity, Window)
        and as_they_are(intensity.low, intensity.high)[1].items() <= settings.items()
    ):
        return f"none:{intensity.low:g},{intensity.high:g}"
    if isinstance(intensity, ZScore):
        return "zscore"
    return f"{intensity.kind}:{intensity.low:g},{intensity.high:g}"
