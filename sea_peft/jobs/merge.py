"""`seapeft merge`: writes the backbone with an adapter and its head folded in, or with several, as
plain weights, checked against the adapted network.
"""

import dataclasses
import math
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sea_peft.adapters import Adapted
from sea_peft.adapters.head import TargetHead
from sea_peft.artefacts.adapter_file import AdapterConfig, read_adapter_config
from sea_peft.backbones.growth import Growth, grown_further, growth
from sea_peft.backbones.typed import NOTHING, Typed
from sea_peft.backbones.weights import Card, load_strictly, unique_tensors
from sea_peft.data.wording import count
from sea_peft.errors import UsageError, WeightsError
from sea_peft.jobs.folding import folded_tensors, weighed_tensors
from sea_peft.jobs.model import Loaded, adapter_folder, network_called, open_adapter
from sea_peft.jobs.same_task import difference
from sea_peft.jobs.weights_file import refuse_to_replace, save_weights

# Folding changes the order of float32 sums, which moves logits by millionths; a larger difference
# is a mistake.
_TOLERANCE = 1e-3
_LARGEST_SHARE = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """How a merged network's target logits compare with the adapted one's on random inputs.

    Attributes:
        units: number of units folded in.
        tensors_changed: number of tensors that differ from the backbone's.
        difference: largest difference of logits; None for several adapters, whose sum is no network
            that could be compared with.
        largest: largest logit, to judge `difference` by; None for several adapters.
        agreement: share of voxels that get the same label; of several adapters, as by
            their probabilities, each with its share.
    """

    units: int
    tensors_changed: int
    difference: float | None
    largest: float | None
    agreement: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merged(Agreement):
    """The merged weights and their check."""

    file: Path
    card: Path
    labels: tuple[str, ...]


def merge(
    adapter: Path,
    out: Path,
    typed: Typed = NOTHING,
    use: str | None = None,
    others: Sequence[Path] = (),
    shares: Sequence[float] = (),
) -> Merged:
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
        others: further adapters of the same backbone, labels, channels, recipe and window. What
            each changes is added with its share (`folding.weighed_tensors`).
        shares: one for each adapter, the first included; equal ones that add up to 1 if left out.

    Raises:
        UsageError: `out` is no .safetensors file, or exists; or the run recommends not to use the
            adapter; or adapters do not fit together, or shares them.
        WeightsError: the adapter is refused, a part of it cannot be folded exactly, or the check
            failed. Nothing is written then.
        DiskError: `out` cannot be written.
    """
    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out} must end in .safetensors.")
    refuse_to_replace(out)
    paths = [adapter, *others]
    shares = _checked_shares(paths, shares)
    for path in paths:
        recommended = read_adapter_config(adapter_folder(path)).recommended
        network = recommended.network if use is None else network_called(use)
        if network == "both":
            raise UsageError(
                "--use both runs two networks, which are not one to merge into; use adapted."
            )
        if network == "unadapted":
            raise UsageError(
                f"The run{f' of {path}' if others else ''} recommends the unadapted network"
                f" ({recommended.evidence}), so there is nothing to fold in; --use adapted does it"
                " all the same."
            )
    command = f"seapeft merge {shlex.quote(str(adapter))} --out {shlex.quote(str(out))}"
    several: list[Loaded] = []
    for path in paths:
        opened = [loaded.backbone for loaded in several]
        several.append(open_adapter(adapter_folder(path), typed, "adapted", command, opened))
        _require_same(path, several)
    folded = fold(several[0], out.stem) if not others else fold_several(several, shares, out.stem)
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
    `name`: for the merged network's card.

    Raises WeightsError if something cannot be folded, or the check failed.
    """
    changed = folded_tensors(loaded.model)
    network, described, example = _built(loaded, changed, [loaded.config], name)
    apart, largest, agreement = compare(loaded.model.head, loaded.model, network, example)
    if apart > _TOLERANCE * max(1.0, largest):
        raise WeightsError(
            f"The merged network's logits differ from the adapted one's by up to {apart:.2g}, so"
            " nothing was written; use the adapter as it is."
        )
    check = Agreement(
        units=len(loaded.config.units),
        tensors_changed=len(changed),
        difference=apart,
        largest=largest,
        agreement=agreement,
    )
    return MergedNetwork(network, described, check)


