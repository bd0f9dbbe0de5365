"""How the tensors of a checkpoint fit a network, and a replacement for a classifier that it
lacks.
"""

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
    """How the tensors of a checkpoint fit those of a network, by state-dict key, each tensor under
    its first name.

    Attributes:
        matched: keys in both, of the same shape.
        missing: keys of the network alone.
        unexpected: keys of the checkpoint alone.
        misshaped: key → (shape found, shape wanted).
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: Mapping[str, tuple[Shape, Shape]]

    @property
    def wanted(self) -> int:
        """Number of tensors of the network."""
        return len(self.matched) + len(self.missing) + len(self.misshaped)

    @property
    def share(self) -> float:
        """Matched tensors as a share of the network's."""
        return len(self.matched) / self.wanted

    @property
    def lacking(self) -> frozenset[str]:
        """Keys of the network for which the checkpoint has no fitting tensor."""
        return frozenset((*self.missing, *self.misshaped))


def compare_keys(
    tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> KeyReport:
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


def under_first_names(
    tensors: Mapping[str, torch.Tensor], network: nn.Module
) -> dict[str, torch.Tensor]:
    """The tensors, each once, under the first name that the network has for it.

    Raises:
        WeightsError: two names of one tensor hold different values.
    """
    names = first_names(network)
    found: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        first = names.get(key, key)
        if first in found and not torch.equal(found[first], tensor):
            raise WeightsError(
                f"{key} and {first} are one tensor of the network and differ in the checkpoint; get"
                " it again."
            )
        found[first] = tensor
    return found


def whole_numbers(network: nn.Module) -> dict[str, torch.Tensor]:
    """Index tables and counters. The network builds them itself, so a checkpoint need not hold
    them.
    """
    return {
        key: t
        for key, t in unique_tensors(network).items()
        if not (t.is_floating_point() or t.is_complex())
    }


def classifier_keys(architecture: Architecture, kwargs: Mapping[str, object]) -> frozenset[str]:
    """Keys of the tensors with one row per class: those whose first axis, and no other, grows with
    the number of classes.

    Empty if more of the network than its outputs depends on the number of classes: then no
    classifier can be replaced.
    """
    few, more = (
        unique_tensors(architecture.build(**{**kwargs, "out_channels": n})) for n in (2, 3)
    )
    growing = {key for key in few if few[key].shape != more[key].shape}
    rows_only = all(few[key].shape[1:] == more[key].shape[1:] for key in growing)
    return frozenset(growing) if rows_only else frozenset()


def blank_classifier(keys: Iterable[str], network: nn.Module) -> dict[str, torch.Tensor]:
    """Rows for an untrained classifier: each gives the mean of its features, bias 0.

    Nothing is random. A target's head starts all its labels from the background's row, so that none
    is preferred; and with a row that is not zero the probe sees which modules affect the output.
    """
    own = unique_tensors(network)
    return {
        key: (
            torch.full_like(own[key], 1.0 / own[key][0].numel())
            if own[key].ndim > 1
            else torch.zeros_like(own[key])
        )
        for key in keys
    }


def with_background(
    tensors: Mapping[str, torch.Tensor], keys: Iterable[str]
) -> dict[str, torch.Tensor]:
    """Turn a classifier with one sigmoid output into one of two classes, by a background row of
    zeros: its logits are then 0 and z.

    softmax(0, z) is sigmoid(z), so the probabilities are the same. `keys`: of the classifier.
    """
    rows = {key: tensors[key] for key in keys if key in tensors}
    return {
        **tensors,
        **{key: torch.cat((torch.zeros_like(row), row)) for key, row in rows.items()},
    }


def refusal(file: str, backbone: str, report: KeyReport, way_out: str) -> WeightsError:
    """The error for a checkpoint that does not fit: the share that does, and the first tensors
    that do not.
    """
    parts = [
        f"{file}: {len(report.matched)} of {report.wanted} tensors of {backbone} fit"
        f" ({report.share:.0%})"
    ]
    if report.misshaped:
        key, (found, needed) = next(iter(report.misshaped.items()))
        parts.append(
            f"{len(report.misshaped)} have another shape (first: {key} has {list(found)}, needed is"
            f" {list(needed)})"
        )
    if report.missing:
        parts.append(f"{len(report.missing)} are missing ({_some(report.missing)})")
    if report.unexpected:
        parts.append(f"{len(report.unexpected)} are not known ({_some(report.unexpected)})")
    return WeightsError("; ".join([*parts, way_out]) + ".")


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:_MOST_NAMED]) + (", …" if len(keys) > _MOST_NAMED else "")
