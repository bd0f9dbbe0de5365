"""The parts that `config.json`, the trace, `result.json` and `adapter_config.json` share."""

from typing import Annotated

from pydantic import Field, field_validator

from sea_peft.artefacts.privacy import paths_in
from sea_peft.documents import (
    ArchitectureName,
    Dice,
    Parameters,
    Record,
    Settings,
    Sha256,
    WeightsName,
)

MlflowId = Annotated[
    str, Field(pattern=r"^[0-9a-f]{32}$")
]  # it becomes a part of a path in the store
_Row = Annotated[int, Field(ge=1, le=65535)]


class NoPaths(Record):
    """A record that leaves the hospital: it names things, but not where they lie."""

    @field_validator("*", mode="after")
    @classmethod
    def _refuse_paths(cls, value: object) -> object:
        for text in paths_in(value):
            raise ValueError(
                f"holds a path ({text!r}); an adapter names things, it does not say where they lie"
            )
        return value


class BackboneIdentity(NoPaths):
    """The backbone that an adapter or a run belongs to.

    Architecture and settings are always taken from the card whose tensors have this hash; those
    here are only compared with them.

    Attributes:
        architecture: its name.
        kwargs: its settings.
        weights: a name, not a path.
        sha256: hash of the backbone's tensors.
        parameters: number of parameters.
        licence: of the weights, which an adapter made from them may have to keep.
    """

    architecture: ArchitectureName
    kwargs: Settings
    weights: WeightsName
    sha256: Sha256
    parameters: Parameters
    licence: Annotated[str, Field(max_length=4096)] = "not stated"

    @field_validator("licence", mode="before")
    @classmethod
    def _name_no_place(cls, licence: object) -> object:
        """Drop a licence that is an address or a file."""
        return "see the card of the weights" if any(paths_in(licence)) else licence


class ArmDice(Record):
    """Mean Dice of the three arms on the same scans; null if an arm could not be scored."""

    unadapted: Dice | None
    head_only: Dice | None
    adapted: Dice | None


class HeadShape(Record):
    """The target head. `classes` and `on_features` are null in adapters of version 1.

    Attributes:
        rows: for each label the backbone's output row; null if it is new to the backbone.
        classes: number of the backbone's rows.
        on_features: whether deltas act on the last convolution's features.
    """

    rows: Annotated[list[_Row | None], Field(min_length=1, max_length=254)]
    classes: Annotated[int, Field(ge=1, le=65535)] | None
    on_features: bool | None
