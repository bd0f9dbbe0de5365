"""The adapter on disk: a folder with `adapter_config.json` and `adapter_model.safetensors`, no
pickles.

The config lists every tensor with shape and type, so that a missing, surplus or reshaped tensor is
refused. It is bound to its backbone by a hash of the backbone's tensors. It holds no paths and no
case names.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from sea_peft import atomic, documents
from sea_peft.artefacts.quality import Quality
from sea_peft.artefacts.record import ArmDice, BackboneIdentity, HeadShape, NoPaths
from sea_peft.data.recipe import Recipe
from sea_peft.data.sliding import SlidingWindow
from sea_peft.documents import Channels, Count, Labels, Name, Record, Seed, Sha256, Text
from sea_peft.errors import WeightsError

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 4
CONFIG_NAME = "adapter_config.json"
MODEL_NAME = "adapter_model.safetensors"
_LARGEST_HEADER = 64 << 20  # of a safetensors file

Upgrade = Callable[[dict[str, object]], dict[str, object]]


def _without_licence(config: dict[str, Any]) -> dict[str, Any]:
    """Upgrade from version 1, which lacked the licence of the backbone's weights and the shape of
    the head, and named levels.
    """

    def numbered(unit: dict[str, Any]) -> dict[str, Any]:
        level = unit["level"]
        return {**unit, "level": int(level.lstrip("r")) if isinstance(level, str) else level or 0}

    return {
        **config,
        "backbone": {**config["backbone"], "licence": "not stated"},
        "head": {"classes": None, "on_features": None, **config["head"]},
        "units": [numbered(unit) for unit in config["units"]],
    }


def _patch_alone(config: dict[str, object]) -> dict[str, object]:
    """Upgrade from version 2, which predicted through windows larger than its patch.

    The window is now the patch that it was trained on. Version 2 did not say either whether its
    adapter is recommended.
    """
    rest = {key: value for key, value in config.items() if key != "patch"}
    recommended = {
        "network": "adapted",
        "evidence": "not known: the sea_peft that made the adapter recommended nothing",
    }
    return {
        **rest,
        "window": {"patch": config["patch"], "overlap": 0.25},
        "recommended": recommended,
    }


def _without_quality(config: dict[str, object]) -> dict[str, object]:
    """Upgrade from version 3, which did not record what its run had seen."""
    return {**config, "quality": None}


UPGRADES: dict[int, Upgrade] = {1: _without_licence, 2: _patch_alone, 3: _without_quality}
"""Version n → function that turns a config of version n into one of version n + 1. Version 1 is
the first.
"""


PartsRule = Annotated[str, Field(pattern=r"^(largest|[1-9]\d{0,5}|min-ml=\d{1,9}(\.\d{1,9})?)$")]


class AdapterUnit(NoPaths):
    """One placed unit. `path`: module path of its site in the backbone; `cost`: number of its
    trainable parameters.
    """

    id: Name
    family: Name
    level: Annotated[int, Field(ge=0, le=65535)]
    placement: Annotated[str, Field(max_length=256)]
    path: Name
    cost: Count


class Recommendation(NoPaths):
    """The network that predictions use by default, and the evidence for it in words."""

    network: Literal["adapted", "unadapted"]
    evidence: Text


class TensorSpec(Record):
    """Shape and type (torch's name, without `torch.`) of one stored tensor."""

    shape: Annotated[tuple[Count, ...], Field(max_length=8)]
    dtype: Name


class AdapterConfig(NoPaths):
    """`adapter_config.json`.

    `labels`: name → codes, in the order of the output rows; no codes for a label that the backbone
    knows and nobody drew (`adapt --add-label`). `quality`: null in adapters of version 3 and
    before. `keep`: label → which connected parts of its masks are kept; all if it is not named.
    `begun_from`: sha256 of the tensors of the adapter that the run began with; null if it began
    without one. `tensors`: filled in on saving.
    """

    format_version: int = FORMAT_VERSION
    sea_peft_version: Name
    backbone: BackboneIdentity
    labels: Labels
    channels: Channels
    recipe: Recipe
    window: SlidingWindow
    head: HeadShape
    units: Annotated[list[AdapterUnit], Field(max_length=100_000)]
    dice: ArmDice
    recommended: Recommendation
    policy: Name
    seed: Seed
    shots: Annotated[int, Field(ge=0, le=10**6)]
    quality: Quality | None = None
    keep: dict[Name, PartsRule] = Field(default_factory=dict)
    begun_from: Sha256 | None = None
    tensors: dict[Name, TensorSpec] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _agree(self) -> AdapterConfig:
        rows, classes = [row for row in self.head.rows if row is not None], self.head.classes
        if len(self.head.rows) != len(self.labels):
            raise ValueError(
                f"head.rows has {len(self.head.rows)} rows for {len(self.labels)} labels"
            )
        if nowhere := [
            name
            for (name, codes), row in zip(self.labels.items(), self.head.rows, strict=True)
            if not codes and row is None
        ]:
            raise ValueError(f"label {nowhere[0]} has neither codes nor a row of the backbone")
        if odd := [label for label in self.keep if label not in self.labels]:
            raise ValueError(f"keep names {odd[0]}, which is no label")
        if len(set(rows)) < len(rows):
            raise ValueError("head.rows gives one row of the backbone to two labels")
        if classes is not None and max(rows, default=0) >= classes:
            raise ValueError(f"head.rows names row {max(rows)}, and the backbone has {classes}")
        if len({unit.id for unit in self.units}) < len(self.units):
            raise ValueError("units names one unit twice")
        return self


def save_adapter(
    folder: Path,
    config: AdapterConfig,
    tensors: Mapping[str, torch.Tensor],
    *,
    report: str | None = None,
    trace: Path | None = None,
) -> AdapterConfig:
    """Write the adapter folder as a whole: it is built beside its place and then renamed.

    Args:
        folder: the adapter folder; replaces an adapter that is there.
        config: everything but `tensors`, which is filled in from `tensors`.
        tensors: name → tensor, of any shape and device.
        report: text of `report.md`, to be written beside it.
        trace: trace file, to be copied beside it as `trace.jsonl`.

    Returns:
        The config as written.

    Raises:
        DiskError: the disk is full or the place is not writable. Nothing is left half-written.
    """
    from safetensors.torch import save

    stored = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    specs = {name: _spec(tensor) for name, tensor in stored.items()}
    config = config.model_copy(update={"tensors": specs})
    building = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    replaced = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    with atomic.writing(folder):
        try:
            building.mkdir()
            atomic.write_text(building / CONFIG_NAME, config.model_dump_json(indent=2) + "\n")
            # one metadata key only: safetensors writes several in random order, and adapters are
            # compared by bytes
            atomic.write_bytes(building / MODEL_NAME, save(stored, metadata={"format": "pt"}))
            if report is not None:
                atomic.write_text(building / "report.md", report)
            if trace is not None:
                atomic.write_bytes(building / "trace.jsonl", trace.read_bytes())
            if folder.exists():
                os.rename(folder, replaced)
            os.rename(building, folder)
            atomic.sync_folder(folder.parent)
        finally:
            if replaced.exists() and not folder.exists():
                os.rename(replaced, folder)
            shutil.rmtree(building, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)
    return config


def load_adapter_files(folder: Path) -> tuple[AdapterConfig, dict[str, torch.Tensor]]:
    """Read an adapter folder, strictly.

    Returns:
        The config, and name → tensor on the CPU.

    Raises:
        WeightsError: a file is missing or damaged, the version is unknown, or a tensor is missing,
            surplus or of another shape or type.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    config = read_adapter_config(folder)
    values = sum(math.prod(spec.shape) for spec in config.tensors.values())
    if (folder / MODEL_NAME).is_file() and (
        folder / MODEL_NAME
    ).stat().st_size > 8 * values + _LARGEST_HEADER:
        raise WeightsError(
            f"{folder / MODEL_NAME} is larger than the tensors that {CONFIG_NAME} lists: copy the"
            " adapter again."
        )
    try:
        tensors = load(_read(folder, MODEL_NAME))
    except SafetensorError as error:
        raise WeightsError(
            f"{folder / MODEL_NAME} is damaged ({error}): copy the adapter again."
        ) from error
    for name, tensor in sorted(tensors.items()):
        if not torch.isfinite(tensor).all():
            raise WeightsError(
                f"{folder / MODEL_NAME}: tensor {name!r} holds NaN or infinity; copy the adapter"
                " again."
            )
    for name in sorted(config.tensors.keys() | tensors.keys()):
        if name not in tensors:
            raise WeightsError(
                f"{folder / MODEL_NAME} lacks the tensor {name!r} that {CONFIG_NAME} lists."
            )
        if name not in config.tensors:
            raise WeightsError(
                f"{folder / MODEL_NAME} holds the tensor {name!r} that {CONFIG_NAME} does not list."
            )
        found, listed = _spec(tensors[name]), config.tensors[name]
        if found != listed:
            raise WeightsError(
                f"{folder / MODEL_NAME}: tensor {name!r} is {found.dtype} {list(found.shape)} "
                f"but {CONFIG_NAME} says {listed.dtype} {list(listed.shape)}."
            )
    return config, tensors


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read `adapter_config.json` of an adapter folder, of this or an older version.

    Raises:
        WeightsError: there is none, or no sea_peft up to this one writes it like that.
    """
    if not folder.is_dir():
        raise WeightsError(
            f"There is no adapter folder {folder}: give the folder that holds {CONFIG_NAME}."
        )
    path = folder / CONFIG_NAME
    try:
        found = documents.upgraded(
            documents.load(_read(folder, CONFIG_NAME)), UPGRADES, FORMAT_VERSION
        )
        return documents.check(AdapterConfig, found)
    except documents.Invalid as error:
        raise WeightsError(f"{path}: {error}; copy the adapter again.") from error


def _spec(tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))


def _read(folder: Path, name: str) -> bytes:
    try:
        return (
            documents.read_bytes(folder / name)
            if name == CONFIG_NAME
            else (folder / name).read_bytes()
        )
    except OSError as error:
        raise WeightsError(
            f"{folder} has no readable {name} ({error.strerror}): copy the adapter again."
        ) from error
