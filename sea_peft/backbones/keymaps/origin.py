"""An origin of checkpoints: who makes them, how their keys become ours, and what is known of
their training.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from sea_peft.backbones.checkpoints import Checkpoint
from sea_peft.data.recipe import Recipe, Window
from sea_peft.data.sliding import Inferer

Tensors = Mapping[str, torch.Tensor]
Said = dict[str, Any]
"""The content of a file beside its tensors, as JSON types."""
Rename = Callable[[str], str | None]
"""A checkpoint's key → the backbone's; None for a tensor that is no part of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a checkpoint's training, from its origin or from the file itself; None where
    nothing is.

    Attributes:
        labels: class names in the order of the outputs, without the background.
        channels: names of the inputs.
        recipe: the preprocessing; only fields that are set are known.
        assumed: fields of the recipe that neither the file nor its origin says.
        patch: voxels along D, H, W.
        settings: keyword arguments of the architecture.
        notes: sentences for the user.
        inferer: whose way of placing and averaging windows to use.
    """

    labels: tuple[str, ...] | None = None
    channels: tuple[str, ...] | None = None
    recipe: Recipe | None = None
    assumed: frozenset[str] = frozenset()
    patch: tuple[int, int, int] | None = None
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    inferer: Inferer = "monai"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """An origin of checkpoints.

    Attributes:
        name: as the user types it.
        about: one line with the source.
        backbones: architectures of its checkpoints; () for any.
        recognises: whether a checkpoint's keys are this origin's.
        rename: its keys → the backbone's.
        no_classifier: why its classifier cannot be used; "" if it can.
        know: checkpoint and architecture → what is known of it.
        convert: tensors that need more than another name; applied after renaming.
        idle: whether a key that the network lacks belongs to a part that never affected outputs,
            such as a head for training.
    """

    name: str
    about: str
    backbones: tuple[str, ...]
    recognises: Callable[[Checkpoint], bool]
    rename: Rename
    no_classifier: str = ""
    know: Callable[[Checkpoint, str], Known] = lambda _checkpoint, _backbone: Known()
    convert: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = dict
    idle: Callable[[str], bool] = lambda _key: False

    def translate(self, tensors: Tensors) -> tuple[dict[str, torch.Tensor], list[str]]:
        """The tensors under the backbone's keys, and the keys that this origin knows to be no
        part of it.
        """
        names = {key: self.rename(key) for key in tensors}
        kept = {name: tensors[key] for key, name in names.items() if name is not None}
        return self.convert(kept), sorted(key for key, name in names.items() if name is None)


CT_RECIPE = Recipe(
    orientation="RAS", spacing=(1.5, 1.5, 1.5), intensity=Window(low=-175.0, high=250.0)
)
"""Abdominal CT as SuPreM, CLIP-driven and FSEFT prepare it: RAS, 1.5 mm, −175..250 HU scaled to
0..1.
"""

CT_PATCH = (96, 96, 96)
OLD_MERGING = MappingProxyType({"merging": "monai<1.5"})


def keep(key: str) -> str | None:
    """The key, unchanged."""
    return key
