"""Checks a MetaImage file before ITK reads it.

ITK's reader trusts these files (SimpleITK 2.5; found by mutating headers). A wrong number of axes
or a `%` in a file name ends the whole program, damaged compressed voxels make it run for ever, and
voxels that inflate to another length than in the header corrupt memory.
"""

import math
from pathlib import Path
from typing import BinaryIO

from sea_peft.data.stored import (
    DEFLATE_MAX_RATIO,
    Stored,
    file_beside,
    inflated_bytes,
    require_holdable,
    surplus_note,
)
from sea_peft.data.wording import shown, times
from sea_peft.errors import DataError

# The number of values in each entry of a 3D header
_NUMBERS = {
    "NDims": 1, "DimSize": 3, "ElementSpacing": 3, "ElementSize": 3, "ElementNumberOfChannels": 1,
    "TransformMatrix": 9, "Rotation": 9, "Orientation": 9, "Offset": 3, "Position": 3, "Origin": 3,
    "CenterOfRotation": 3, "HeaderSize": 1, "CompressedDataSize": 1,
}  # fmt: skip
# ITK would assume 1 mm for a missing voxel size
_REQUIRED = ("NDims", "DimSize", "ElementSpacing", "ElementDataFile")
_DIRECTION = ("TransformMatrix", "Rotation", "Orientation")
_ELEMENT_BYTES = {
    "MET_CHAR": 1,
    "MET_UCHAR": 1,
    "MET_SHORT": 2,
    "MET_USHORT": 2,
    "MET_INT": 4,
    "MET_UINT": 4,
    "MET_LONG": 4,
    "MET_ULONG": 4,
    "MET_LONG_LONG": 8,
    "MET_ULONG_LONG": 8,
    "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
}
_LONGEST_LINE = 4096
_MOST_LINES = 500


def require_sound_metaimage(path: Path, unpack: bool = True) -> tuple[str, ...]:
    """What the header leaves open, each as a part of a sentence.

    Args:
        path: the file.
        unpack: whether to count compressed voxels too, rather than check the header alone.

    Raises:
        DataError: the header is wrong, or does not agree with the stored voxels.
    """
    with path.open("rb") as file:
        entries = _header(path, file)
        start = file.tell()
    missing = [key for key in _REQUIRED if key not in entries]
    if missing:
        raise DataError(f"{shown(path)} has no {missing[0]} in its header; export the scan again")
    if entries["NDims"] != "3":
        raise DataError(f"{shown(path)} has {entries['NDims'][:20]!r} axes; a 3D volume is needed")
    for key, count in _NUMBERS.items():
        if key in entries and not _are_numbers(entries[key], count):
            raise DataError(
                f"{shown(path)} has the header entry {key} = {entries[key][:60]!r}; {count} numbers"
                " are needed: export it again"
            )
    name = entries["ElementDataFile"]
    inside = name == "LOCAL" and path.suffix.lower() == ".mha"
    stored = (
        Stored(path, start)
        if inside
        else Stored(file_beside(path, name, ("LIST", "LOCAL", ""), ".mha"), 0)
    )
    surplus = _require_agreement(path, entries, stored, unpack)
    notes = [surplus_note(surplus)] if surplus else []
    if not any(key in entries for key in _DIRECTION):
        notes.append(
            "states no orientation (no TransformMatrix): its axes are taken to run to the left, to"
            " the back and up; make sure that left and right are not swapped"
        )
    return tuple(notes)


def _require_agreement(path: Path, entries: dict[str, str], stored: Stored, unpack: bool) -> int:
    """Refuse voxels of another length than the header promises. Returns the number of bytes
    behind them.
    """
    shape = [float(word) for word in entries["DimSize"].split()]
    channels, skipped = (
        float(entries.get(key, default))
        for key, default in (("ElementNumberOfChannels", "1"), ("HeaderSize", "0"))
    )
    for key, value in (*(("DimSize", n) for n in shape), ("ElementNumberOfChannels", channels)):
        if not (value == int(value) and 1 <= value <= 2**31):
            raise DataError(
                f"{shown(path)} has the header entry {key} = {entries[key][:60]!r}; export it again"
            )
    element = _ELEMENT_BYTES.get(entries.get("ElementType", ""))
    if element is None:
        raise DataError(
            f"{shown(path)} stores {entries.get('ElementType', 'no type')[:40]!r}; one integer or"
            " floating-point number a voxel is needed"
        )
    sizes = [int(n) for n in shape]
    promised = math.prod(sizes) * int(channels) * element
    if not _true(entries.get("CompressedData")):
        left = stored.size - int(max(0.0, skipped))
        if not _true(entries.get("BinaryData")):  # as text a number takes a digit and a blank
            require_holdable(path, sizes, promised, element * (left + 1) // 2)
            return 0
        require_holdable(path, sizes, promised, left)
        return left - promised if skipped >= 0 else 0  # -1: the voxels are the end of the file
    require_holdable(path, sizes, promised, DEFLATE_MAX_RATIO * stored.size)
    packed = entries.get("CompressedDataSize")
    if packed is not None and not 0 < float(packed) <= stored.size:
        raise DataError(
            f"{shown(path)} is cut short: its header promises {packed[:20]!r} compressed bytes, the"
            f" file holds {stored.size}; export the scan again"
        )
    if not unpack:
        return 0
    found = inflated_bytes(stored, promised, None if packed is None else int(float(packed)))
    if found != promised:
        count = f"over {promised}" if found > promised else str(found)
        raise DataError(
            f"{shown(path)} promises {promised} bytes of voxels ({times(sizes)}) in its header, but"
            f" {count} are stored; export the scan again"
        )
    return 0


def _true(value: str | None) -> bool:
    return (value or "")[:1] in ("T", "t", "1")


def _header(path: Path, file: BinaryIO) -> dict[str, str]:
    """The entries up to `ElementDataFile`. Leaves the file at the byte behind it."""
    entries: dict[str, str] = {}
    for _ in range(_MOST_LINES):
        key, sign, value = (
            p.strip().decode("latin-1") for p in file.readline(_LONGEST_LINE).partition(b"=")
        )
        if not sign:
            continue
        if key in entries:
            raise DataError(
                f"{shown(path)} has the header entry {key[:60]!r} twice; export the scan again"
            )
        entries[key] = value
        if key == "ElementDataFile":
            break
    return entries


def _are_numbers(text: str, count: int) -> bool:
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        return False
    return len(numbers) == count and all(math.isfinite(number) for number in numbers)
