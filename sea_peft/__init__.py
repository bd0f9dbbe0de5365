"""Few-shot adaptation of frozen pretrained 3D segmentation networks, audited and allocated by
the engine itself.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what type checkers and editors see; at run time `__getattr__` imports it
    from sea_peft.backbones.typed import Typed
    from sea_peft.jobs.adapt import adapt, resume
    from sea_peft.jobs.evaluate import evaluate
    from sea_peft.jobs.merge import merge
    from sea_peft.jobs.model import load_adapter
    from sea_peft.jobs.options import AdaptOptions
    from sea_peft.jobs.predict import predict
    from sea_peft.jobs.suggest import suggest
    from sea_peft.jobs.wrapping import wrap

__version__ = "0.1.0"

# Idle OpenMP threads that spin make torch ten times slower when another program uses the same cores
# (measured: 0.8 s against 9.5 s a step), and sleeping ones cost next to nothing. The variable is
# read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_LAZY = {
    "AdaptOptions": "sea_peft.jobs.options",
    "Typed": "sea_peft.backbones.typed",
    "adapt": "sea_peft.jobs.adapt",
    "evaluate": "sea_peft.jobs.evaluate",
    "load_adapter": "sea_peft.jobs.model",
    "merge": "sea_peft.jobs.merge",
    "predict": "sea_peft.jobs.predict",
    "resume": "sea_peft.jobs.adapt",
    "suggest": "sea_peft.jobs.suggest",
    "wrap": "sea_peft.jobs.wrapping",
}
__all__ = [
    "AdaptOptions",
    "Typed",
    "__version__",
    "adapt",
    "evaluate",
    "load_adapter",
    "merge",
    "predict",
    "resume",
    "suggest",
    "wrap",
]


def __getattr__(name: str) -> object:
    """Import the Python API when it is first used, so that `seapeft --help` stays fast."""
    if name not in _LAZY:
        raise AttributeError(f"module 'sea_peft' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
