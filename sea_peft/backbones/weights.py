"""Pretrained weights: a safetensors file and a card that says what they are, where they come from and how to feed them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic
import safetensors
import safetensors.torch
import torch
from torch import nn

from sea_peft.backbones.limits import Limits
from sea_peft.backbones.registry import Architecture, architecture
from sea_peft.errors import WeightsError

BUNDLED = Path(__file__).parent / "bundled"


class Card(pydantic.BaseModel):
    """What stands beside the weights. `kwargs`: of the architecture, beyond its channels. `labels`: class names in the order of
    the output channels, index 0 the background. `recipe`: the
    preprocessing that the weights were trained with (sea_peft.data.recipe.Recipe as JSON). `patch`: voxels of a training crop.
    `sha256`: of the safetensors file. `training`, `dice`: how they were made and what they reach on the source's test cases.

    Of imported weights also: `origin`, whose checkpoint it was; `source_sha256`, of the checkpoint's file; `new`, tensors that it did
    not hold (a classifier in place of one that could not be used); `left_out`, tensors of it that outputs do not depend on; `assumed`,
    what of the recipe nobody said.
    """

    model_config = pydantic.ConfigDict(extra="ignore", frozen=True)
    name: str
    architecture: str
    kwargs: dict[str, Any]
    labels: list[str]
    channels: list[str]
    recipe: dict[str, Any]
    patch: tuple[int, int, int]
    licence: str
    source: str = ""
    paper: str = ""
    sha256: str
    training: dict[str, Any] = {}
    dice: dict[str, Any] = {}
    origin: str = ""
    source_sha256: str = ""
    new: list[str] = []
    left_out: list[str] = []
    assumed: list[str] = []


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network with its weights loaded: frozen, in eval mode, float32. `sha256`: of its tensors (`tensor_hash`)."""

    network: nn.Module
    architecture: Architecture
    card: Card
    sha256: str

    @property
    def parameters(self) -> int:
        """Parameters of the backbone, each tensor counted once under however many names it is registered."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def limits(self) -> Limits:
        """The input sizes that the network takes."""
        return self.architecture.limits_of(self.card.kwargs)

    @property
    def example(self) -> torch.Tensor:
        """A small input [1, C, D, H, W] for probing."""
        return self.architecture.example(len(self.card.channels), self.card.kwargs)


def user_weights() -> Path:
    """Where imported weights lie: `$XDG_DATA_HOME/sea_peft/weights`."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "sea_peft" / "weights"


def cards() -> dict[str, Path]:
    """Weights by name → card file: bundled ones, then the user's own (which cannot shadow a bundled name)."""
    found = {path.stem: path for path in sorted(user_weights().glob("*.json"))}
    return found | {path.stem: path for path in sorted(BUNDLED.glob("*.json"))}


def read_card(path: Path) -> Card:
    """Read a card. Raises WeightsError with what is wrong in it."""
    try:
        return Card.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"The card {path.name} cannot be read: {error.strerror}.") from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise WeightsError(f"The card {path.name} is not valid at {where}: {first['msg']}.") from error


def load_pretrained(weights: str) -> Pretrained:
    """Weights by name, a safetensors file with its card (`<file>.json`) beside it, or `package.module:factory` of a network that comes
    with its weights. Every tensor must be there and fit.

    Raises WeightsError for unknown names, missing, damaged or unfitting files.
    """
    if ":" in weights and not Path(weights).exists():
        return _from_factory(weights)
    card_path = _card_path(weights)
    card = read_card(card_path)
    arch = architecture(card.architecture)
    file = card_path.with_suffix(".safetensors")
    tensors = read_tensors(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != card.sha256:
        raise WeightsError(
            f"Weights {card.name} do not match their card: sha256 {digest[:12]}…, the card says {card.sha256[:12]}…; "
            "get the two files again."
        )
    try:
        network = arch.build(**{"in_channels": len(card.channels), "out_channels": len(card.labels), **card.kwargs})
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"The card {card_path.name} does not fit {arch.name}: {error}; correct its kwargs."
        ) from error
    load_strictly(network, tensors, card.name)
    return Pretrained(network.eval().requires_grad_(False), arch, card, tensor_hash(network))


