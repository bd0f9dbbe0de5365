"""`seapeft merge`: writes the backbone with an adapter and its head folded in, as plain weights,
checked against the adapted network.
"""

import dataclasses
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sea_peft.adapters import Adapted
from sea_peft.adapters.base import CannotMerge
from sea_peft.adapters.head import NEW_LABEL_ODDS, TargetHead
from sea_peft.artefacts.adapter_file import AdapterConfig, read_adapter_config
from sea_peft.backbones.growth import LAST, Growth, grown_further, growth
from sea_peft.backbones.typed import NOTHING, Typed
from sea_peft.backbones.weights import Card, load_strictly, unique_tensors
from sea_peft.errors import UsageError, WeightsError
from sea_peft.jobs.model import Loaded, adapter_folder, open_adapter
from sea_peft.jobs.weights_file import refuse_to_replace, save_weights

# Folding changes the order of float32 sums, which moves logits by millionths; a larger difference is a mistake.
_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """How a merged network's target logits compare with the adapted one's on random inputs.

    Attributes:
        units: number of units folded in.
        tensors_changed: number of tensors that differ from the backbone's.
        difference: largest difference of logits.
        largest: largest logit, to judge `difference` by.
        agreement: share of voxels that get the same label.
    """

    units: int
    tensors_changed: int
    difference: float
    largest: float
    agreement: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merged(Agreement):
    """The merged weights and their check."""

    file: Path
    card: Path
    labels: tuple[str, ...]


def merge(adapter: Path, out: Path, typed: Typed = NOTHING, use: str | None = None) -> Merged:
    """Fold the units and the head of an adapter into its backbone, and write `out` with its card
    beside it.

    The result has the backbone's outputs and one more per new label, so it is used like any other
    weights, here (`--weights`) or in plain MONAI. If the network has no tensor to fold something
    into, it grows, and the card says by what.

    Args:
        adapter: an adapter folder or a run folder.
        out: the .safetensors file to write.
        typed: the backbone or its weights, if they are not installed under the name in the adapter.
        use: "adapted" to fold in an adapter that its run recommends not to use.

    Raises:
        UsageError: `out` is no .safetensors file, or exists; or the run recommends not to use the
            adapter.
        WeightsError: the adapter is refused, a part of it cannot be folded exactly, or the check
            failed. Nothing is written then.
        DiskError: `out` cannot be written.
    """
    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out} must end in .safetensors.")
    refuse_to_replace(out)
    recommended = read_adapter_config(adapter_folder(adapter)).recommended
    if (use or recommended.network) != "adapted":
        raise UsageError(
            f"The run recommends the unadapted network ({recommended.evidence}), so there is nothing to fold in; --use adapted does it all "
            "the same."
        )
    command = f"seapeft merge {shlex.quote(str(adapter))} --out {shlex.quote(str(out))}"
    folded = fold(open_adapter(adapter_folder(adapter), typed, "adapted", command), out.stem)
    written = save_weights(out.parent, folded.network, folded.card, half=False)
    return Merged(
        file=written.with_suffix(".safetensors"),
        card=written,
        labels=tuple(folded.card["labels"]),
        **vars(folded.check),
    )


@dataclasses.dataclass(frozen=True)
class MergedNetwork:
    """The merged network, its card's fields, and the result of its check."""

    network: nn.Module
    card: dict[str, Any]
    check: Agreement


def fold(loaded: Loaded, name: str) -> MergedNetwork:
    """Fold units and head into a network of its own, in eval mode. The adapter's gates are open.
    `name`: of the card.

    Raises WeightsError if something cannot be folded, or the check failed.
    """
    model, config, pretrained = loaded.model, loaded.config, loaded.backbone.pretrained
    card, arch = pretrained.card, pretrained.architecture
    changed = _folded(model)
    new = [label for label, row in zip(config.labels, config.head.rows, strict=True) if row is None]
    described = _card(card, config, name, [*card.labels, *new], growth(model.backbone, changed))
    network = arch.build(
        in_channels=len(card.channels), out_channels=len(card.labels) + len(new), **described["kwargs"]
    ).eval()
    # grown tensors are not in the network yet: it grows first
    folded = unique_tensors(network) | unique_tensors(model.backbone) | changed
    load_strictly(network, _with_idle_rows(folded, network, model), name)
    difference, largest, agreement = compare(model, network, arch.example(len(card.channels), described["kwargs"]))
    if difference > _TOLERANCE * max(1.0, largest):
        raise WeightsError(
            f"The merged network's logits differ from the adapted one's by up to {difference:.2g}, so nothing was written; "
            "use the adapter as it is."
        )
    check = Agreement(
        units=len(config.units),
        tensors_changed=len(changed),
        difference=difference,
        largest=largest,
        agreement=agreement,
    )
    return MergedNetwork(network, described, check)


