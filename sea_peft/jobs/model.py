"""From names to networks: a pretrained backbone with its sites, an adapted model on it, and an
adapter folder loaded or saved.
"""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from sea_peft import documents
from sea_peft.adapters import Adapted, Unit, units_for
from sea_peft.adapters.liveness import acting
from sea_peft.adapters.registry import Offer, unit_at
from sea_peft.artefacts.adapter_file import CONFIG_NAME, AdapterConfig, load_adapter_files
from sea_peft.artefacts.quality import Network
from sea_peft.artefacts.record import BackboneIdentity
from sea_peft.backbones import Site, find_sites
from sea_peft.backbones.typed import NOTHING, Typed, is_code
from sea_peft.backbones.weights import Pretrained, cards, load_pretrained, load_typed, untrained
from sea_peft.data.recipe import Recipe
from sea_peft.data.wording import count
from sea_peft.errors import DeviceError, UsageError, WeightsError, first_line, refusing
from sea_peft.loop.processes import Processes

NETWORKS: tuple[Network, ...] = ("adapted", "unadapted", "both")


def network_called(name: str) -> Network:
    """The network of this name. Raises UsageError for any other name."""
    for network in NETWORKS:
        if network == name:
            return network
    raise UsageError(f"--use {name} is not known; there are {', '.join(NETWORKS)}.")


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
        """The weights' preprocessing."""
        return self.pretrained.card.recipe


def open_backbone(typed: Typed = NOTHING) -> Backbone:
    """The network of `--backbone` and `--weights`; by default SegResNet with its bundled weights.

    Raises:
        WeightsError: the two do not belong together.
        UsageError: the architecture has no weights.
    """
    return _probed(load_typed(typed))


def open_recorded(
    recorded: BackboneIdentity, typed: Typed, command: str, opened: Sequence[Backbone] = ()
) -> Backbone:
    """The backbone that an adapter or a run was made with: the installed weights of the recorded
    name, or what the user typed.

    The tensors must hash to the recorded value. Architecture and settings are those of the card
    with these tensors; a record that contradicts it is refused.

    Args:
        recorded: what the adapter or the run says of it.
        typed: what the user typed.
        command: what the user types again, with the missing option.
        opened: backbones that are open; one with these tensors is returned itself.

    Raises:
        WeightsError: there is no such backbone here, or the record contradicts it.
    """
    same = next(
        (backbone for backbone in opened if backbone.pretrained.sha256 == recorded.sha256), None
    )
    found = _found(recorded, typed, command) if same is None else same.pretrained
    card = found.card
    # a user's own code may have moved since, so what was typed now holds
    moved = typed.code is not None and is_code(recorded.architecture)
    if not moved and recorded.architecture != card.architecture:
        raise WeightsError(
            f"This says that its network is {recorded.architecture}, and the card of weights"
            f" {card.name}, whose tensors have its hash, says {card.architecture}; get it again."
        )
    if typed.backbone is not None and typed.code is None and typed.backbone != card.architecture:
        raise WeightsError(
            f"This was made for {card.architecture}, not {typed.backbone}; leave --backbone out."
        )
    if (
        documents.as_json(recorded.kwargs) != documents.as_json(card.kwargs)
        or recorded.parameters != found.parameters
    ):
        raise WeightsError(
            "This says that its network is built with other settings than the card of weights"
            f" {card.name}, whose tensors have its hash; get it again."
        )
    return same or _probed(found)


def _found(recorded: BackboneIdentity, typed: Typed, command: str) -> Pretrained:
    """The weights whose tensors have the recorded hash."""
    if typed.weights is None and typed.code is None and recorded.weights not in cards():
        if is_code(recorded.architecture) and is_code(recorded.weights):
            raise WeightsError(
                f"This names code as its network ({recorded.architecture}), and code that a file"
                f" names is never run; where you have that code and trust it, type `{command}"
                " --backbone MODULE:FACTORY`."
            )
        raise WeightsError(
            f"No weights called {recorded.weights!r} are installed here, and a name in a file is"
            f" not looked up as a path; type `{command} --weights FILE`."
        )
    if typed.weights is None and recorded.weights in cards():
        found = load_pretrained(recorded.weights, typed.architecture() if typed.code else None)
    else:
        found = load_typed(typed)
    if found.sha256 != recorded.sha256:
        raise WeightsError(
            f"This was made for {recorded.weights} with hash {recorded.sha256[:12]}, the weights"
            f" found have hash {found.sha256[:12]}; give the right ones: `{command} --weights"
            " FILE`."
        )
    return found


