"""brainchop's MeshNets (Masoud et al. 2023, JOSS): a state dict, and beside it `model.json` with
dilations and activation, which leave no trace in tensors.

They take a T1-weighted head at 1 mm, 256 voxels per side, with axes left, inferior, anterior, and
grey values divided by a high percentile. Some name their classes in `colormap.json`.
"""

from typing import Any

from sea_peft import documents
from sea_peft.backbones.checkpoints import Checkpoint
from sea_peft.backbones.keymaps.origin import Known, Origin, Said, keep
from sea_peft.backbones.label_names import read_label_names
from sea_peft.data.recipe import Percentile, Recipe
from sea_peft.errors import UsageError

_MOST_BYTES = 1 << 20
_RECIPE = Recipe(
    orientation="LIA", spacing=(1.0, 1.0, 1.0), intensity=Percentile(low=0.0, high=99.5)
)
_PATCH = (128, 128, 128)


def _described(checkpoint: Checkpoint) -> object:
    """`model.json` in the checkpoint's folder; None if there is none that can be read."""
    path = checkpoint.file.parent / "model.json"
    try:
        return documents.load(documents.read_bytes(path, _MOST_BYTES))
    except (OSError, ValueError):
        return None


def _settings(described: Any) -> Said:
    """Dilations and activation from `model.json`; {} if the file is not laid out as brainchop
    writes it.
    """
    try:
        kernels = [layer["kernel_size"] for layer in described["layers"]]
        dilations = [layer["dilation"] for layer in described["layers"]]
    except (KeyError, TypeError):
        return {}
    if kernels != [3] * (len(kernels) - 1) + [1] or not all(
        type(d) is int and 1 <= d <= 64 for d in dilations
    ):
        return {}
    return {
        "dilations": dilations[:-1],
        "activation": "elu" if described.get("elu") is True else "relu",
    }


def _labels(checkpoint: Checkpoint, classes: int) -> tuple[str, ...] | None:
    """The names in `colormap.json`, if it has one for every class."""
    try:
        names = read_label_names(checkpoint.file.parent / "colormap.json")
    except UsageError:
        return None
    return names if len(names) == classes - 1 else None


def _know(checkpoint: Checkpoint, _backbone: str) -> Known:
    last = max(
        (key for key in checkpoint.tensors if key.endswith(".weight")),
        key=lambda key: int(key.split(".")[1]),
    )
    labels = _labels(checkpoint, len(checkpoint.tensors[last]))
    settings = _settings(_described(checkpoint))
    notes = ["Dilations and activation are those of the model.json beside it."] if settings else []
    if labels:
        notes.append("Labels are those of the colormap.json beside it.")
    return Known(
        labels=labels,
        channels=("T1",),
        recipe=_RECIPE,
        patch=_PATCH,
        settings=settings,
        notes=tuple(notes),
    )


def _is_brainchops(checkpoint: Checkpoint) -> bool:
    """By the names of its tensors and the model.json beside them; another's MeshNet can have
    the same names.
    """
    parts = [key.split(".") for key in checkpoint.tensors]
    return bool(_settings(_described(checkpoint))) and all(
        len(part) == 3
        and part[0] == "model"
        and part[1].isdigit()
        and part[2] in ("weight", "bias")
        for part in parts
    )


BRAINCHOP = Origin(
    name="brainchop",
    about="brainchop's MeshNets, Masoud et al. 2023, github.com/neuroneural/brainchop",
    backbones=("meshnet",),
    recognises=_is_brainchops,
    rename=keep,
    know=_know,
)