def _folded(model: Adapted) -> dict[str, torch.Tensor]:
    """Every backbone tensor that the units and the head change. Raises WeightsError naming the part
    that cannot be folded.
    """
    try:
        changed = model.bank.merged(model.bank.active)
    except CannotMerge as reason:
        raise WeightsError(f"{reason}; predict with the adapter as it is.") from reason
    path, weight, bias = head_folded(model)
    return changed | {f"{path}.weight": weight, f"{path}.bias": bias}


def head_folded(model: Adapted) -> tuple[str, torch.Tensor, torch.Tensor]:
    """The last convolution with the head folded in: its path, weight `[K + new, C, k, k, k]` and bias
    `[K + new]`, with a row for each new label behind those of the backbone's classes.

    A head that acts on the logits becomes a 1×1×1 convolution behind them, at `growth.LAST`. Raises
    WeightsError if the last convolution has no bias.
    """
    head = model.head
    if model.head_path is None:
        path, weight, bias = LAST, torch.eye(head.classes)[:, :, None, None, None], torch.zeros(head.classes)
    else:
        path, last = model.head_path, model.backbone.get_submodule(model.head_path)
        weight, bias = (getattr(last, name) for name in ("weight", "bias"))
    if bias is None:
        raise WeightsError(f"The head cannot be merged: {path} has no bias that its own could be added to.")
    # a new label starts as the background's row with a share of its odds (TargetHead)
    rows = torch.cat([weight, weight[:1].expand(head.new, *weight.shape[1:])])
    shifts = torch.cat([bias, bias[:1].expand(head.new) + math.log(NEW_LABEL_ODDS)])
    return path, (rows + head.weight).detach(), (shifts + head.bias).detach()


def _with_idle_rows(folded: dict[str, torch.Tensor], network: nn.Module, model: Adapted) -> dict[str, torch.Tensor]:
    """The tensors, with rows for new labels also in unused outputs of classes (deep supervision
    that is off).

    Raises WeightsError if the network's path has a row per class before the last convolution.
    """
    used = {site.path for site in model.sites}
    grown = dict(folded)
    for key, wanted in unique_tensors(network).items():
        tensor = folded[key]
        if tensor.shape == wanted.shape:
            continue
        if key.rpartition(".")[0] in used or tensor.shape[1:] != wanted.shape[1:]:
            why = f"{key} has a row for each class too, and new labels have none there"
            raise WeightsError(f"The head cannot be merged: {why}; use the adapter as it is.")
        more = len(wanted) - len(tensor)
        grown[key] = torch.cat([tensor, tensor[:1].expand(more, *tensor.shape[1:])])
    return grown


@torch.no_grad()
def compare(
    model: Adapted, network: Callable[[torch.Tensor], torch.Tensor], example: torch.Tensor
) -> tuple[float, float, float]:
    """Largest difference of target logits, largest logit, and share of equal labels, over a few random
    inputs like `example` [B, C, D, H, W]. `network`: gives the logits of the backbone's classes and
    new labels.
    """
    reader = TargetHead(model.head.rows, model.head.classes + model.head.new, None)
    difference, largest, equal = 0.0, 0.0, []
    generator = torch.Generator().manual_seed(0)
    for scale in (0.3, 1.0, 3.0):
        x = scale * torch.randn(example.shape, generator=generator)
        ours, logits = model(x), network(x)
        theirs = reader(logits, logits, gate=False)
        difference = max(difference, float((ours - theirs).abs().max()))
        largest = max(largest, float(ours.abs().max()))
        equal.append(float((ours.argmax(1) == theirs.argmax(1)).float().mean()))
    return difference, largest, min(equal)


def _card(card: Card, config: AdapterConfig, name: str, labels: list[str], more: Growth) -> dict[str, Any]:
    """The merged card's fields. `more`: growth of the network beyond that in the card."""
    made = {"adapter": config.policy, "units": len(config.units), "shots": config.shots, "seed": config.seed}
    kwargs: dict[str, Any] = {k: v for k, v in card.kwargs.items() if k not in ("in_channels", "out_channels")}
    return {
        **card.model_dump(exclude={"sha256", "dice", "training"}),
        "name": name,
        "kwargs": kwargs | ({"grown": grown_further(kwargs.get("grown", {}), more)} if more else {}),
        "labels": labels,
        "channels": list(config.channels),
        "recipe": config.recipe.model_dump(mode="json"),
        "patch": config.window.patch,
        "source": f"{card.name} with an adapter folded in by sea_peft {config.sea_peft_version}",
        "training": {"merged": made, "backbone_sha256": config.backbone.sha256},
    }
