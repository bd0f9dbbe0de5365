"""From names to networks: a pretrained backbone with its sites, an adapted model on it, an adapter folder and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sea_peft.adapters import Adapted, Unit, units_for
from sea_peft.adapters.liveness import acting
from sea_peft.adapters.registry import Offer, unit_at
from sea_peft.artefacts.adapter_file import AdapterConfig, load_adapter_files
from sea_peft.backbones import Site, architecture, find_sites
from sea_peft.backbones.weights import Pretrained, load_pretrained, untrained
from sea_peft.data.recipe import Recipe
from sea_peft.errors import DeviceError, UsageError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping


NETWORKS = ("adapted", "unadapted")


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A pretrained network with its sites, probed on this machine."""

    pretrained: Pretrained
    sites: tuple[Site, ...]

    @property
    def example(self) -> torch.Tensor:
        """The input that it was probed with."""
        return self.pretrained.example

    @property
    def recipe(self) -> Recipe:
        """The preprocessing that belongs to the weights."""
        return Recipe.model_validate(self.pretrained.card.recipe)


def open_backbone(backbone: str | None, weights: str | None) -> Backbone:
    """The backbone called `backbone` with its bundled weights, or the weights called `weights` (a name or a file).

    Raises WeightsError when the two do not belong together, UsageError when an architecture comes with no weights.
    """
    if weights is None:
        arch = architecture(backbone or "segresnet")
        if arch.weights is None:
            raise UsageError(f"Backbone {arch.name} comes with no weights; give --weights NAME or a file.")
        weights = arch.weights
    pretrained = load_pretrained(weights)
    if backbone is not None and pretrained.architecture.name != backbone:
        raise WeightsError(
            f"Weights {pretrained.card.name} are for {pretrained.architecture.name}, not {backbone}; leave --backbone out."
        )
    return Backbone(pretrained, find_sites(pretrained.network, pretrained.example))


def look_at(backbone: str | None, weights: str | None) -> Backbone:
    """Like `open_backbone`, but an architecture that comes without weights is built untrained: enough to see where units go."""
    if weights is None and backbone is not None and architecture(backbone).weights is None:
        pretrained = untrained(architecture(backbone))
        return Backbone(pretrained, find_sites(pretrained.network, pretrained.example))
    return open_backbone(backbone, weights)


def audit_space(backbone: Backbone, offers: Mapping[str, Offer]) -> tuple[Unit, ...]:
    """Every unit on offer that can change the output at all (a bias before an instance norm, say, cannot)."""
    network = backbone.pretrained.network
    return acting(network, units_for(network, backbone.sites, offers), backbone.example)


def matching_rows(card_labels: Sequence[str], wanted: Sequence[str]) -> list[int | None]:
    """For every wanted label the backbone's output row of that name, or None. Case, blanks, `_` and `-` do not count."""

    def plain(name: str) -> str:
        return "".join(c for c in name.lower() if c.isalnum())

    known = {plain(label): row for row, label in enumerate(card_labels) if row > 0}
    return [known.get(plain(name)) for name in wanted]


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda[:N]` or `mps` → a device that is there. Raises DeviceError when it is not."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name!r} is not a device; use auto, cpu, cuda, cuda:N or mps.") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise DeviceError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("--device mps: this machine has no Metal device; use --device cpu.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {name!r} is not supported; use auto, cpu, cuda, cuda:N or mps.")
    return device


def load_adapter(folder: Path, weights: str | None = None, use: str | None = None) -> tuple[Adapted, AdapterConfig]:
    """An adapter folder on its backbone, ready to predict: as its run recommends (`config.recommended`), with the units and the head as they
    were trained, or with all of them off.

    `use`: "adapted" or "unadapted" instead of what is recommended. `weights`: where the backbone's weights lie, when they are not known under
    the name that the adapter carries. The backbone's tensors must hash to what the adapter was made for. Raises WeightsError; UsageError
    where the unadapted network can predict none of the labels.
    """
    if use not in (None, *NETWORKS):
        raise UsageError(f"--use {use} is not known; there are {' and '.join(NETWORKS)}.")
    config, tensors = load_adapter_files(folder)
    if weights is None and ":" in config.backbone.weights:
        raise WeightsError(
            f"The adapter's backbone is built by {config.backbone.weights}, which is code; give --weights {config.backbone.weights} to run it."
        )
    backbone = open_backbone(None, weights or config.backbone.weights)
    if backbone.pretrained.sha256 != config.backbone.sha256:
        raise WeightsError(
            f"The adapter was made for {config.backbone.weights} with hash {config.backbone.sha256[:12]}, the weights "
            f"found have hash {backbone.pretrained.sha256[:12]}; give the right file with --weights."
        )
    network = backbone.pretrained.network
    units = [
        unit_at(network, backbone.sites, u.family, int(u.level or 0), u.placement or "", u.path) for u in config.units
    ]
    model = Adapted(
        network,
        backbone.sites,
        units,
        config.head["rows"],
        len(backbone.pretrained.card.labels),
        backbone.example,
        config.seed,
    )
    load_tensors(model, units, tensors, folder.name)
    if (use or config.recommended.network) == "adapted":
        model.bank.activate([unit.id for unit in units])
    elif model.head.knows_a_label:
        model.head_gate = False
    else:
        raise UsageError(
            f"{config.backbone.weights} knows none of the labels {', '.join(config.labels)}, so it cannot predict them without the adapter; "
            "leave --use unadapted out."
        )
    return model.eval(), config


def adapter_tensors(model: Adapted, unit_ids: Sequence[str]) -> dict[str, torch.Tensor]:
    """What an adapter folder holds: `head/…` and `<unit id>/…` tensors."""
    head = {f"head/{name}": tensor.detach().cpu().clone() for name, tensor in model.head.state_dict().items()}
    return head | model.bank.state_dict(unit_ids)


def load_tensors(model: Adapted, units: Sequence[Unit], tensors: Mapping[str, torch.Tensor], name: str) -> None:
    """Load what `adapter_tensors` gave, strictly. Raises WeightsError naming the first tensor that does not belong."""
    expected = adapter_tensors(model, [unit.id for unit in units])
    odd = sorted(expected.keys() ^ tensors.keys())
    if odd:
        kind = "lacks" if odd[0] in expected else "has the unexpected tensor"
        raise WeightsError(f"Adapter {name} {kind} {odd[0]}; it was not made for these units.")
    shapes = [key for key in sorted(expected) if expected[key].shape != tensors[key].shape]
    if shapes:
        raise WeightsError(
            f"Adapter {name}: {shapes[0]} has shape {tuple(tensors[shapes[0]].shape)}, its unit "
            f"{tuple(expected[shapes[0]].shape)}; it was made for another backbone."
        )
    model.head.load_state_dict({k.removeprefix("head/"): t for k, t in tensors.items() if k.startswith("head/")})
    model.bank.load_state_dict({k: t for k, t in tensors.items() if not k.startswith("head/")})
