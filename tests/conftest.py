"""What every test shares: one thread, and hypothesis examples that are the same on every
machine.
"""

from __future__ import annotations

import os

from hypothesis import settings

# before torch is imported: tiny tensors are slower on many threads, and the machine may be shared
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("sea_peft", deadline=None, derandomize=True, database=None)
settings.load_profile("sea_peft")
