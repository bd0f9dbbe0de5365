"""Opens the data to adapt to, and weights that go with them."""

from pathlib import Path

from sea_peft.backbones.typed import Typed
from sea_peft.backbones.weights import cards, read_card
from sea_peft.data.cases import Dataset
from sea_peft.data.layouts import open_dataset
from sea_peft.jobs.model import Backbone, open_backbone
from sea_peft.phantom import phantom_dataset, phantom_target

DEFAULT_TARGET = "low-dose-ct"
_DEFAULT_DATA = f"phantom:{DEFAULT_TARGET}"


def open_data(data: str | None) -> Dataset:
    """A path, `phantom:NAME`, or None for the embedded default target."""
    name = phantom_name(data)
    return phantom_dataset(name) if name is not None else open_dataset(Path(data or _DEFAULT_DATA))


def phantom_name(data: str | None) -> str | None:
    """NAME of `phantom:NAME`; that of the default target if nothing was named; None for a path."""
    kind, _, name = (data or _DEFAULT_DATA).partition(":")
    return name if kind == "phantom" else None


def open_asked(data: str | None, typed: Typed) -> Backbone:
    """The backbone that the user typed, or the one that belongs to an embedded target."""
    own = None if typed.weights else _own_weights(data, typed.backbone)
    return open_backbone(typed if own is None else Typed(typed.backbone, own))


def _own_weights(data: str | None, backbone: str | None) -> str | None:
    """The weights of an embedded target whose region of the body the default ones do not know; None
    otherwise, or if they are for another architecture.
    """
    name = phantom_name(data)
    own = None if name is None else phantom_target(name).region.weights
    if own is None or backbone is None:
        return own
    return own if read_card(cards()[own]).architecture == backbone else None
