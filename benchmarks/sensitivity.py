"""Places chosen once, before training, by the sensitivity of the loss: after SPT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sea_peft.adapters import Offer
from sea_peft.loop.policies.fixed import nothing_fits
from sea_peft.loop.policies.registry import Entry, register
from sea_peft.loop.policy import Allocation, Policy
from sea_peft.loop.rows import Decision
from sea_peft.loop.space import Space


class Sensitivity(Policy):
    """The most sensitive units for their cost, chosen before any of them is trained.

    After SPT (He et al., ICCV 2023, arXiv 2303.08566). It takes a parameter's squared gradient on
    the frozen network as the loss that one step on it would gain, and lowers a threshold until the
    budget is spent. A vector with enough parameters above it is tuned as a whole, and a matrix
    gets a LoRA if there are enough of them for what the LoRA costs.

    Here as there: gradients come from a few batches before training, and count as the first-order
    gain of one step. One threshold holds for the whole network: units are taken by falling gain per
    parameter. The rank is the same everywhere. No Dice is measured, and nothing is looked at twice.
    Vectors are the affine units.

    Differences:

    - The step is that of Adam: gain = learning rate · Σ|mean gradient| (the loop's saliency),
      instead of the sum of squares.
    - The gradient of a matrix is seen through its LoRA at initialisation, so as far as a random
      projection onto the rank shows it.
    - Weights are not tuned one by one where a matrix has too few sensitive ones: no family of
      adapters is that sparse. The paper calls this variant structured tuning.
    - The head is warmed up first, since new labels have no classifier to differentiate through.
    - Rank 4 and not 8, as in `affine_lora`: the two differ only in whether gain per parameter or
      cost alone sets the order.
    """

    def __init__(self, space: Space) -> None:
        super().__init__("spt", space)
        self._own = [u for u in space.units if u.family in _OFFERS and _OFFERS[u.family].holds(u)]
        if not any(space.fits([unit]) for unit in self._own):
            raise nothing_fits("spt", _ABOUT, self._own, space)
        self._gain: dict[str, float] = {}

    def needs_saliency(self, cycle: int) -> Sequence[str]:
        return [unit.id for unit in self._own] if cycle == 0 else ()

    def told_saliency(self, cycle: int, saliency: Mapping[str, float]) -> None:
        self._gain = dict(saliency)

    def allocate(self, cycle: int) -> Allocation:
        density = {u.id: self._gain.get(u.id, 0.0) / self.space.cost(u) for u in self._own}
        # the sort is stable: of equal density, the cheaper one first
        order = sorted(self.space.cheapest_first(self._own), key=lambda u: -density[u.id])
        chosen = self.space.in_order(unit.id for unit in self.space.room().fill(order))
        decision = "add" if cycle == 0 else "keep"
        return Allocation(
            active=chosen,
            decisions=tuple(
                Decision(
                    u,
                    decision,
                    None,
                    f"first-order gain per {self.space.kind.one} {density[u]:.2e}",
                )
                for u in chosen
            ),
        )

    def final(self) -> Allocation:
        """The same; cheapest first if a time limit left no cycle to measure sensitivity in."""
        return self.allocate(1)

    def state_dict(self) -> dict[str, Any]:
        return {"gain": dict(self._gain)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._gain = dict(state["gain"])


_OFFERS = {"affine": Offer(), "lora": Offer(levels=(4,))}
_ABOUT = "affine and LoRA r4 where the loss is most sensitive for the cost"

register(
    Entry(
        name="spt",
        about=f"{_ABOUT}, chosen before training",
        make=lambda space, _seed, _settings: Sensitivity(space),
        offers=_OFFERS,
    )
)
