"""The backbone tensors that change when an adapter is folded in, or several, each with a share."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch

from sea_peft.adapters import Adapted
from sea_peft.adapters.base import CannotMerge
from sea_peft.adapters.head import NEW_LABEL_ODDS
from sea_peft.backbones.growth import LAST, missing
from sea_peft.errors import WeightsError


def folded_tensors(model: Adapted) -> dict[str, torch.Tensor]:
    """Every backbone tensor that the open units and the head change. Raises WeightsError naming the
    part that cannot be folded.
    """
    path, weight, bias = head_folded(model)
    return _of_units(model, model.bank.active) | {f"{path}.weight": weight, f"{path}.bias": bias}


def weighed_tensors(models: Sequence[Adapted], shares: Sequence[float]) -> dict[str, torch.Tensor]:
    """W + Σ sᵢ·(Wᵢ − W) for every tensor that one of the adapters changes: W is the backbone's, Wᵢ
    the one with adapter i folded in.

    With shares that add up to 1 this is the weighted mean of the merged networks, a model soup
    (Wortsman et al. 2022, arXiv 2203.05482); in general, a sum of task vectors (Ilharco et al.
    2023, arXiv 2212.04089, section 2).

    Args:
        models: adapters of one backbone, with heads for the same rows.
        shares: sᵢ.

    Raises:
        WeightsError: a part cannot be folded, or makes a tensor larger, so that it cannot be added
            to the others.
    """
    first = models[0]
    changes = [_of_units(model, model.bank.units) for model in models]
    weighed = {}
    for key in dict.fromkeys(key for changed in changes for key in changed):
        own = _own(first, key)
        total = own.clone()
        for share, changed in zip(shares, changes, strict=True):
            if key in changed and changed[key].shape != own.shape:
                raise WeightsError(
                    f"A unit makes {key} larger, so it has no place among the weights of other"
                    " adapters; merge that adapter alone."
                )
            if key in changed:
                total += share * (changed[key] - own)
        weighed[key] = total
    heads = [model.head for model in models]
    path, weight, bias = head_folded(
        first,
        sum((s * head.weight for s, head in zip(shares, heads, strict=True)), torch.zeros(())),
        sum((s * head.bias for s, head in zip(shares, heads, strict=True)), torch.zeros(())),
    )
    return weighed | {f"{path}.weight": weight, f"{path}.bias": bias}


def head_folded(
    model: Adapted, weight_delta: torch.Tensor | None = None, bias_delta: torch.Tensor | None = None
) -> tuple[str, torch.Tensor, torch.Tensor]:
    """The last convolution with the head folded in: its path, weight `[K + new, C, k, k, k]` and
    bias `[K + new]`, with a row for each new label behind those of the backbone's classes.

    A head that acts on the logits becomes a 1×1×1 convolution behind them, at `growth.LAST`.
    `weight_delta`, `bias_delta`: instead of the head's own. Raises WeightsError if the last
    convolution has no bias.
    """
    head = model.head
    if model.head_path is None:
        path, weight, bias = (
            LAST,
            torch.eye(head.classes)[:, :, None, None, None],
            torch.zeros(head.classes),
        )
    else:
        path, last = model.head_path, model.backbone.get_submodule(model.head_path)
        weight, bias = (getattr(last, name) for name in ("weight", "bias"))
    if bias is None:
        raise WeightsError(
            f"The head cannot be merged: {path} has no bias that its own could be added to."
        )
    # a new label starts as the background's row with a share of its odds (TargetHead)
    rows = torch.cat([weight, weight[:1].expand(head.new, *weight.shape[1:])])
    shifts = torch.cat([bias, bias[:1].expand(head.new) + math.log(NEW_LABEL_ODDS)])
    rows = rows + (head.weight if weight_delta is None else weight_delta)
    shifts = shifts + (head.bias if bias_delta is None else bias_delta)
    return path, rows.detach(), shifts.detach()


def _of_units(model: Adapted, units: Collection[str]) -> dict[str, torch.Tensor]:
    try:
        return model.bank.merged(units)
    except CannotMerge as reason:
        raise WeightsError(f"{reason}; predict with the adapter as it is.") from reason


def _own(model: Adapted, key: str) -> torch.Tensor:
    """The backbone's tensor under this key, or the ones or zeros of a norm that has none."""
    path, _, name = key.rpartition(".")
    module = model.backbone.get_submodule(path)
    tensor = getattr(module, name, None)
    return missing(module)[name] if tensor is None else tensor.detach()
