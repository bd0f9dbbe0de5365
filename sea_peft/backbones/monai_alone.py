"""MONAI without the packages that it would load beside it."""

from __future__ import annotations

import sys

from sea_peft.backbones.typed import Typed

# Of what MONAI takes along where it is installed, what costs most, and no network is made of it
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
    "scipy.signal",
    "skimage",
    "sklearn",
    "tensorboard",
)


def import_monai_alone(typed: Typed) -> None:
    """Import MONAI as where those packages are not installed: it runs all of its modules when it is imported, and they take along what they find,
    for two thirds of the time.

    For processes that only predict. Those modules of MONAI stay without them, so it is nothing to do to somebody's program that imports sea_peft,
    or where the user has `typed` code, which may use any of them.
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
