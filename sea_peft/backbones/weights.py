"""Pretrained weights: a safetensors file, and a card that says what they are, where they come from
and how to prepare scans for them.
"""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import Field
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from sea_peft import documents
from sea_peft.backbones.limits import Limits
from sea_peft.backbones.registry import Architecture, architecture
from sea_peft.backbones.typed import Typed, is_code
from sea_peft.data.recipe import Recipe
from sea_peft.data.sliding import Inferer, SlidingWindow
from sea_peft.errors import UsageError, WeightsError, first_line, refusing

BUNDLED = Path(__file__).parent / "bundled"


class Card(documents.Record):
    """The card beside the weights.

    `kwargs`: of the architecture, beyond its channels. `labels`: class names in the order of the
    output channels; index 0 is the background. `recipe`: the preprocessing that the weights were
    trained with. `patch`: voxels of a training crop. `sha256`: of the safetensors file. `training`,
    `dice`: how they were made, and their Dice on the source's test cases.

    Imported weights also have: `origin`, whose checkpoint it was; `source_sha256`, of the
    checkpoint's file; `new`, tensors that it lacked (a classifier in place of an unusable one);
    `left_out`, its tensors that do not affect outputs; `assumed`, parts of the recipe that nobody
    stated; `inferer`, whose way of placing and averaging windows to use (`SlidingWindow`).
    """

    name: documents.WeightsName
    architecture: documents.ArchitectureName
    kwargs: documents.Settings
    labels: Annotated[list[documents.Name], Field(min_length=1, max_length=4096)]
    channels: documents.Channels
    recipe: Recipe
    patch: documents.Patch
    licence: documents.Text
    source: documents.Text = ""
    paper: documents.Text = ""
    sha256: documents.Sha256 | Literal[""]
    training: documents.Facts = Field(default_factory=dict)
    dice: dict[documents.Name, documents.Dice] = Field(default_factory=dict)
    origin: documents.Text = ""
    source_sha256: documents.Sha256 | Literal[""] = ""
    new: list[documents.Name] = Field(default_factory=list, max_length=10_000)
    left_out: list[documents.Name] = Field(default_factory=list, max_length=10_000)
    assumed: list[documents.Text] = Field(default_factory=list, max_length=100)
    inferer: Inferer = "monai"

    def window(self, patch: tuple[int, int, int] | None = None) -> SlidingWindow:
        """The network's sliding window, of its own patch or of another."""
        pad = 0.0
        # nnU-Net pads with 0 behind its normalisation, which is the map in front of the network
        # here
        if self.inferer == "nnunet":
            factor, offset = (
                self.kwargs.get("input_factor", 1.0),
                self.kwargs.get("input_offset", 0.0),
            )
            assert isinstance(factor, int | float), "checked where the network is built"
            assert isinstance(offset, int | float), "checked where the network is built"
            pad = -offset / factor
        return SlidingWindow(patch=patch or self.patch, inferer=self.inferer, pad=pad)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network with its weights loaded: frozen, in eval mode, float32. `sha256`: of its tensors
    (`tensor_hash`); empty if they are random, as in the card.
    """

    network: nn.Module
    architecture: Architecture
    card: Card
    sha256: str

    @property
    def parameters(self) -> int:
        """Number of parameters of the backbone. A tensor registered under several names counts
        once.
        """
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
    """The folder of imported weights: `$XDG_DATA_HOME/sea_peft/weights`."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "sea_peft" / "weights"


def cards() -> dict[str, Path]:
    """Name of weights → card file: bundled ones, then the user's own, which cannot replace a
    bundled name. Leaves out cards without weights.
    """
    found = [*sorted(user_weights().glob("*.json")), *sorted(BUNDLED.glob("*.json"))]
    return {path.stem: path for path in found if path.with_suffix(".safetensors").is_file()}


def read_card(path: Path) -> Card:
    """Read a card. Raises WeightsError saying what is wrong in it."""
    try:
        return documents.check_json(Card, documents.read_bytes(path))
    except OSError as error:
        raise WeightsError(f"The card {path.name} cannot be read: {error.strerror}.") from error
    except documents.Invalid as error:
        raise WeightsError(f"The card {path.name} is not valid: {error}.") from error


def checked_card(fields: Mapping[str, object]) -> Card:
    """A card with these fields. Raises WeightsError saying what is wrong in them."""
    try:
        return documents.check(Card, dict(fields))
    except documents.Invalid as error:
        raise WeightsError(
            f"The card of weights {fields.get('name')} is not valid: {error}."
        ) from error


