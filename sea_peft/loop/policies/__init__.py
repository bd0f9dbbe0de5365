"""What chooses the active set. Every policy runs in the same loop; a fixed topology is a policy that does not listen.

`sea` itself stands in `sea_peft.loop.sea`; here are the conversation that every policy has with the loop, and the rivals.
"""

from sea_peft.loop.policies.base import Allocation, Decision, Fixed, Policy, Space
from sea_peft.loop.policies.catalogue import (
    FIXED_POLICIES,
    OUTSIDE_BUDGET,
    fixed_policy,
    policy_offers,
    simple_topology,
)

__all__ = [
    "FIXED_POLICIES",
    "OUTSIDE_BUDGET",
    "Allocation",
    "Decision",
    "Fixed",
    "Policy",
    "Space",
    "fixed_policy",
    "policy_offers",
    "simple_topology",
]
