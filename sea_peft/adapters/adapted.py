"""A backbone with its bank and its target head: the model that is trained, audited, saved and
used to predict.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from sea_peft.adapters.bank import Bank
from sea_peft.adapters.head import TargetHead
from sea_peft.adapters.registry import Unit
from sea_peft.backbones import Site


class Adapted(nn.Module):
    """Maps `[B, C, D, H, W]` to target logits `[B, 1 + labels, D, H, W]`. The backbone is frozen
    and always in eval mode.

    Args:
        backbone: the pretrained network.
        sites: its sites.
        units: the units on offer.
        rows: for each target label the backbone's output row; None if the backbone does not know
            it.
        classes: K, the number of the backbone's output channels.
        example: an input `[B, C, D, H, W]`.
        seed: of the units' initial values.

    Attributes:
        joined: whether only the labels that are new to the backbone are the adapted network's, and
            everything else the unadapted backbone's (`join`). A forward then runs it twice.
    """

    def __init__(
        self,
        backbone: nn.Module,
        sites: Sequence[Site],
        units: Sequence[Unit],
        rows: Sequence[int | None],
        classes: int,
        example: torch.Tensor,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.sites = tuple(sites)
        self.bank = Bank(backbone, units, seed)
        self.head_path = _final_module(backbone, sites, example)
        module = backbone.get_submodule(self.head_path) if self.head_path else None
        assert module is None or isinstance(module, nn.Conv3d)
        self.head = TargetHead(rows, classes, module)
        self.head_gate = True
        self.joined = False
        self._features: torch.Tensor | None = None
        if module is not None:
            module.register_forward_pre_hook(self._remember)

    def _remember(self, _module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._features = inputs[0]

    def train(self, mode: bool = True) -> Adapted:
        """Set the mode of the head alone: the backbone's dropout stays off, and its running
        statistics stay frozen.
        """
        super().train(mode)
        self.backbone.eval()
        return self

    def trainable(self) -> list[nn.Parameter]:
        """The parameters for an optimizer: those of the open units and of the head."""
        return [*self.bank.parameters(self.bank.active), *self.head.parameters()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        backbone = self.backbone(x)
        logits: torch.Tensor = self.head(self.take_features(backbone), backbone, self.head_gate)
        return join(logits, self.opinion(x), self.head.added_index) if self.joined else logits

    def take_features(self, logits: torch.Tensor) -> torch.Tensor:
        """The head's input after a forward of the backbone that gave `logits`: the last
        convolution's input, or the logits.
        """
        features, self._features = self._features, None
        if self.head_path is None:
            return logits
        assert features is not None, "the backbone has not run"
        return features

    @torch.no_grad()
    def opinion(self, x: torch.Tensor) -> torch.Tensor:
        """What the frozen backbone says of the labels that it knows: probabilities [B, 1 +
        labels, D, H, W], 0 for a label that is new to it.
        """
        with self.unadapted():
            return self.known_of(self(x))

    def known_of(self, logits: torch.Tensor) -> torch.Tensor:
        """The same, from the target logits of the unadapted model."""
        return logits.float().index_fill(1, self.head.added_index, -torch.inf).softmax(dim=1)

    @contextlib.contextmanager
    def unadapted(self) -> Iterator[None]:
        """Close every gate for a while, the head's too: the unchanged backbone."""
        before = self.head_gate, self.joined
        self.head_gate = self.joined = False
        try:
            with self.bank.only(()):
                yield
        finally:
            self.head_gate, self.joined = before


def join(logits: torch.Tensor, opinion: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """Logits in which the `added` labels have the probabilities that `logits` give them, and the
    other labels share what is left as in `opinion`.

    So a known label changes only where an added one takes its place.

    Args:
        logits: `[B, 1 + L, D, H, W]`, of the adapted network.
        opinion: `[B, 1 + L, D, H, W]`, probabilities, 0 for the added labels (`Adapted.opinion`).
        added: `[N]`, indices of the added labels.
    """
    new = logits.float().softmax(dim=1).index_select(1, added)
    left = opinion * (1 - new.sum(dim=1, keepdim=True))
    return left.index_copy(1, added, new).clamp(min=torch.finfo(torch.float32).tiny).log()


@torch.no_grad()
def _final_module(backbone: nn.Module, sites: Sequence[Site], example: torch.Tensor) -> str | None:
    """Path of the convolution whose output is the backbone's output; None if something follows
    it.
    """
    heads = [site.path for site in sites if site.stage == "head" and site.kind == "conv"]
    outputs: list[torch.Tensor] = []
    if not heads:
        return None
    with backbone.get_submodule(heads[0]).register_forward_hook(
        lambda _m, _i, y: outputs.append(y)
    ):
        final = backbone(example)
    return heads[0] if len(outputs) == 1 and outputs[0] is final else None
