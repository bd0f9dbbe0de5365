"""What an origin of checkpoints is: whose they are, how their keys become ours, and what is known of how they were trained."""

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
"""What a file says beside its tensors, as JSON types."""
Rename = Callable[[str], str | None]
"""A checkpoint's key → the backbone's, or None for what is no part of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a checkpoint's training, from its origin or from the file itself; None where it is not.

    `labels`: class names in the order of the outputs, without the background. `recipe`: the preprocessing, of which the fields that
    are set are known. `patch`: voxels. `settings`: keyword arguments of the architecture. `notes`: sentences for the user. `inferer`: in
    whose way its windows are placed and averaged.
    """

    labels: tuple[str, ...] | None = None
    channels: tuple[str, ...] | None = None
    recipe: Recipe | None = None
    patch: tuple[int, int, int] | None = None
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    inferer: Inferer = "monai"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """Where checkpoints come from.

    `about`: one line with the source. `backbones`: architectures that there are such checkpoints of, () for any. `recognises`: whether
    a checkpoint's keys are this origin's. `rename`: its keys to the backbone's. `no_classifier`: why its classifier, if there is one,
    cannot be used; "" where it can. `know`: what is known of a checkpoint for an architecture. `convert`: tensors that need more than
    another name, applied after renaming. `idle`: whether a key that the network has nothing for names what its outputs never depended on,
    such as a head that is there for training.
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
        """The tensors under the backbone's keys, and the keys that this origin knows to be no part of it."""
        names = {key: self.rename(key) for key in tensors}
        kept = {name: tensors[key] for key, name in names.items() if name is not None}
        return self.convert(kept), sorted(key for key, name in names.items() if name is None)


CT_RECIPE = Recipe(orientation="RAS", spacing=(1.5, 1.5, 1.5), intensity=Window(low=-175.0, high=250.0))
"""Abdominal CT as SuPreM, CLIP-driven and FSEFT prepare it: RAS, 1.5 mm, −175..250 HU scaled to 0..1."""

CT_PATCH = (96, 96, 96)
OLD_MERGING = MappingProxyType({"merging": "monai<1.5"})


def keep(key: str) -> str | None:
    """The key as it is."""
    return key