def look_at(typed: Typed) -> Backbone:
    """Like `open_backbone`, but an architecture without weights is built untrained: enough to see
    where units go.
    """
    asked = typed.architecture()
    if typed.weights is None and asked is not None and asked.weights is None and asked.card is None:
        return _probed(untrained(asked))
    return open_backbone(typed)


def _probed(pretrained: Pretrained) -> Backbone:
    """The network with its sites. Raises WeightsError if it cannot run: a card's settings may fit
    its tensors and make no sense.
    """
    name = pretrained.card.name
    with refusing(
        WeightsError,
        lambda e: (
            f"The network of weights {name} does not run ({first_line(e)}); correct its card."
        ),
    ):
        return Backbone(pretrained, find_sites(pretrained.network, pretrained.example))


def audit_space(backbone: Backbone, offers: Mapping[str, Offer]) -> tuple[Unit, ...]:
    """Every unit on offer that can change the output at all (a bias before an instance norm, for
    example, cannot).
    """
    network = backbone.pretrained.network
    return acting(network, units_for(network, backbone.sites, offers), backbone.example)


def matching_rows(card_labels: Sequence[str], wanted: Sequence[str]) -> list[int | None]:
    """For each wanted label the backbone's output row of that name, or None. Case, blanks, `_` and
    `-` do not count.

    Examples:
        >>> known = ["background", "Liver", "portal_vein"]
        >>> matching_rows(known, ["portal vein", "liver", "tumour"])
        [2, 1, None]
    """

    def plain(name: str) -> str:
        return "".join(c for c in name.lower() if c.isalnum())

    known = {plain(label): row for row, label in enumerate(card_labels) if row > 0}
    return [known.get(plain(name)) for name in wanted]


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda[:N]` or `mps` → a device that is there. Raises DeviceError when it
    is not.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"--device {name!r} is not a device; use auto, cpu, cuda, cuda:N or mps."
        ) from error
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise DeviceError(
            f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices; use --device"
            " cpu."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("--device mps: this machine has no Metal device; use --device cpu.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {name!r} is not supported; use auto, cpu, cuda, cuda:N or mps.")
    return device


def own_device(name: str, processes: Processes) -> torch.device:
    """The device of this process for `name`. Of several processes, each has a GPU of its own, or
    all share the CPU. Raises DeviceError, UsageError.
    """
    device = resolve_device(name)
    if device.type == "cpu" or processes.size == 1:
        return device
    if device.type != "cuda" or device.index is not None:
        raise UsageError(
            f"--device {name} is one device for {processes.size} processes; use auto, cuda or cpu."
        )
    if processes.local_rank >= torch.cuda.device_count():
        raise DeviceError(
            f"torch sees {torch.cuda.device_count()} CUDA devices, too few for one to each process;"
            " start as many processes, or use --device cpu."
        )
    own = torch.device("cuda", processes.local_rank)
    torch.cuda.set_device(own)
    return own


@dataclasses.dataclass(frozen=True)
class Loaded:
    """An adapter on its backbone, ready to predict. `network`: the one that predicts."""

    model: Adapted
    config: AdapterConfig
    backbone: Backbone
    network: Network


def adapter_folder(path: Path) -> Path:
    """`path` itself, or the adapter inside it if `path` is a run folder."""
    inside = path / "adapter"
    return (
        inside if not (path / CONFIG_NAME).is_file() and (inside / CONFIG_NAME).is_file() else path
    )


def load_adapter(
    folder: str | Path, typed: Typed = NOTHING, use: str | None = None
) -> tuple[Adapted, AdapterConfig]:
    """Load an adapter folder, or the one in a run folder, onto its backbone, ready to predict.
    Arguments and errors as of `open_adapter`.
    """
    loaded = open_adapter(adapter_folder(Path(folder)), typed, use)
    return loaded.model, loaded.config


def open_adapter(
    folder: Path,
    typed: Typed = NOTHING,
    use: str | None = None,
    command: str | None = None,
    opened: Sequence[Backbone] = (),
) -> Loaded:
    """Load an adapter folder onto its backbone, ready to predict.

    Units and head are on or off as the run recommends (`config.recommended`), unless `use` says
    otherwise.

    Args:
        folder: the adapter folder.
        typed: the backbone or its weights, if they are not installed under the name in the adapter.
        use: "adapted" or "unadapted"; "both" for added labels by the adapted network and
            everything else by the unadapted one; None for the recommended network.
        command: what the user types again if the weights are missing.
        opened: backbones that are open, to be shared.

    Raises:
        WeightsError: the adapter or the weights are refused, or do not belong together.
        UsageError: the unadapted network can predict none of the labels; or "both" is asked for
            where no label was added.
    """
    asked = network_called(use) if use is not None else None
    config, tensors = load_adapter_files(folder)
    backbone = open_recorded(
        config.backbone, typed, command or f"seapeft … {shlex.quote(str(folder))}", opened
    )
    card, frozen = backbone.pretrained.card, backbone.pretrained.network
    if len(config.channels) != len(card.channels) or config.head.classes not in (
        None,
        len(card.labels),
    ):
        raise WeightsError(
            f"Adapter {folder.name} is for {count(len(config.channels), 'channel')} and"
            f" {config.head.classes} classes, and weights {card.name} have {len(card.channels)} and"
            f" {len(card.labels)}; get the adapter again."
        )
    if max((row for row in config.head.rows if row is not None), default=0) >= len(card.labels):
        raise WeightsError(
            f"Adapter {folder.name} names a class that weights {card.name} do not have; get it"
            " again."
        )
    try:
        backbone.pretrained.architecture.check_size(config.window.patch, card.kwargs)
    except UsageError as error:
        raise WeightsError(
            f"Adapter {folder.name} states a patch that does not fit: {error}"
        ) from error
    units = [
        unit_at(frozen, backbone.sites, u.family, u.level, u.placement, u.path)
        for u in config.units
    ]
    for unit, stated in zip(units, config.units, strict=True):
        if (unit.id, unit.cost) != (stated.id, stated.cost):
            raise WeightsError(
                f"Adapter {folder.name} says that {stated.id} has {stated.cost:,} parameters, and"
                f" it is {unit.id} with {unit.cost:,}; get the adapter again."
            )
    if len({unit.group for unit in units}) < len(units):
        raise WeightsError(
            f"Adapter {folder.name} has two levels of one family at one site; get it again."
        )
    model = Adapted(
        frozen,
        backbone.sites,
        units,
        config.head.rows,
        len(card.labels),
        backbone.example,
        config.seed,
    )
    if config.head.on_features not in (None, model.head.on_features):
        raise WeightsError(
            f"Adapter {folder.name} has a head of another kind than its backbone takes; get it"
            " again."
        )
    load_tensors(model, units, tensors, folder.name)
    network = asked or config.recommended.network
    if network == "both" and not (model.head.added and model.head.knows_a_label):
        raise UsageError(
            "--use both takes added labels from the adapted network and the others from the"
            " unadapted one, and this adapter has only"
            f" {'added ones' if model.head.added else 'labels that its backbone knew'}; leave it"
            " out."
        )
    if network != "unadapted":
        model.bank.activate([unit.id for unit in units])
        model.joined = network == "both"
    elif model.head.knows_a_label:
        model.head_gate = False
    else:
        raise UsageError(
            f"{config.backbone.weights} knows none of the labels {', '.join(config.labels)}, so it"
            " cannot predict them without the adapter; leave --use unadapted out."
        )
    return Loaded(model.eval(), config, backbone, network)


def adapter_tensors(model: Adapted, unit_ids: Sequence[str]) -> dict[str, torch.Tensor]:
    """The tensors of an adapter folder: `head/…` and `<unit id>/…`."""
    head = {
        f"head/{name}": tensor.detach().cpu().clone()
        for name, tensor in model.head.state_dict().items()
    }
    return head | model.bank.state_dict(unit_ids)


def load_tensors(
    model: Adapted, units: Sequence[Unit], tensors: Mapping[str, torch.Tensor], name: str
) -> None:
    """Load the tensors of `adapter_tensors`, strictly. Raises WeightsError naming the first one
    that does not belong.
    """
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
    kinds = [key for key in sorted(expected) if expected[key].dtype != tensors[key].dtype]
    if kinds:
        raise WeightsError(
            f"Adapter {name}: {kinds[0]} is {str(tensors[kinds[0]].dtype).removeprefix('torch.')},"
            f" its unit {str(expected[kinds[0]].dtype).removeprefix('torch.')}; get the adapter"
            " again."
        )
    model.head.load_state_dict(
        {k.removeprefix("head/"): t for k, t in tensors.items() if k.startswith("head/")}
    )
    model.bank.load_state_dict({k: t for k, t in tensors.items() if not k.startswith("head/")})