def card_of(weights: str | None) -> Card:
    """The card of weights by name or file; None for the default weights. Does not build the
    network.

    Raises WeightsError as `read_card`, and if there are no such weights.
    """
    name = weights or architecture("segresnet").weights
    assert name is not None, "the default architecture is bundled with weights"
    return read_card(cards()[name] if name in cards() else _card_of(name))


def load_pretrained(name: str, code: Architecture | None = None) -> Pretrained:
    """Installed weights by name, which may come from a file: it is never used as a path, and runs
    nothing. Every tensor must be there and fit.

    `code`: the `package.module:factory` that the user typed. The card may name it, or a registered
    architecture, and nothing else.

    Raises WeightsError for unknown names, and for missing, damaged or unfitting files.
    """
    known = cards()
    if name not in known:
        raise WeightsError(
            f"No weights are called {name!r}; there are {', '.join(sorted(known)) or 'none'}."
        )
    return _load(known[name], code)


def load_typed(typed: Typed) -> Pretrained:
    """The network that the user typed; SegResNet if nothing was.

    It is given as weights by name, a safetensors file with its card (`<file>.json`) beside it, an
    architecture with bundled weights, or a `package.module:factory` that comes with its weights.

    Raises:
        WeightsError: as `load_pretrained`, and if backbone and weights do not belong together.
        UsageError: the architecture is unknown or has no weights.
    """
    asked = typed.architecture()
    code = asked if typed.code else None
    if typed.weights is None:
        arch = asked or architecture("segresnet")
        if arch.card is not None:
            return _from_factory(arch)
        if code is not None:
            way_on = f"set {code.name.partition(':')[2]}.card, or give weights"
            raise WeightsError(
                f"{code.name} has no card to say what its labels and channels are; {way_on}.",
                "weights",
            )
        if arch.weights is None:
            raise UsageError(
                f"Backbone {arch.name} comes with no weights; give weights by name or file.",
                "weights",
            )
        return load_pretrained(arch.weights)
    found = (
        load_pretrained(typed.weights, code)
        if typed.weights in cards()
        else _load(_card_of(typed.weights), code)
    )
    if asked is not None and found.architecture.name != asked.name:
        said = (
            f"Weights {found.card.name} are for {found.architecture.name}, not {asked.name}; leave"
            " the backbone out."
        )
        raise WeightsError(said, "backbone")
    return found


