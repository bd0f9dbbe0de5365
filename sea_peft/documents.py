"""Reads documents from files: JSON of a bounded size whose every field is checked. Also the parts
that several documents share, and one sentence for any fault.

A card, an adapter's config, a run's config, its result and its trace are `Record`s: strict types,
no unknown fields, no NaN, and a range for every number. Nothing that reads through here looks a
name up as code or as a path.
"""

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
import pydantic_core
import yaml
from pydantic import AfterValidator, Field, JsonValue, StringConstraints

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

MOST_BYTES = 16 << 20
_LARGEST_BY_HAND = 1 << 20
_MOST_ITEMS = 1_000_000
_MOST_NAMED = 120  # characters of a stranger's key in a sentence
_LARGEST_SETTING = 8192
_MOST_SETTINGS = 256
_MOST_PATCH = 1 << 26

STRICT = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Invalid(ValueError):
    """A document is not valid. The message says where and why, without a full stop."""


class Record(pydantic.BaseModel):
    """Base of documents in files: exact types, known fields, finite numbers."""

    model_config = STRICT


def _codes_once(labels: dict[str, list[int]]) -> dict[str, list[int]]:
    codes = [code for of_label in labels.values() for code in of_label]
    twice = (
        next((code for code in codes if codes.count(code) > 1), None)
        if len(set(codes)) < len(codes)
        else None
    )
    if twice is not None:
        raise ValueError(f"code {twice} stands twice, and a voxel carries one label")
    return labels


def _names_once(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("a name stands twice")
    return names


def _holdable(patch: tuple[int, int, int]) -> tuple[int, int, int]:
    if math.prod(patch) > _MOST_PATCH:
        raise ValueError(
            f"a patch of {math.prod(patch):,} voxels is larger than any network takes at once"
        )
    return patch


def _small(value: T, left: int = _MOST_SETTINGS) -> T:
    """Settings of a network, unchanged, unless they could take all memory or time to build."""
    waiting: list[object] = [value]
    while waiting:
        found = waiting.pop()
        left -= 1
        if left < 0:
            raise ValueError(f"more than {_MOST_SETTINGS} values")
        if isinstance(found, Mapping):
            waiting += [*found.keys(), *found.values()]
        elif isinstance(found, list):
            waiting += found
        elif isinstance(found, str) and len(found) > 200:
            raise ValueError("a text of more than 200 characters")
        elif isinstance(found, int) and abs(found) > _LARGEST_SETTING:
            raise ValueError(f"a whole number beyond ±{_LARGEST_SETTING}")
        elif isinstance(found, float) and not abs(found) <= 1e6:
            raise ValueError("a number beyond ±1e6")
    return value


def _few(facts: dict[str, Any]) -> dict[str, Any]:
    """Remarks that nothing depends on, unchanged."""
    if len(pydantic_core.to_json(facts)) > 65536:
        raise ValueError("more than 64 KiB of remarks")
    return facts


Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Text = Annotated[str, StringConstraints(max_length=4096)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# a registered architecture, or the module:factory that was typed when the network was built; read
# from a file it is compared, never imported
ArchitectureName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z_][\w.-]*(:[A-Za-z_]\w*)?$", max_length=256)
]
WeightsName = Annotated[
    str, StringConstraints(pattern=r"^[^/\\\x00-\x1f\x7f-\x9f]+$", max_length=256)
]
Count = Annotated[int, Field(ge=0, le=10**12)]
Parameters = Annotated[int, Field(ge=1, le=10**12)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, Field(ge=-1e9, le=1e9)]
Dice = Annotated[float, Field(ge=0, le=1)]
Duration = Annotated[float, Field(ge=0, le=1e9)]
# a label without codes is drawn nowhere in the data: a network knows it
Labels = Annotated[
    dict[Name, Annotated[list[Annotated[int, Field(ge=1, le=65535)]], Field(max_length=65535)]],
    Field(min_length=1, max_length=254),
    AfterValidator(_codes_once),
]
Channels = Annotated[list[Name], Field(min_length=1, max_length=64), AfterValidator(_names_once)]
_Side = Annotated[int, Field(ge=1, le=4096)]
Patch = Annotated[tuple[_Side, _Side, _Side], AfterValidator(_holdable)]
Settings = Annotated[dict[Name, JsonValue], AfterValidator(_small)]
Facts = Annotated[dict[str, Any], AfterValidator(_few)]


def load(data: bytes) -> Any:
    """JSON types of a document. Raises Invalid if it is no JSON, too deep, too large, or holds
    NaN.
    """
    bounded(data)
    try:
        return pydantic_core.from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise Invalid(f"it is not JSON ({str(error)[:_MOST_NAMED]})") from error


