"""`seapeft backbones import`: turns another project's checkpoint of a known architecture into
weights with a card, if its tensors fit.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from sea_peft.backbones import Architecture, Limits, architecture, fit
from sea_peft.backbones.checkpoints import Checkpoint, read_checkpoint
from sea_peft.backbones.keymaps import Known, Origin, choose_origin
from sea_peft.backbones.limits import Size
from sea_peft.backbones.typed import Typed
from sea_peft.backbones.weights import cards, load_strictly, unique_tensors, user_weights
from sea_peft.data.cases import safe_name
from sea_peft.errors import DiskError, UsageError, WeightsError
from sea_peft.jobs.expected import Expected, Given, expectations, recipe_of
from sea_peft.jobs.weights_file import save_weights

_MAP = frozenset(("input_factor", "input_offset"))
_USUAL_SIDE = 96  # of the training crops of most published networks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
    """Imported weights, and what their checkpoint held.

    Attributes:
        name: of the weights.
        file: their tensors.
        card: their card.
        origin: whose checkpoint it was.
        parameters: number of parameters.
        labels: what it segments.
        settings: keyword arguments of the architecture.
        keys: how its tensors fit.
        left_out: keys that its origin stores beside the network, and on which outputs do not
            depend.
        new: keys of a classifier that did not come from the checkpoint.
        expects: how scans will be prepared, and who says so.
        said: sentences for the user.
    """

    name: str
    file: Path
    card: Path
    origin: str
    parameters: int
    labels: tuple[str, ...]
    settings: Mapping[str, object]
    keys: fit.KeyReport
    left_out: tuple[str, ...]
    new: tuple[str, ...]
    expects: tuple[Expected, ...]
    said: tuple[str, ...]


def import_weights(
    file: Path, name: str, backbone: str | Typed, given: Given | None = None, origin: str = "auto"
) -> Imported:
    """Read a checkpoint, check every tensor against the architecture, and keep it as the user's own
    weights called `name`.

    Widths are read off the tensors. Every tensor but the classifier's must be there and fit. No
    other tensors may be there, except those that the origin is known to store beside the network.
    The checkpoint's classifier is kept if labels name all of its rows. Without labels, or if its
    rows are of no use here, the weights get an untrained one with a row for the background alone,
    and the card says so.

    Args:
        file: a safetensors file, or a torch file that loads without running code.
        name: of the weights from now on.
        backbone: a registered architecture, or `Typed` for a network of the user's own.
        given: what the user says of the checkpoint.
        origin: whose checkpoint it is (`keymaps.ORIGINS`), or `auto` to go by its keys.

    Raises:
        UsageError: the name is taken or invalid, the architecture or the origin is unknown,
            required information is missing, or the patch does not fit.
        WeightsError: the file cannot be read without running code, or the tensors do not fit.
        DiskError: the weights cannot be written.
    """
    given = given or Given()
    if safe_name(name) != name:
        raise UsageError(
            f"--as {name!r} is no name for weights; use letters, digits, '.', '_' and '-'."
        )
    if name in cards():
        raise UsageError(f"There are weights called {name} already; choose another --as.")
    arch = backbone.architecture() if isinstance(backbone, Typed) else architecture(backbone)
    if arch is None:
        raise UsageError("An import needs to know the architecture; give --backbone.")
    checkpoint = read_checkpoint(file)
    source = choose_origin(origin, checkpoint, arch.name)
    known = source.know(checkpoint, arch.name)
    labels, channels = _labels(given, known, source), given.channels or known.channels
    if not channels:
        raise UsageError(
            f"{file.name} does not say what its inputs are; give --channel for each, in their"
            " order."
        )
    tensors, left_out = source.translate(checkpoint.tensors)
    tensors = _without_prefix(tensors, arch, len(channels))
    recipe, in_front = recipe_of(given, known, channels, file.name)
    settings = _settings(arch, tensors, known, given)
    if (
        given.intensity is not None
    ):  # the origin's map in front of the network belongs to its own scaling
        settings = {key: value for key, value in settings.items() if key not in _MAP} | in_front
    kwargs = {**settings, "in_channels": len(channels), "out_channels": 1 + len(labels or ())}
    network = _build(arch, kwargs)
    idle = {key for key in tensors.keys() - network.state_dict().keys() if source.idle(key)}
    tensors = {key: tensor for key, tensor in tensors.items() if key not in idle}
    rows = fit.classifier_keys(arch, kwargs)
    one_output = _has_one_output(tensors, rows, labels)
    if one_output:
        tensors = fit.with_background(tensors, rows)
    left_out = sorted([*left_out, *idle])
    fitted, report, new = _fitted(
        checkpoint, arch, network, tensors, rows, named=labels is not None
    )
    load_strictly(network, fitted, name)
    patch = given.patch or known.patch or _usual_patch(arch.limits_of(settings))
    arch.check_size(patch, settings)
    said = [f"Origin {source.name}: {source.about}.", *known.notes]
    if new:
        why = source.no_classifier or "no --labels name the checkpoint's classes"
        said.append(
            f"The classifier is new and untrained, with a row for the background alone: {why}."
        )
    if one_output:
        said.append(
            "Its one output is a sigmoid; it is two classes here, with logits 0 and z, which gives"
            " the same probabilities."
        )
    expects = expectations(given, known, arch, recipe, patch, labels, channels, settings)
    assumed = [expected.what for expected in expects if expected.by == "assumed"]
    if assumed:
        said.append(
            f"Assumed, because nobody says: {', '.join(assumed)}. See what comes of it on a scan of"
            f" yours before you adapt: seapeft backbones try {name} SCAN --label MASK"
        )
    card = {
        "name": name,
        "architecture": arch.name,
        "kwargs": settings,
        "labels": ["background", *(labels or ())],
        "channels": list(channels),
        "recipe": recipe.model_dump(mode="json"),
        "patch": patch,
        "licence": given.licence,
        "source": f"imported from {file.name}",
        "paper": arch.paper,
        "origin": source.name,
        "source_sha256": checkpoint.sha256,
        "new": sorted(new),
        "left_out": left_out,
        "assumed": assumed,
        "inferer": known.inferer,
    }
    try:
        written = save_weights(user_weights(), network, card, half=False)
    except DiskError as error:
        raise DiskError(f"{str(error).rstrip('.')}, which XDG_DATA_HOME sets.") from error
    return Imported(
        name=name,
        file=written.with_suffix(".safetensors"),
        card=written,
        origin=source.name,
        parameters=sum(p.numel() for p in network.parameters()),
        labels=tuple(labels or ()),
        settings=settings,
        keys=report,
        left_out=tuple(left_out),
        new=tuple(sorted(new)),
        expects=expects,
        said=tuple(said),
    )


def _labels(given: Given, known: Known, source: Origin) -> Sequence[str] | None:
    """Names of the classifier's rows; None for a new classifier. Raises UsageError for labels that
    cannot be used.
    """
    if source.no_classifier and given.labels:
        raise UsageError(
            f"The classifier of {source.name} checkpoints cannot be used here"
            f" ({source.no_classifier}); leave --labels out."
        )
    if source.no_classifier:
        return None
    return given.labels or known.labels


def _has_one_output(
    tensors: Mapping[str, torch.Tensor], rows: frozenset[str], labels: Sequence[str] | None
) -> bool:
    """Whether the checkpoint has one output for the one named label, and none for the
    background.
    """
    found = [tensors[key] for key in rows if key in tensors]
    return (
        labels is not None
        and len(labels) == 1
        and bool(found)
        and all(len(tensor) == 1 for tensor in found)
    )


def _settings(
    arch: Architecture, tensors: Mapping[str, torch.Tensor], known: Known, given: Given
) -> dict[str, object]:
    """Keyword arguments: from the tensors, then the origin, then the user.

    Raises UsageError if a setting that leaves no trace in tensors is open: they would fit any
    choice, and only one is right.
    """
    read = arch.read_widths(tensors) if arch.read_widths is not None else {}
    settings = {**read, **known.settings, **given.settings}
    for setting, why in arch.traceless.items():
        if setting not in settings:
            raise UsageError(
                f"The tensors of a {arch.name} fit whatever its {setting} is: {why}, or the right"
                " --origin."
            )
    return settings


def _usual_patch(limits: Limits) -> Size:
    """A cube of 96 voxels per side, or the nearest above it that the network takes."""
    return limits.exact or limits.holding([max(n, _USUAL_SIDE) for n in limits.small])


def _build(arch: Architecture, kwargs: Mapping[str, object]) -> nn.Module:
    try:
        return arch.build(**kwargs)
    except (TypeError, ValueError) as error:
        listed = ", ".join(f"{key}={value}" for key, value in kwargs.items())
        raise UsageError(
            f"{arch.name} cannot be built with {listed}: {error}; correct --setting."
        ) from error


def _without_prefix(
    tensors: dict[str, torch.Tensor], arch: Architecture, channels: int
) -> dict[str, torch.Tensor]:
    """The tensors without a leading name part that all keys share (`net.`, `backbone.`), if it
    is in the way.
    """
    wanted = arch.build(in_channels=channels).state_dict().keys()
    while tensors and not tensors.keys() & wanted:
        first = {key.partition(".")[0] for key in tensors}
        if len(first) != 1 or not all("." in key for key in tensors):
            break
        tensors = {key.partition(".")[2]: tensor for key, tensor in tensors.items()}
    return tensors


def _fitted(
    checkpoint: Checkpoint,
    arch: Architecture,
    network: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    rows: frozenset[str],
    named: bool,
) -> tuple[dict[str, torch.Tensor], fit.KeyReport, frozenset[str]]:
    """Every tensor of the network, the report on all but a new classifier, and that classifier's
    keys.

    `rows`: keys of the classifier. `named`: whether labels name its rows. Raises WeightsError for
    tensors that are missing, unknown, of another shape or not finite.
    """
    new = frozenset() if named else rows
    found = {
        key: tensor
        for key, tensor in fit.under_first_names(tensors, network).items()
        if key not in new
    }
    as_built = {
        key: tensor for key, tensor in fit.whole_numbers(network).items() if key not in found
    }
    wanted = unique_tensors(network).items()
    report = fit.compare_keys(
        found, {key: tensor for key, tensor in wanted if key not in new and key not in as_built}
    )
    if report.lacking:
        if report.share < fit.LEAST_SHARE:
            way_out = "choose the right --backbone, --origin or --setting"
        elif report.lacking <= rows:
            way_out = (
                "a load must be complete, so give --labels with a name for each class of the"
                " checkpoint, or none for a new classifier"
            )
        else:
            way_out = (
                "a load must be complete, so give the labels, channels and settings that the"
                " checkpoint has"
            )
        raise fit.refusal(checkpoint.file.name, arch.name, report, way_out)
    if report.unexpected:  # the checkpoint's network computes with more than this one
        way_out = (
            "without them the network gives other outputs, so choose the --backbone, --origin or"
            " --setting that has a place for them, or give the checkpoint's own network as"
            " --backbone package.module:factory"
        )
        raise fit.refusal(checkpoint.file.name, arch.name, report, way_out)
    for key in report.matched:
        if not torch.isfinite(found[key].float()).all():
            raise WeightsError(
                f"{checkpoint.file.name}: tensor {key} holds NaN or infinity; get the checkpoint"
                " again."
            )
    fitted = {
        key: found[key].float() if found[key].is_floating_point() else found[key]
        for key in report.matched
    }
    return as_built | fitted | fit.blank_classifier(new, network), report, new