def fold_several(several: Sequence[Loaded], shares: Sequence[float], name: str) -> MergedNetwork:
    """Fold several adapters of one backbone into one network, each with its share. Their gates are
    closed afterwards. `name`: for the merged network's card.

    Raises WeightsError if something cannot be folded.
    """
    models, configs = [loaded.model for loaded in several], [loaded.config for loaded in several]
    units = [model.bank.active for model in models]
    for model in models:
        model.bank.activate(())
    changed = weighed_tensors(models, shares)
    network, described, example = _built(several[0], changed, configs, name)
    described["training"]["merged"] = [
        {**made, "share": share}
        for made, share in zip(described["training"]["merged"], shares, strict=True)
    ]

    def weighed(x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(())
        for model, active, share in zip(models, units, shares, strict=True):
            with model.bank.only(active):
                total = total + share * model(x).softmax(dim=1)
        return total

    _, _, agreement = compare(models[0].head, weighed, network, example)
    check = Agreement(
        units=sum(len(config.units) for config in configs),
        tensors_changed=len(changed),
        difference=None,
        largest=None,
        agreement=agreement,
    )
    return MergedNetwork(network, described, check)


def _checked_shares(paths: Sequence[Path], shares: Sequence[float]) -> tuple[float, ...]:
    """A share for every adapter. Raises UsageError for too few or too many, or one that makes
    no sense.
    """
    if len(paths) == 1 and shares:
        raise UsageError(
            "--shares are of several adapters; name the others, each by --with ADAPTER."
        )
    if not shares:
        return (1 / len(paths),) * len(paths)
    if len(shares) != len(paths):
        raise UsageError(
            f"--shares has {count(len(shares), 'number')} for {len(paths)} adapters; give one for"
            " each, in order."
        )
    if not all(math.isfinite(share) and abs(share) <= _LARGEST_SHARE for share in shares):
        raise UsageError(
            f"--shares are numbers from -{_LARGEST_SHARE} to {_LARGEST_SHARE}, such as 0.5,0.5."
        )
    return tuple(shares)


def _require_same(path: Path, several: Sequence[Loaded]) -> None:
    """Raise UsageError if the last adapter, the one at `path`, cannot be added to the first."""
    first, last = several[0], several[-1]
    if last.backbone is not first.backbone:
        raise UsageError(
            f"--with {path} is for the backbone {last.config.backbone.weights}, the first adapter"
            f" for {first.config.backbone.weights}, and weights of two networks do not add up;"
            " predict with both (`seapeft predict --with`)."
        )
    if found := difference(first.config, last.config):
        raise UsageError(
            f"--with {path} does not fit: {found}. Adapters add up only where these agree; leave it"
            " out."
        )
    if first.config.head.rows != last.config.head.rows:
        raise UsageError(
            f"--with {path} takes its labels from other outputs of the backbone than the first"
            " adapter; leave it out."
        )


def _built(
    loaded: Loaded, changed: dict[str, torch.Tensor], configs: Sequence[AdapterConfig], name: str
) -> tuple[nn.Module, dict[str, Any], torch.Tensor]:
    """The network with these tensors, the fields of its card, and an input for it. `configs`: of
    the adapters in it.
    """
    model, config, pretrained = loaded.model, loaded.config, loaded.backbone.pretrained
    card, arch = pretrained.card, pretrained.architecture
    new = [label for label, row in zip(config.labels, config.head.rows, strict=True) if row is None]
    described = _card(card, configs, name, [*card.labels, *new], growth(model.backbone, changed))
    network = arch.build(
        in_channels=len(card.channels),
        out_channels=len(card.labels) + len(new),
        **described["kwargs"],
    ).eval()
    # grown tensors are not in the network yet: it grows first
    folded = unique_tensors(network) | unique_tensors(model.backbone) | changed
    load_strictly(network, _with_idle_rows(folded, network, model), name)
    return network, described, arch.example(len(card.channels), described["kwargs"])


def _with_idle_rows(
    folded: dict[str, torch.Tensor], network: nn.Module, model: Adapted
) -> dict[str, torch.Tensor]:
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
    head: TargetHead,
    adapted: Callable[[torch.Tensor], torch.Tensor],
    network: Callable[[torch.Tensor], torch.Tensor],
    example: torch.Tensor,
) -> tuple[float, float, float]:
    """Largest difference of target logits, largest logit, and share of equal labels, over a few
    random inputs.

    Args:
        head: says which output is of which label.
        adapted: an input → target logits.
        network: an input → the logits of the backbone's classes and new labels.
        example: an input `[B, C, D, H, W]`.
    """
    reader = TargetHead(head.rows, head.classes + head.new, None)
    difference, largest, equal = 0.0, 0.0, []
    generator = torch.Generator().manual_seed(0)
    for scale in (0.3, 1.0, 3.0):
        x = scale * torch.randn(example.shape, generator=generator)
        ours, logits = adapted(x), network(x)
        theirs = reader(logits, logits, gate=False)
        difference = max(difference, float((ours - theirs).abs().max()))
        largest = max(largest, float(ours.abs().max()))
        equal.append(float((ours.argmax(1) == theirs.argmax(1)).float().mean()))
    return difference, largest, min(equal)


def _card(
    card: Card, configs: Sequence[AdapterConfig], name: str, labels: list[str], more: Growth
) -> dict[str, Any]:
    """The merged card's fields. `more`: growth of the network beyond that in the card."""
    made = [
        {"adapter": c.policy, "units": len(c.units), "shots": c.shots, "seed": c.seed}
        for c in configs
    ]
    config = configs[0]
    what = "an adapter" if len(configs) == 1 else f"{len(configs)} adapters"
    kwargs: dict[str, Any] = {
        k: v for k, v in card.kwargs.items() if k not in ("in_channels", "out_channels")
    }
    return {
        **card.model_dump(exclude={"sha256", "dice", "training"}),
        "name": name,
        "kwargs": (
            kwargs | ({"grown": grown_further(kwargs.get("grown", {}), more)} if more else {})
        ),
        "labels": labels,
        "channels": list(config.channels),
        "recipe": config.recipe.model_dump(mode="json"),
        "patch": config.window.patch,
        "source": f"{card.name} with {what} folded in by sea_peft {config.sea_peft_version}",
        "training": {
            "merged": made[0] if len(made) == 1 else made,
            "backbone_sha256": config.backbone.sha256,
        },
    }