def load_toml(path: Path) -> dict[str, object]:
    """A TOML document that a user wrote by hand. Raises OSError, and Invalid if it is no TOML, too
    deep or too large.
    """
    data = read_bytes(path, _LARGEST_BY_HAND)
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Invalid(f"it is not valid TOML: {said}") from error


class _PlainLoader(yaml.SafeLoader):
    """Loads plain data without references: a few lines of references to references can stand for
    more than any memory holds.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise Invalid("it repeats parts by reference (*name), which is not read")
        return super().compose_node(parent, index)


def load_yaml(path: Path) -> Any:
    """JSON types of a YAML document that a user wrote by hand.

    Raises OSError, and Invalid if it is no YAML, too deep or too large, or holds references or tags
    that make objects.
    """
    data = read_bytes(path, _LARGEST_BY_HAND)
    try:
        return pydantic_core.from_json(pydantic_core.to_json(yaml.load(data, _PlainLoader)))
    except Invalid:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = (
            "nested too deeply"
            if isinstance(error, RecursionError)
            else " ".join(str(error).split())[:_MOST_NAMED]
        )
        raise Invalid(f"it is not valid YAML: {said}") from error


def bounded(data: bytes, most: int = MOST_BYTES) -> bytes:
    """The data of one document. Raises Invalid if it is larger than any that this program writes:
    checking it could take all memory.
    """
    if len(data) > most:
        raise Invalid(f"it is larger than {most >> 20} MiB")
    if data.count(b",") > _MOST_ITEMS:
        raise Invalid(f"it holds more than {_MOST_ITEMS:,} values")
    return data


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """A file of bounded size. Raises OSError, and Invalid if it is larger."""
    with path.open("rb") as file:
        return bounded(file.read(most + 1), most)


def as_json(value: object) -> Any:
    """`value` in JSON types: records, dataclasses and mappings as objects, sequences as lists,
    NaN and infinity as null, the rest as text.
    """
    return pydantic_core.to_jsonable_python(
        value, inf_nan_mode="null", fallback=lambda v: dict(v) if isinstance(v, Mapping) else str(v)
    )


def _plain(value: object) -> dict[object, object]:
    """The JSON form of a mapping that is no dict (such as a read-only view)."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def check(kind: type[T], value: object) -> T:
    """`value`, of JSON types or mappings of them, as `kind`. Raises Invalid."""
    try:
        data = pydantic_core.to_json(value, fallback=_plain)
    except (ValueError, TypeError) as error:
        raise Invalid(f"it holds what JSON cannot ({str(error)[:_MOST_NAMED]})") from error
    return check_json(kind, data)


def check_json(kind: type[T], data: bytes) -> T:
    """A JSON document as `kind`. Raises Invalid."""
    bounded(data)
    try:
        return _adapter(kind).validate_json(data)
    except pydantic.ValidationError as error:
        raise Invalid(complaint(error)) from error


_ADAPTERS: dict[Any, pydantic.TypeAdapter[Any]] = {}


def _adapter(kind: type[T]) -> pydantic.TypeAdapter[T]:
    """The validator of a kind, made once: a trace has thousands of lines of a dozen kinds."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = pydantic.TypeAdapter(kind)
    return _ADAPTERS[kind]


def complaint(error: pydantic.ValidationError) -> str:
    """Where and what the first fault is, on one line, without a full stop."""
    if error.error_count() > 1000:
        return f"{error.error_count():,} fields are not as they should be"
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(_key(part) for part in first["loc"])
    what = first["msg"].removeprefix("Value error, ")[: 2 * _MOST_NAMED].rstrip(".")
    return " ".join((f"{where}: {what}" if where else what).split())


def _key(part: object) -> str:
    """A field's name, or a stranger's key as far as it can be shown."""
    text = str(part)
    return text if text.isprintable() and len(text) <= _MOST_NAMED else ascii(text)[:_MOST_NAMED]


def upgraded(
    document: object,
    steps: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]],
    current: int,
    first: int | None = None,
) -> dict[str, Any]:
    """A document brought up to version `current`, one step of the table at a time.

    `first`: the version of documents that state none. Raises Invalid if there is no version, or one
    that the table does not reach.
    """
    if not isinstance(document, dict):
        raise Invalid("it is not a JSON object")
    version = document.get("format_version", first)
    if type(version) is not int or version < 1:
        raise Invalid(f"format_version is {ascii(version)[:_MOST_NAMED]}, not a version number")
    if version > current:
        raise Invalid(
            f"it has format version {version} but this sea_peft reads up to {current}: install a"
            " newer sea_peft"
        )
    for step in range(version, current):
        try:
            document = {**steps[step](document), "format_version": step + 1}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise Invalid(
                f"it is not as an older sea_peft wrote it ({str(error)[:_MOST_NAMED]})"
            ) from error
    return document
