"""What chooses the active set. Every policy runs in the same loop: `sea`, and each fixed topology, which does not listen.

Importing this registers them all; their order is that of `seapeft policies list`.
"""

from sea_peft.loop.policies import sea  # isort: skip
from sea_peft.loop.policies import fixed  # isort: skip
from sea_peft.loop.policies.registry import Entry, make_policy, policies, policy_entry, register, register_described

__all__ = ["Entry", "fixed", "make_policy", "policies", "policy_entry", "register", "register_described", "sea"]
