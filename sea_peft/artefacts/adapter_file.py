"""The adapter on disk: a folder with `adapter_config.json` and `adapter_model.safetensors`, no pickles.

The config lists every tensor with shape and type, so that a missing, surplus or reshaped tensor is refused;
and it is bound to its backbone by a hash of the backbone's tensors. It holds no paths and no case names.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sea_peft.artefacts import atomic
from sea_peft.artefacts.privacy import paths_in
from sea_peft.data.sliding import SlidingWindow
from sea_peft.errors import WeightsError

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 3
CONFIG_NAME = "adapter_config.json"
MODEL_NAME = "adapter_model.safetensors"

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]


def _without_licence(config: dict[str, Any]) -> dict[str, Any]:
    """Version 1 did not say under which licence the backbone's weights may be used."""
    return {**config, "backbone": {**config["backbone"], "licence": "not stated"}}


def _patch_alone(config: dict[str, Any]) -> dict[str, Any]:
    """Version 2 recorded the patch and predicted through larger windows; what it was trained with is what it gets now. It did not say whether
    its adapter is to be used."""
    rest = {key: value for key, value in config.items() if key != "patch"}
    recommended = {
        "network": "adapted",
        "evidence": "not known: the sea_peft that made the adapter recommended nothing",
    }
    return {**rest, "window": {"patch": config["patch"], "overlap": 0.25}, "recommended": recommended}


