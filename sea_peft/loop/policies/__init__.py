"""The policies, which choose the active set. All run in the same loop: `sea`, and the fixed
topologies, which ignore what it measures.

Importing this registers them all; their order is that of `seapeft policies list`.
"""

from sea_peft.loop.policies import sea  # isort: skip
from sea_peft.loop.policies import fixed  # isort: skip
from sea_peft.loop.policies.registry import (
    Entry,
    make_policy,
    policies,
    policy_entry,
    register,
    register_described,
)

__all__ = [
    "Entry",
    "fixed",
    "make_policy",
    "policies",
    "policy_entry",
    "register",
    "register_described",
    "sea",
]