def _from_factory(spec: str) -> Pretrained:
    """A user's own network with its own weights; `factory.card` says what a card file would."""
    arch = architecture(spec)
    if arch.card is None:
        raise WeightsError(
            f"{spec} has no card to say what its labels and channels are; set {spec.partition(':')[2]}.card, or give --weights."
        )
    network = arch.build().float().eval().requires_grad_(False)
    digest = tensor_hash(network)
    own = {
        "name": spec,
        "architecture": spec,
        "kwargs": {},
        "licence": arch.licence,
        "paper": arch.paper,
        "sha256": digest,
    }
    try:
        card = Card.model_validate({**own, **arch.card})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise WeightsError(f"The card of {spec} is not valid at {where}: {first['msg']}.") from error
    return Pretrained(network, arch, card, digest)


def untrained(arch: Architecture) -> Pretrained:
    """The network of an architecture at its default widths with one input and two outputs, its values drawn from seed 0.

    For looking at: where its sites are and what units cost there. Raises UsageError where a package is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = arch.build(in_channels=1, out_channels=2)
    card = Card(
        name="no weights",
        architecture=arch.name,
        kwargs={},
        labels=["background", "label"],
        channels=["image"],
        recipe={},
        patch=arch.limits_of({}).small,
        licence="",
        paper=arch.paper,
        sha256="",
    )
    return Pretrained(network.eval().requires_grad_(False), arch, card, tensor_hash(network))


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file as float32 (integers as they are). Raises WeightsError when it cannot be read."""
    try:
        tensors = safetensors.torch.load_file(file)
    except FileNotFoundError as error:
        raise WeightsError(f"The weights file {file.name} is missing beside its card; put it there.") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{file.name} is not a readable safetensors file ({error}); get it again.") from error
    return {key: t.float() if t.is_floating_point() else t for key, t in tensors.items()}


def unique_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with every tensor once, under the first of its names; some networks register one module in several places."""
    first: dict[int, str] = {}
    for key, tensor in network.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), key)
    state = network.state_dict()
    return {key: state[key] for key in first.values()}


def first_names(network: nn.Module) -> dict[str, str]:
    """Every key of the state dict → the first name of its tensor."""
    first: dict[int, str] = {}
    return {key: first.setdefault(id(t), key) for key, t in network.state_dict(keep_vars=True).items()}


def load_strictly(network: nn.Module, tensors: Mapping[str, torch.Tensor], name: str) -> None:
    """Load exactly these tensors, each under the first of its names. Raises WeightsError listing what is missing, unexpected or of
    another shape."""
    own = unique_tensors(network)
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    misshaped = sorted(k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape)
    if missing or unexpected or misshaped:
        first = (missing or unexpected or misshaped)[0]
        raise WeightsError(
            f"Weights {name} do not fit their network: {len(missing)} tensors missing, {len(unexpected)} unexpected, "
            f"{len(misshaped)} of another shape (first: {first}); import them again with the right --backbone."
        )
    network.load_state_dict(dict(tensors), strict=False)  # further names of the same tensors are what is not in there


def tensor_hash(network: nn.Module) -> str:
    """sha256 over every tensor, once: name, dtype, shape and bytes, in the order of names."""
    digest = hashlib.sha256()
    for key, tensor in sorted(unique_tensors(network).items()):
        digest.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _card_path(weights: str) -> Path:
    known = cards()
    if weights in known:
        return known[weights]
    path = Path(weights)
    if path.suffix in (".safetensors", ".json") and path.is_file():
        card = path.with_suffix(".json")
        if not card.is_file():
            raise WeightsError(
                f"{path.name} has no card {card.name} beside it; run `seapeft backbones import` to make one."
            )
        return card
    raise WeightsError(
        f"No weights are called {weights!r}; there are {', '.join(sorted(known)) or 'none'}, or give a file."
    )
