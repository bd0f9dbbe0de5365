"""Imports MONAI without optional packages that it would load too."""

from __future__ import annotations

import sys

from sea_peft.backbones.typed import Typed

# The slowest of the optional packages that MONAI imports if they are installed; no network needs
# them
_BESIDE = (
    "bs4",
    "gdown",
    "huggingface_hub",
    "ignite",
    "matplotlib",
    "mlflow",
    "pandas",
    "pydicom",
    "requests",
    "scipy",
    "skimage",
    "sklearn",
    "tensorboard",
)


def import_monai_alone(typed: Typed) -> None:
    """Import MONAI as if those packages were not installed. It imports all of its modules, and they
    import any such package, which takes two thirds of the time.

    Only for processes that just predict: those modules of MONAI stay without the packages. So never
    in another program that imports sea_peft, or if the user has `typed` code, which may use any of
    them.
    """
    if "monai" in sys.modules or typed.code is not None:
        return
    hidden = [name for name in _BESIDE if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: "cannot be imported"
    try:
        import monai  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]
