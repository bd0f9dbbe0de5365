"""MONAI bundles: `configs/metadata.json` describes a network's inputs and outputs,
`configs/inference.json` (or `.yaml`) how scans are prepared.

Both are read and nothing in them is run, so a value that an expression (`$…`) computes counts as
unknown. The transforms of the inference are taken over if a recipe can do the same; otherwise the
user is told.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from sea_peft import documents
from sea_peft.backbones.checkpoints import Checkpoint
from sea_peft.backbones.keymaps.monai import idle
from sea_peft.backbones.keymaps.origin import Known, Origin, Said, keep
from sea_peft.data.recipe import Recipe
from sea_peft.errors import WeightsError

_DEEPEST = 8  # references to references, and lists of transforms in lists of transforms
_UNSAID = object()
_ENDINGS = (".json", ".yaml", ".yml")  # of configurations, as MONAI reads them
_NEUTRAL = frozenset(
    (
        "LoadImage",
        "EnsureChannelFirst",
        "AddChannel",
        "AsChannelFirst",
        "EnsureType",
        "ToTensor",
        "CastToType",
        "ToDevice",
        "SelectItems",
        "CropForeground",
        "SpatialPad",
        "DivisiblePad",
        "Orientation",
        "Spacing",
    )
)
_SCALINGS = frozenset(
    (
        "ScaleIntensityRange",
        "ScaleIntensityRangePercentiles",
        "ScaleIntensity",
        "NormalizeIntensity",
    )
)
_BY_SCAN = frozenset(
    ("ScaleIntensity", "NormalizeIntensity")
)  # each undoes whatever factor and offset came before it

Transform = tuple[str, Said]
"""Name and arguments."""


def _document(checkpoint: Checkpoint, name: str) -> tuple[Said, tuple[str, ...]]:
    """A configuration of the checkpoint's bundle, JSON or YAML, and a sentence if it cannot be
    read.

    {} if there is none that can be read. The checkpoint lies in the bundle as `models/model.pt`.
    """
    configs = checkpoint.file.parent.parent / "configs"
    path = next((found for end in _ENDINGS if (found := configs / f"{name}{end}").is_file()), None)
    if path is None:
        return {}, ()
    try:
        read = (
            documents.load(documents.read_bytes(path))
            if path.suffix == ".json"
            else documents.load_yaml(path)
        )
    except (OSError, ValueError) as error:
        return {}, (f"The bundle's {path.name} is not taken into account: {error}.",)
    return (read, ()) if isinstance(read, dict) else ({}, ())


def _metadata(checkpoint: Checkpoint) -> Said:
    read, _ = _document(checkpoint, "metadata")
    return read if "monai_version" in read else {}


def _named(described: object) -> tuple[str, ...] | None:
    """Names of `channel_def`, in the order of their numbers."""
    names = described.get("channel_def") if isinstance(described, dict) else None
    if (
        not isinstance(names, dict)
        or sorted(names) != sorted(map(str, range(len(names))))
        or not names
    ):
        return None
    return tuple(str(names[str(i)]) for i in range(len(names)))


def _size(sides: object) -> tuple[int, int, int] | None:
    """Three sides of a patch, None for anything else."""
    if (
        not isinstance(sides, list)
        or len(sides) != 3
        or not all(type(n) is int and 8 <= n <= 1024 for n in sides)
    ):
        return None
    return sides[0], sides[1], sides[2]


def _resolved(value: object, config: Said) -> Any:
    """A value, following a reference (`@name`, `@name#name`); `_UNSAID` for an expression or
    nothing.
    """
    for _ in range(_DEEPEST):
        if not isinstance(value, str) or value[:1] not in ("@", "$"):
            return value
        if value[0] == "$":
            return _UNSAID
        found: object = config
        for part in value[1:].replace("::", "#").split("#"):
            found = found.get(part, _UNSAID) if isinstance(found, dict) else _UNSAID
        value = found
    return _UNSAID


def _transforms(listed: object, config: Said, depth: int = 0) -> Iterator[Transform]:
    """Name and arguments of the transforms that change the image, without the suffix of those
    that work on dictionaries.
    """
    listed = _resolved(listed, config)
    if depth > _DEEPEST or isinstance(listed, str):
        return
    if isinstance(listed, list):
        for one in listed:
            yield from _transforms(one, config, depth + 1)
    elif isinstance(listed, dict) and isinstance(listed.get("_target_"), str):
        name = re.sub(r"(?<=[a-z])(d|D|Dict)$", "", listed["_target_"].rpartition(".")[2])
        if name == "Compose":
            yield from _transforms(listed.get("transforms"), config, depth + 1)
        elif _resolved(listed.get("keys"), config) not in ("label", ["label"]):
            yield name, {key: _resolved(value, config) for key, value in listed.items()}


def _geometry(transforms: list[Transform]) -> tuple[Said, tuple[str, ...]]:
    """The recipe's orientation and spacing, as far as given, and sentences about parts that are
    not taken over.
    """
    found: Said = {}
    for name, said in transforms:
        if name == "Orientation" and isinstance(said.get("axcodes"), str):
            found["orientation"] = said["axcodes"]
        if name == "Spacing":
            pixdim = said.get("pixdim")
            if not isinstance(pixdim, list):
                pixdim = [pixdim] * 3
            if len(pixdim) != 3 or not all(type(mm) in (int, float) and mm > 0 for mm in pixdim):
                return found, (
                    "How large its voxels are is computed there, or left as the scan has it.",
                )
            if len(set(pixdim)) > 1 and "orientation" not in found:
                return found, (
                    (
                        "Its voxels' sides are those along the axes that a scan is stored in, which"
                        " no recipe has."
                    ),
                )
            found["spacing"] = [float(mm) for mm in pixdim]
    return found, ()


def _scaled(name: str, said: Said) -> tuple[Said, Any, Any, tuple[str, ...]] | None:
    """The recipe's `intensity` for this scaling, what the network gets for its 0 and its 1, and
    notes for the user; None if no recipe scales like that.
    """
    low, high = said.get("b_min"), said.get("b_max")
    notes: tuple[str, ...] = ()
    if name == "NormalizeIntensity":
        if said.get("subtrahend") is not None or said.get("divisor") is not None:
            return None
        if said.get("nonzero") is not True:
            notes = (
                (
                    "The bundle's z-scores were taken over whole scans; here they are taken over"
                    " the foreground of each."
                ),
            )
        return {"kind": "zscore"}, 0.0, 1.0, notes
    if name == "ScaleIntensity":
        if said.get("factor") is not None:
            return None
        return (
            {"kind": "percentile", "low": 0.0, "high": 100.0},
            said.get("minv", 0.0),
            said.get("maxv", 1.0),
            (),
        )
    low, high = (0.0, 1.0) if low is None and high is None else (low, high)
    if said.get("clip") is not True:
        notes = ("The bundle does not clip grey values beyond its range; here they are.",)
    if name == "ScaleIntensityRange":
        return (
            {"kind": "window", "low": said.get("a_min"), "high": said.get("a_max")},
            low,
            high,
            notes,
        )
    if said.get("relative") is True:
        return None
    notes = (
        *notes,
        (
            "The bundle's percentiles were taken over whole scans; here they are taken over the"
            " foreground of each."
        ),
    )
    return (
        {"kind": "percentile", "low": said.get("lower"), "high": said.get("upper")},
        low,
        high,
        notes,
    )


def _grey_values(transforms: list[Transform]) -> tuple[Said, Said, tuple[str, ...]]:
    """The recipe's intensity and the network's settings, both {} if the bundle gives none that a
    recipe can do; and sentences.
    """
    strange = [name for name, _ in transforms if name not in _NEUTRAL | _SCALINGS]
    notes = (
        (f"The bundle's preprocessing also has {', '.join(strange)}, which no recipe does.",)
        if strange
        else ()
    )
    steps = [(name, said) for name, said in transforms if name in _SCALINGS]
    while len(steps) > 1 and steps[0][0] in _BY_SCAN and steps[1][0] in _BY_SCAN:
        del steps[0]
    if not steps:
        return {}, {}, notes
    scaled = _scaled(*steps[0]) if len(steps) == 1 else None
    if scaled is None:
        listed = " and then ".join(name for name, _ in steps)
        return (
            {},
            {},
            (
                *notes,
                (
                    f"The bundle scales grey values by {listed} in a way that no recipe does; give"
                    " the intensity."
                ),
            ),
        )
    intensity, low, high, more = scaled
    numbers = [low, high, *(value for key, value in intensity.items() if key != "kind")]
    if not all(type(number) in (int, float) for number in numbers):
        return (
            {},
            {},
            (
                *notes,
                f"How far {steps[0][0]} scales is computed in the bundle; give the intensity.",
            ),
        )
    settings = (
        {"input_factor": high - low, "input_offset": low} if (low, high) != (0.0, 1.0) else {}
    )
    return intensity, settings, (*notes, *more)


def _prepared(config: Said) -> tuple[Said, Said, tuple[str, ...]]:
    """The content of the inference's transforms: a partial recipe, settings of the network, and
    sentences.
    """
    transforms = list(_transforms(config.get("preprocessing"), config))
    recipe, notes = _geometry(transforms)
    intensity, settings, more = _grey_values(transforms)
    if intensity:
        recipe["intensity"] = intensity
    return recipe, settings, (*notes, *more)


def _network(config: Said, backbone: str) -> Said:
    """Settings of the architecture in `network_def` that leave no trace in tensors."""
    defined = _resolved(config.get("network_def"), config)
    heads = _resolved(defined.get("num_heads", 12), config) if isinstance(defined, dict) else None
    return (
        {"num_heads": heads}
        if backbone == "unetr" and type(heads) is int and 1 <= heads <= 256
        else {}
    )


def _know(checkpoint: Checkpoint, backbone: str) -> Known:
    """The MONAI version of a bundle decides the order of patch merging of a SwinUNETR."""
    metadata, (config, unread) = _metadata(checkpoint), _document(checkpoint, "inference")
    found, settings, notes = _prepared(config)
    notes = (*unread, *notes)
    try:
        recipe = documents.check(Recipe, found)
    except documents.Invalid as error:
        raise WeightsError(
            f"{checkpoint.file.name}: its bundle's preprocessing is not as MONAI reads it"
            f" ({error})."
        ) from error
    version = re.match(r"(\d{1,4})\.(\d{1,4})", str(metadata.get("monai_version", "")))
    if backbone == "swinunetr" and version is not None:
        settings["merging"] = (
            "monai<1.5" if (int(version[1]), int(version[2])) < (1, 5) else "monai>=1.5"
        )
    inferer = _resolved(config.get("inferer"), config)
    roi = _size(_resolved(inferer.get("roi_size"), config)) if isinstance(inferer, dict) else None
    known = Known(
        recipe=recipe, patch=roi, settings=settings | _network(config, backbone), notes=notes
    )
    try:
        data = metadata["network_data_format"]
        image, pred = data["inputs"]["image"], data["outputs"]["pred"]
        outputs, channels, shape = _named(pred), _named(image), image.get("spatial_shape")
    except (KeyError, TypeError, AttributeError):
        return known
    if channels == ("image",) and isinstance(image.get("modality"), str):
        channels = (image["modality"],)
    labels = (
        outputs[1:] if outputs and outputs[0].lower() == "background" and len(outputs) > 1 else None
    )
    return dataclasses.replace(known, labels=labels, channels=channels, patch=_size(shape) or roi)


BUNDLE = Origin(
    name="monai-bundle",
    about="a MONAI bundle (its configs/metadata.json lies beside models/)",
    backbones=(),
    recognises=lambda checkpoint: bool(_metadata(checkpoint)),
    rename=keep,
    know=_know,
    idle=idle,
)
