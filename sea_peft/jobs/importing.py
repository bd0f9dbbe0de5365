"""`seapeft backbones import`: a foreign checkpoint of a known architecture becomes weights with a card, if every tensor fits."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from sea_peft.artefacts.atomic import writing
from sea_peft.backbones import architecture
from sea_peft.backbones.weights import cards, save_weights, user_weights
from sea_peft.data.cases import safe_name
from sea_peft.data.recipe import Recipe
from sea_peft.errors import UsageError, WeightsError

_MOST_NAMED = 5
_LEAST_SHARE = 0.95


@dataclasses.dataclass(frozen=True)
class KeyReport:
    """How the tensors of a checkpoint fit those of a network, by state-dict key. `misshaped`: key → (shape found, shape wanted)."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def wanted(self) -> int:
        """Tensors of the network."""
        return len(self.matched) + len(self.missing) + len(self.misshaped)

    @property
    def complete(self) -> bool:
        """Whether every tensor of the network is there and fits."""
        return not self.missing and not self.misshaped


@dataclasses.dataclass(frozen=True)
class Imported:
    """Where the weights lie now, and what the checkpoint held."""

    name: str
    file: Path
    card: Path
    parameters: int
    keys: KeyReport


def import_weights(
    file: Path,
    name: str,
    backbone: str,
    labels: Sequence[str],
    channels: Sequence[str],
    recipe: Recipe,
    patch: tuple[int, int, int],
    licence: str,
) -> Imported:
    """Read a checkpoint, check every tensor against the architecture, and keep it as the user's own weights called `name`.

    Args:
        file: a safetensors file, or a torch file that loads without running code.
        name: of the weights from now on.
        backbone: a registered architecture, at its default widths.
        labels: class names in the order of the network's outputs, without the background, which is output 0.
        channels: channel names in the order of the network's inputs.
        recipe: the preprocessing that the checkpoint was trained with.
        patch: voxels of a training crop.
        licence: under which the checkpoint may be used.

    Raises:
        UsageError: the name is taken or no name, the architecture is unknown, or the patch does not fit it.
        WeightsError: the file cannot be read without running code, or not every tensor is there and fits.
        DeviceError: the weights cannot be written.
    """
    if safe_name(name) != name:
        raise UsageError(f"--as {name!r} is no name for weights; use letters, digits, '.', '_' and '-'.")
    if name in cards():
        raise UsageError(f"There are weights called {name} already; choose another --as.")
    arch = architecture(backbone)
    arch.check_size(patch)
    network = arch.build(in_channels=len(channels), out_channels=len(labels) + 1)
    tensors = _without_prefix(read_checkpoint(file), network.state_dict().keys())
    report = compare_keys(tensors, network.state_dict())
    if not report.complete:
        raise WeightsError(_refusal(file, backbone, report))
    network.load_state_dict({key: tensors[key] for key in report.matched})
    broken = [key for key, tensor in network.state_dict().items() if not torch.isfinite(tensor.float()).all()]
    if broken:
        raise WeightsError(f"{file.name}: tensor {broken[0]} holds NaN or infinity; get the checkpoint again.")
    card = {
        "name": name,
        "architecture": arch.name,
        "kwargs": {},
        "labels": ["background", *labels],
        "channels": list(channels),
        "recipe": recipe.model_dump(mode="json"),
        "patch": patch,
        "licence": licence,
        "source": f"imported from {file.name}",
        "paper": arch.paper,
    }
    folder = user_weights()
    with writing(folder):
        written = save_weights(folder, network, card, half=False)
    parameters = sum(p.numel() for p in network.parameters())
    return Imported(name, written.with_suffix(".safetensors"), written, parameters, report)


def read_checkpoint(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by key, on the CPU. Nothing in the file is executed. Raises WeightsError."""
    if not file.is_file():
        raise WeightsError(f"There is no file {file}; check the path.")
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle protocol of old files
            content = torch.load(file, map_location="cpu", weights_only=True)
    # Damaged bytes end torch's reader in ways that no list of exception types covers; each one means "unreadable".
    except Exception as error:
        if "unsupported" in str(error).lower():
            raise WeightsError(
                f"{file.name} holds more than tensors, and loading it could run any code; have it saved as safetensors, or as a "
                "plain state dict."
            ) from error
        raise WeightsError(f"{file.name} is not a readable {file.suffix} checkpoint; get it again.") from error
    found = _state_dict(content)
    if not found:
        raise WeightsError(f"{file.name} holds no state dict (tensors by name); save the network's state_dict().")
    return found


def compare_keys(tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> KeyReport:
    """Sort the keys of both sides into matched, missing, unexpected and misshaped."""
    both = sorted(tensors.keys() & wanted.keys())
    misshaped = {
        key: (tuple(tensors[key].shape), tuple(wanted[key].shape))
        for key in both
        if tensors[key].shape != wanted[key].shape
    }
    return KeyReport(
        tuple(key for key in both if key not in misshaped),
        tuple(sorted(wanted.keys() - tensors.keys())),
        tuple(sorted(tensors.keys() - wanted.keys())),
        misshaped,
    )


def _state_dict(content: Any) -> dict[str, torch.Tensor]:
    """The largest dictionary of tensors in what a checkpoint holds: training programs nest it under one name or another."""
    if not isinstance(content, Mapping):
        return {}
    own = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    nested = [_state_dict(value) for value in content.values() if isinstance(value, Mapping)]
    return max([own, *nested], key=len)


def _without_prefix(tensors: dict[str, torch.Tensor], wanted: Any) -> dict[str, torch.Tensor]:
    """The tensors without the leading name part that all keys share (`module.`, `backbone.`), where it is in the way."""
    while tensors and not tensors.keys() & set(wanted):
        first = {key.partition(".")[0] for key in tensors}
        if len(first) != 1 or not all("." in key for key in tensors):
            break
        tensors = {key.partition(".")[2]: tensor for key, tensor in tensors.items()}
    return tensors


def _refusal(file: Path, backbone: str, report: KeyReport) -> str:
    share = len(report.matched) / report.wanted
    parts = [f"{file.name}: {len(report.matched)} of {report.wanted} tensors of {backbone} fit ({share:.0%})"]
    if report.misshaped:
        key, (found, needed) = next(iter(report.misshaped.items()))
        parts.append(
            f"{len(report.misshaped)} have another shape (first: {key} has {list(found)}, needed is {list(needed)})"
        )
    if report.missing:
        parts.append(f"{len(report.missing)} are missing ({_some(report.missing)})")
    if report.unexpected:
        parts.append(f"{len(report.unexpected)} are not known ({_some(report.unexpected)})")
    way_out = (
        "a load must be complete, so give the labels and channels that the checkpoint has outputs and inputs for"
        if share >= _LEAST_SHARE
        else "choose the right --backbone"
    )
    return "; ".join([*parts, way_out]) + "."


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:_MOST_NAMED]) + (", …" if len(keys) > _MOST_NAMED else "")