def _load(card_path: Path, code: Architecture | None) -> Pretrained:
    card = read_card(card_path)
    arch = _architecture_of(card, code)
    file = card_path.with_suffix(".safetensors")
    tensors = read_tensors(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != card.sha256:
        raise WeightsError(
            f"Weights {card.name} do not match their card: sha256 {digest[:12]}…, the card says"
            f" {card.sha256[:12]}…; get the two files again."
        )
    with refusing(
        WeightsError,
        lambda e: (
            f"The card {card_path.name} does not fit {arch.name}: {first_line(e)}; correct its"
            " kwargs."
        ),
    ):
        network = _built(arch, card, tensors)
    load_strictly(network, tensors, card.name)
    return Pretrained(network.eval().requires_grad_(False), arch, card, tensor_hash(network))


def _architecture_of(card: Card, code: Architecture | None) -> Architecture:
    """The architecture that a card names, if the user typed it or it is registered."""
    if code is not None and card.architecture == code.name:
        return code
    if is_code(card.architecture):
        said = (
            f"The card of weights {card.name} names code as its network ({card.architecture}), and"
            " code that a file names is never run"
        )
        way_on = "where you have that code and trust it, give MODULE:FACTORY as the backbone"
        raise WeightsError(f"{said}; {way_on}.", "backbone")
    try:
        return architecture(card.architecture)
    except UsageError as error:
        raise WeightsError(f"The card of weights {card.name}: {error}") from error


def _built(arch: Architecture, card: Card, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """The network of a card.

    A registered architecture is first built without values if possible, so that settings that do
    not fit the tensors cost neither memory nor time.
    """
    kwargs = {"in_channels": len(card.channels), "out_channels": len(card.labels), **card.kwargs}
    if is_code(arch.name):
        return arch.build(**kwargs)
    with no_larger(
        4 * sum(t.numel() for t in tensors.values()) + 1_000_000, 4 * len(tensors) + 1000
    ):
        try:
            with torch.device("meta"):
                shapes = arch.build(**kwargs)
        except RuntimeError:  # some constructors compute with values
            return arch.build(**kwargs)
        _require_fit(unique_tensors(shapes), tensors, card.name)
        return arch.build(**kwargs)


def _from_factory(arch: Architecture) -> Pretrained:
    """A user's own network with its own weights. `factory.card` has the content of a card file."""
    assert arch.card is not None, "asked for a network that comes with its weights"
    network = arch.build().float().eval().requires_grad_(False)
    digest = tensor_hash(network)
    own = {"kwargs": {}, "licence": arch.licence, "paper": arch.paper, "sha256": digest}
    card = checked_card({"name": arch.name, "architecture": arch.name, **own, **arch.card})
    return Pretrained(network, arch, card, digest)


def untrained(arch: Architecture) -> Pretrained:
    """The network of an architecture at its default widths with one input and two outputs, its
    values drawn from seed 0.

    For inspection: where its sites are, and what units cost there. Raises UsageError if a package
    is not installed.
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
        recipe=Recipe(),
        patch=arch.limits_of({}).small,
        licence="",
        paper=arch.paper,
        sha256="",
    )
    return Pretrained(network.eval().requires_grad_(False), arch, card, card.sha256)


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file as float32 (integers unchanged). Raises WeightsError if it
    cannot be read.
    """
    try:
        tensors = safetensors.torch.load_file(file)
    except FileNotFoundError as error:
        raise WeightsError(
            f"The weights file {file.name} is missing beside its card; put it there."
        ) from error
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"{file.name} is not a readable safetensors file ({error}); get it again."
        ) from error
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise WeightsError(
                f"{file.name}: tensor {key} holds NaN or infinity; get the file again."
            )
    return {key: t.float() if t.is_floating_point() else t for key, t in tensors.items()}


def unique_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with each tensor once, under the first of its names, since some networks
    register one module in several places.
    """
    first: dict[int, str] = {}
    for key, tensor in network.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), key)
    state = network.state_dict()
    return {key: state[key] for key in first.values()}


def first_names(network: nn.Module) -> dict[str, str]:
    """Every key of the state dict → the first name of its tensor."""
    first: dict[int, str] = {}
    return {
        key: first.setdefault(id(t), key) for key, t in network.state_dict(keep_vars=True).items()
    }


def load_strictly(network: nn.Module, tensors: Mapping[str, torch.Tensor], name: str) -> None:
    """Load exactly these tensors, each under the first of its names.

    Raises WeightsError listing those that are missing, unexpected or of another shape.
    """
    _require_fit(unique_tensors(network), tensors, name)
    network.load_state_dict(
        dict(tensors), strict=False
    )  # only further names of the same tensors are missing


def _require_fit(
    own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], name: str
) -> None:
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    misshaped = sorted(
        k
        for k in own.keys() & tensors.keys()
        if own[k].shape != tensors[k].shape
        or own[k].is_floating_point() != tensors[k].is_floating_point()
    )
    if missing or unexpected or misshaped:
        first = (missing or unexpected or misshaped)[0]
        found = (
            f"{len(missing)} tensors missing, {len(unexpected)} unexpected, {len(misshaped)} of"
            " another shape"
        )
        said = (
            f"Weights {name} do not fit their network: {found} (first: {first}); import them again"
            " with the right backbone."
        )
        raise WeightsError(said, "backbone")


@contextlib.contextmanager
def no_larger(values: int, tensors: int) -> Iterator[None]:
    """Raise ValueError as soon as modules built in here register more values or tensors than that,
    since a card's settings can ask for any number.
    """
    left = [values, tensors]

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            left[0] -= parameter.numel()
            left[1] -= 1
            if min(left) < 0:
                raise ValueError("these settings make a far larger network than the tensors are")

    with register_module_parameter_registration_hook(count):
        yield


def tensor_hash(network: nn.Module) -> str:
    """sha256 over every tensor, once: name, dtype, shape and bytes, in the order of names."""
    digest = hashlib.sha256()
    for key, tensor in sorted(unique_tensors(network).items()):
        digest.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _card_of(weights: str) -> Path:
    """The card beside a weights file that the user typed."""
    path = Path(weights)
    if path.suffix in (".safetensors", ".json") and path.is_file():
        card = path.with_suffix(".json")
        if not card.is_file():
            raise WeightsError(
                f"{path.name} has no card {card.name} beside it; run `seapeft backbones import` to"
                " make one."
            )
        return card
    raise WeightsError(
        f"No weights are called {weights!r}; there are {', '.join(sorted(cards())) or 'none'}, or"
        " give a file."
    )
