"""Looking through a MetaImage file before ITK does.

ITK's reader trusts these files: a wrong number of axes or a `%` in a file name ends the whole program, and damaged
compressed voxels make it run for ever (SimpleITK 2.5; found by mutating headers).
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import BinaryIO

from sea_peft.data.wording import shown
from sea_peft.errors import DataError

# How many numbers each entry of a 3D header has
_NUMBERS = {
    "NDims": 1, "DimSize": 3, "ElementSpacing": 3, "ElementSize": 3, "ElementNumberOfChannels": 1,
    "TransformMatrix": 9, "Rotation": 9, "Orientation": 9, "Offset": 3, "Position": 3, "Origin": 3,
    "CenterOfRotation": 3,
}  # fmt: skip
# ITK would take a missing voxel size for 1 mm
_REQUIRED = ("NDims", "DimSize", "ElementSpacing", "ElementDataFile")
_LONGEST_LINE = 4096
_MOST_LINES = 500
_CHUNK = 1 << 20
_ZLIB_OR_GZIP = 47  # zlib's code for telling the two apart by itself


def require_sound_metaimage(path: Path) -> None:
    """Raise `DataError` for a header that is wrong or compressed voxels that are damaged."""
    with path.open("rb") as file:
        entries = _header(path, file)
        missing = [key for key in _REQUIRED if key not in entries]
        if missing:
            raise DataError(f"{shown(path)} has no {missing[0]} in its header; export the scan again")
        if entries["NDims"] != "3":
            raise DataError(f"{shown(path)} has {entries['NDims'][:20]} axes; a 3D volume is needed")
        for key, count in _NUMBERS.items():
            if key in entries and not _are_numbers(entries[key], count):
                raise DataError(
                    f"{shown(path)} has the header entry {key} = {entries[key][:60]}; {count} numbers are needed: "
                    "export it again"
                )
        data = _data_file(path, entries["ElementDataFile"])
        if entries.get("CompressedData", "")[:1] in ("T", "t", "1"):
            if data is None:
                _require_sound_stream(path, file)
            else:
                with data.open("rb") as beside:
                    _require_sound_stream(data, beside)


def _header(path: Path, file: BinaryIO) -> dict[str, str]:
    """The entries up to `ElementDataFile`, behind which the file stands then."""
    entries: dict[str, str] = {}
    for _ in range(_MOST_LINES):
        key, sign, value = (p.strip().decode("latin-1") for p in file.readline(_LONGEST_LINE).partition(b"="))
        if not sign:
            continue
        if key in entries:
            raise DataError(f"{shown(path)} has the header entry {key} twice; export the scan again")
        entries[key] = value
        if key == "ElementDataFile":
            break
    return entries


def _data_file(path: Path, name: str) -> Path | None:
    """The one file beside the header that holds the voxels, or None when they follow the header."""
    if name == "LOCAL" and path.suffix.lower() == ".mha":
        return None
    plain = not set(name) & set("%/\\\0") and name not in ("LIST", "LOCAL", "")
    if not plain or not (path.parent / name).is_file():
        raise DataError(
            f"{shown(path)} names {name[:60]!r} as its data file; one file beside it is needed: export it as .mha"
        )
    return path.parent / name


def _are_numbers(text: str, count: int) -> bool:
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        return False
    return len(numbers) == count and all(math.isfinite(number) for number in numbers)


def _require_sound_stream(path: Path, file: BinaryIO) -> None:
    stream = zlib.decompressobj(_ZLIB_OR_GZIP)
    try:
        while not stream.eof and (packed := file.read(_CHUNK)):
            while packed and not stream.eof:
                stream.decompress(packed, 64 * _CHUNK)
                packed = stream.unconsumed_tail
    except zlib.error:
        pass  # told by `eof`
    if not stream.eof:
        raise DataError(f"{shown(path)} holds damaged compressed voxels; export the scan again")
