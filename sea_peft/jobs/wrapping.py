"""`sea_peft.wrap`: adapters on one's own network, for one's own training loop."""

from collections.abc import Sequence

import torch
from torch import nn

from sea_peft.adapters import Adapted, units_for
from sea_peft.adapters.liveness import acting
from sea_peft.artefacts.profile import load_profile
from sea_peft.backbones import find_sites
from sea_peft.errors import UsageError
from sea_peft.loop.budget import parse_budget
from sea_peft.loop.policies import make_policy, policy_entry
from sea_peft.loop.space import Space


def wrap(
    network: nn.Module,
    example: torch.Tensor,
    budget: str = "1%",
    *,
    policy: str = "cheapest",
    profile: str = "default",
    labels: Sequence[int | None] | None = None,
    seed: int = 0,
) -> Adapted:
    """Freeze a network and open adapters in it under a budget.

    Open other units with `model.bank.activate(unit_ids)`; `model.bank.units` holds all that are on
    offer. With every gate closed the outputs are the network's own.

    Args:
        network: a 3D segmentation network; its tensors are never changed.
        example: an input [B, C, D, H, W] that it takes.
        budget: a share of the network's parameters ("1%"), or a count ("47k"); the head counts too.
        policy: which units are opened; any policy but those that decide while they train, as `sea`
            does.
        profile: which families, levels and placements are on offer (`budgets/`).
        labels: for every target label the output channel that predicts it, None for a label that
            the network does not know; by default every channel but the first, which is the
            background.
        seed: of the adapters' initial values.

    Returns:
        The adapted module, from [B, C, D, H, W] to logits [B, 1 + labels, D, H, W];
        `model.trainable()` is what an optimizer gets.

    Raises:
        UsageError: the policy is unknown or audits; the network has one output channel only.
        BudgetError: nothing fits the budget.

    Examples:
        >>> import torch
        >>> from monai.networks.nets import UNet
        >>> import sea_peft
        >>> network = UNet(3, in_channels=1, out_channels=3, channels=(8, 16), strides=(2,))
        >>> model = sea_peft.wrap(network, torch.zeros(1, 1, 16, 16, 16), budget="10%")
        >>> optimizer = torch.optim.AdamW(model.trainable(), lr=1e-2)
        >>> model(torch.zeros(2, 1, 16, 16, 16)).shape
        torch.Size([2, 3, 16, 16, 16])
    """
    entry = policy_entry(policy)
    network.eval()
    with torch.no_grad():
        classes = network(example).shape[1]
    rows = tuple(range(1, classes)) if labels is None else tuple(labels)
    if not rows:
        raise UsageError(
            "The network has one output channel; give one for the background and one for each"
            " label."
        )
    sites = find_sites(network, example)
    offers = load_profile(profile)
    kind, on_offer = offers.cost_kind, offers.offers() if entry.offers is None else entry.offers
    units = acting(network, units_for(network, sites, on_offer), example)
    limit = parse_budget(budget, kind.of_backbone(network, example), kind)
    costs = kind.of_units(units, network, example)
    model = Adapted(network, sites, units, rows, classes, example, seed)
    space = Space(units, limit, kind.of_head(model.head, network, example), kind=kind, costs=costs)
    made = make_policy(policy, space, seed=seed, cycles=1)
    if made.audits:
        raise UsageError(
            f"Policy {policy} decides while it trains: choose another one, or run sea_peft.adapt.",
            "policy",
        )
    model.bank.activate(made.allocate(0).active)
    return model