UPGRADES: dict[int, Upgrade] = {1: _without_licence, 2: _patch_alone}
"""Version n → function that turns a config of version n into one of version n + 1. Version 1 is the first."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _NoPaths(_Strict):
    @field_validator("*", mode="after")
    @classmethod
    def _refuse_paths(cls, value: Any) -> Any:
        for text in paths_in(value):
            raise ValueError(f"holds a path ({text!r}); an adapter names things, it does not say where they lie")
        return value


class BackboneIdentity(_NoPaths):
    """Which backbone the adapter belongs to. `weights` is a name; `sha256` is the hash of the backbone's
    tensors; `licence` that of its weights, which an adapter made from them may have to keep."""

    architecture: str
    kwargs: dict[str, Any]
    weights: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    parameters: int = Field(ge=1)
    licence: str = "not stated"

    @field_validator("licence", mode="before")
    @classmethod
    def _name_no_place(cls, licence: Any) -> Any:
        """A licence given as an address or a file stays where it was given."""
        return "see the card of the weights" if any(paths_in(licence)) else licence


class AdapterUnit(_NoPaths):
    """One placed unit. `path` is the module path of its site in the backbone; `cost` its trainable
    parameters."""

    id: str
    family: str
    level: int | float | str | None
    placement: str | None
    path: str
    cost: int = Field(ge=0)


class DiceSummary(_Strict):
    """Mean Dice on the test cases, or by leave-one-out, when the adapter was made; null where an arm could not be scored."""

    unadapted: float | None
    head_only: float | None
    adapted: float | None


class Recommendation(_NoPaths):
    """Which network predictions use unless asked otherwise, and on what evidence, in words."""

    network: Literal["adapted", "unadapted"]
    evidence: str


class TensorSpec(_Strict):
    """Shape and type (as torch names it, without `torch.`) of one stored tensor."""

    shape: tuple[int, ...]
    dtype: str


class AdapterConfig(_NoPaths):
    """`adapter_config.json`. `labels`: name → codes in the order of the output rows; `tensors` is filled in
    on saving."""

    format_version: int = FORMAT_VERSION
    sea_peft_version: str
    backbone: BackboneIdentity
    labels: dict[str, list[int]]
    channels: list[str]
    recipe: dict[str, Any]
    window: SlidingWindow
    head: dict[str, Any]
    units: list[AdapterUnit]
    dice: DiceSummary
    recommended: Recommendation
    policy: str
    seed: int
    shots: int = Field(ge=0)
    tensors: dict[str, TensorSpec] = Field(default_factory=dict)


def save_adapter(
    folder: Path,
    config: AdapterConfig,
    tensors: Mapping[str, torch.Tensor],
    *,
    report: str | None = None,
    trace: Path | None = None,
) -> AdapterConfig:
    """Write the adapter folder whole: it is built beside its place and renamed into it.

    Args:
        folder: the adapter folder; an adapter that lies there is replaced.
        config: everything but `tensors`, which is filled in from `tensors`.
        tensors: name → tensor, of any shape and device.
        report: text of `report.md` to put beside.
        trace: trace file to copy beside as `trace.jsonl`.

    Returns:
        The config as written.

    Raises:
        DeviceError: the disk is full or the place is not writable; nothing is left half-written.
    """
    from safetensors.torch import save

    folder = Path(folder)
    stored = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    specs = {name: _spec(tensor) for name, tensor in stored.items()}
    config = config.model_copy(update={"tensors": specs})
    building = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    replaced = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    with atomic.writing(folder):
        try:
            building.mkdir()
            atomic.write_text(building / CONFIG_NAME, config.model_dump_json(indent=2) + "\n")
            # one metadata key only: safetensors writes several in random order, and adapters are compared by
            # bytes
            atomic.write_bytes(building / MODEL_NAME, save(stored, metadata={"format": "pt"}))
            if report is not None:
                atomic.write_text(building / "report.md", report)
            if trace is not None:
                atomic.write_bytes(building / "trace.jsonl", Path(trace).read_bytes())
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


def load_adapter_files(
    folder: Path, *, backbone_sha256: str | None = None
) -> tuple[AdapterConfig, dict[str, torch.Tensor]]:
    """Read an adapter folder, strictly.

    Args:
        folder: the adapter folder.
        backbone_sha256: hash of the tensors of the backbone at hand; another one in the config is refused.

    Returns:
        The config, and name → tensor on the CPU.

    Raises:
        WeightsError: a file is missing or damaged, the version is unknown, a tensor is missing, surplus or of
            another shape or type, or the adapter belongs to another backbone.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder)
    config = read_adapter_config(folder)
    if backbone_sha256 is not None and backbone_sha256 != config.backbone.sha256:
        raise WeightsError(
            f"{folder} was made for {config.backbone.architecture} with weights {config.backbone.weights!r} "
            f"(hash {config.backbone.sha256[:12]}) but the backbone at hand has hash {backbone_sha256[:12]}: "
            "load the weights it was made for."
        )
    try:
        tensors = load(_read(folder, MODEL_NAME))
    except SafetensorError as error:
        raise WeightsError(f"{folder / MODEL_NAME} is damaged ({error}): copy the adapter again.") from error
    for name in sorted(config.tensors.keys() | tensors.keys()):
        if name not in tensors:
            raise WeightsError(f"{folder / MODEL_NAME} lacks the tensor {name!r} that {CONFIG_NAME} lists.")
        if name not in config.tensors:
            raise WeightsError(f"{folder / MODEL_NAME} holds the tensor {name!r} that {CONFIG_NAME} does not list.")
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
        WeightsError: there is none, or it is not as this or an older sea_peft writes it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise WeightsError(f"There is no adapter folder {folder}: give the folder that holds {CONFIG_NAME}.")
    path = folder / CONFIG_NAME
    try:
        data = json.loads(_read(folder, CONFIG_NAME))
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON ({error}): copy the adapter again.") from error
    if not isinstance(data, dict):
        raise WeightsError(f"{path} is not a JSON object: copy the adapter again.")
    try:
        return AdapterConfig.model_validate(upgrade(data, UPGRADES, FORMAT_VERSION, str(path)))
    except (KeyError, TypeError) as error:
        raise WeightsError(f"{path} is not as an older sea_peft wrote it ({error}): copy the adapter again.") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "document"
        raise WeightsError(f"{path}: {field}: {first['msg']}.") from error


def upgrade(data: dict[str, Any], steps: Mapping[int, Upgrade], current: int, name: str) -> dict[str, Any]:
    """Bring a config up to version `current`, one step of the table at a time.

    Raises:
        WeightsError: the version is missing, newer than `current`, or older than the table reaches.
    """
    version = data.get("format_version")
    if type(version) is not int or version < 1:
        raise WeightsError(f"{name}: format_version is {version!r}, not a version number: this is not an adapter.")
    if version > current:
        raise WeightsError(
            f"{name} has format version {version} but this sea_peft reads up to {current}: install a newer sea_peft."
        )
    for step in range(version, current):
        data = {**steps[step](data), "format_version": step + 1}
    return data


def _spec(tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise WeightsError(f"{folder} has no readable {name} ({error.strerror}): copy the adapter again.") from error
