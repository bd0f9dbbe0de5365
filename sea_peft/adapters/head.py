"""The target head: keeps the backbone's classes, adds new labels, and stores everything as
deltas.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

# A new label starts with this share of the background's odds: small enough not to affect known
# labels, large enough to learn.
NEW_LABEL_ODDS = 0.05
_NEW_LABEL_LOG_ODDS = float(torch.log(torch.tensor(NEW_LABEL_ODDS)))


class TargetHead(nn.Module):
    """Backbone classes → target labels.

    The backbone ends in K logits; row 0 is the background. The head keeps all K rows, each of which
    a delta may move, and appends one row per target label that the backbone does not know. Such a
    row starts as the background's row with `NEW_LABEL_ODDS` of its odds. The target's logits are
    then: background = logsumexp over every row that is not a target label, label = its row. A
    softmax over these equals the backbone's softmax summed over the classes that the target does
    not ask for, so the backbone's knowledge of neighbouring organs is kept.

    Parameters: weight `[K + new, C, k, k, k]` and bias `[K + new]`, both deltas that start at zero.
    With `keeps_known`, only the rows of new labels are fitted and counted. The tensors keep their
    shape, so an adapter reads the same whichever policy made its head.

    Args:
        rows: the backbone's row of each target label; None for a new label.
        classes: K.
        module: the last convolution, if its output is the backbone's output: deltas then act on its
            features. None: they act on the K logits.
    """

    added_index: torch.Tensor
    """`added` as a tensor `[N]`."""
    known_index: torch.Tensor
    """`[K]`: the target logits of labels that the backbone knows, without the background."""
    _wanted: torch.Tensor
    _others: torch.Tensor

    def __init__(self, rows: Sequence[int | None], classes: int, module: nn.Conv3d | None) -> None:
        super().__init__()
        self.classes = classes
        self.new = sum(row is None for row in rows)
        fresh = iter(range(classes, classes + self.new))
        self.rows = tuple(next(fresh) if row is None else row for row in rows)
        self.keeps_known = False
        self.on_features = module is not None
        shape = tuple(module.weight.shape[1:]) if module is not None else (classes, 1, 1, 1)
        self.weight = nn.Parameter(torch.zeros(classes + self.new, *shape))
        self.bias = nn.Parameter(torch.zeros(classes + self.new))
        # on the same device as the rest: an index from the CPU would make every forward wait for
        # the device
        others = [row for row in range(classes) if row not in self.rows]
        known = [index for index in range(1, 1 + len(self.rows)) if index not in self.added]
        for name, index in (
            ("_wanted", self.rows),
            ("_others", others),
            ("added_index", self.added),
            ("known_index", known),
        ):
            self.register_buffer(name, torch.tensor(index, dtype=torch.long), persistent=False)
        names = ("stride", "padding", "dilation") if module is not None else ()
        self.geometry: dict[str, Any] = {name: getattr(module, name) for name in names}

    @property
    def added(self) -> tuple[int, ...]:
        """Of the target logits, which are of labels that are new to the backbone."""
        return tuple(index for index, row in enumerate(self.rows, start=1) if row >= self.classes)

    @property
    def knows_a_label(self) -> bool:
        """Whether the backbone has an output for at least one target label, so that it can be
        scored unadapted.
        """
        return self.new < len(self.rows)

    @property
    def cost(self) -> int:
        """Trainable parameters."""
        fixed = self.classes if self.keeps_known else 0
        return self.weight[fixed:].numel() + self.bias[fixed:].numel()

    def forward(
        self, features: torch.Tensor, logits: torch.Tensor, gate: bool = True
    ) -> torch.Tensor:
        """The target's logits `[B, 1 + labels, D, H, W]`.

        Args:
            features: `[B, C, D, H, W]`; the logits themselves if the head acts on logits.
            logits: `[B, K, D, H, W]`.
            gate: whether the deltas act. Without them, this is the backbone's own prediction of the
                target's labels.
        """
        y = logits
        if self.new:
            prior = logits[:, :1] + _NEW_LABEL_LOG_ODDS
            y = torch.cat([logits, prior.expand(-1, self.new, *(-1,) * (logits.ndim - 2))], dim=1)
        if gate:
            y = y + F.conv3d(
                features, self._fitted(self.weight), self._fitted(self.bias), **self.geometry
            )
        others = y.index_select(1, self._others)
        background = others.logsumexp(dim=1, keepdim=True) if others.shape[1] > 1 else others
        return torch.cat([background, y.index_select(1, self._wanted)], dim=1)

    def _fitted(self, deltas: torch.Tensor) -> torch.Tensor:
        """The deltas, without a gradient for rows that are kept."""
        return (
            torch.cat([deltas[: self.classes].detach(), deltas[self.classes :]])
            if self.keeps_known
            else deltas
        )
