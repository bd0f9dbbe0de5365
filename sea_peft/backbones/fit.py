"""How the tensors of a checkpoint fit a network, and what stands in for a classifier that it does not have."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from sea_peft.backbones.registry import Architecture
from sea_peft.backbones.weights import first_names, unique_tensors
from sea_peft.errors import WeightsError

LEAST_SHARE = 0.95
_MOST_NAMED = 5

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class KeyReport:
    """How the tensors of a checkpoint fit those of a network, by state-dict key, each tensor under its first name.

    `misshaped`: key → (shape found, shape wanted).
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: Mapping[str, tuple[Shape, Shape]]

    @property
    def wanted(self) -> int:
        """Tensors of the network."""
        return len(self.matched) + len(self.missing) + len(self.misshaped)

    @property
    def share(self) -> float:
        """Matched tensors over wanted ones."""
        return len(self.matched) / self.wanted

    @property
    def lacking(self) -> frozenset[str]:
        """Keys of the network that the checkpoint has nothing for."""
        return frozenset((*self.missing, *self.misshaped))


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


def under_first_names(tensors: Mapping[str, torch.Tensor], network: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors, each once under the first of the names that the network has for it.

    Raises WeightsError where two names of one tensor hold different values.
    """
    names = first_names(network)
    found: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        first = names.get(key, key)
        if first in found and not torch.equal(found[first], tensor):
            raise WeightsError(
                f"{key} and {first} are one tensor of the network and differ in the checkpoint; get it again."
            )
        found[first] = tensor
    return found


def whole_numbers(network: nn.Module) -> dict[str, torch.Tensor]:
    """Index tables and counters: they are as the network builds them, so that a checkpoint need not hold them."""
    return {key: t for key, t in unique_tensors(network).items() if not (t.is_floating_point() or t.is_complex())}


def classifier_keys(architecture: Architecture, kwargs: Mapping[str, object]) -> frozenset[str]:
    """Keys of the tensors with one row for each class: those whose first axis, and no other, grows with the number of classes.

    Empty where classes run through more of the network than its outputs: then there is no classifier that could be exchanged.
    """
    few, more = (unique_tensors(architecture.build(**{**kwargs, "out_channels": n})) for n in (2, 3))
    growing = {key for key in few if few[key].shape != more[key].shape}
    rows_only = all(few[key].shape[1:] == more[key].shape[1:] for key in growing)
    return frozenset(growing) if rows_only else frozenset()


def blank_classifier(keys: Iterable[str], network: nn.Module) -> dict[str, torch.Tensor]:
    """Rows for a classifier that was not trained: each gives the mean of its features, bias 0.

    Nothing is drawn at random. A target's head starts all its labels from the background's row, so that none is preferred, and a row
    that is not zero lets the probe see what acts on the output.
    """
    own = unique_tensors(network)
    return {
        key: torch.full_like(own[key], 1.0 / own[key][0].numel()) if own[key].ndim > 1 else torch.zeros_like(own[key])
        for key in keys
    }


def with_background(tensors: Mapping[str, torch.Tensor], keys: Iterable[str]) -> dict[str, torch.Tensor]:
    """A classifier of one output, a sigmoid, as one of two classes: a background row of zeros in front, so that logits are 0 and z.

    softmax(0, z) is sigmoid(z): probabilities are the same. `keys`: of the classifier.
    """
    rows = {key: tensors[key] for key in keys if key in tensors}
    return {**tensors, **{key: torch.cat((torch.zeros_like(row), row)) for key, row in rows.items()}}


def refusal(file: str, backbone: str, report: KeyReport, way_out: str) -> WeightsError:
    """The error for a checkpoint that does not fit: what share does, and the first of what does not."""
    parts = [f"{file}: {len(report.matched)} of {report.wanted} tensors of {backbone} fit ({report.share:.0%})"]
    if report.misshaped:
        key, (found, needed) = next(iter(report.misshaped.items()))
        parts.append(
            f"{len(report.misshaped)} have another shape (first: {key} has {list(found)}, needed is {list(needed)})"
        )
    if report.missing:
        parts.append(f"{len(report.missing)} are missing ({_some(report.missing)})")
    if report.unexpected:
        parts.append(f"{len(report.unexpected)} are not known ({_some(report.unexpected)})")
    return WeightsError("; ".join([*parts, way_out]) + ".")


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:_MOST_NAMED]) + (", …" if len(keys) > _MOST_NAMED else "")
