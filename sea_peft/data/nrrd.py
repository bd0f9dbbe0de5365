"""Checks a NRRD file before ITK reads it.

ITK's reader (SimpleITK 2.5) follows a `data file:` wherever it points, ends the whole program at a
line of some megabytes or a long word among voxels in text, and takes a time that grows with the
square of the number of keys.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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

# Source of names and rules: https://teem.sourceforge.net/nrrd/format.html
_TYPE_BYTES = {
    1: ("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t", "char"),
    2: (
        "short",
        "short int",
        "signed short",
        "signed short int",
        "int16",
        "int16_t",
        "ushort",
        "unsigned short",
        "unsigned short int",
        "uint16",
        "uint16_t",
    ),
    4: (
        "int",
        "signed int",
        "int32",
        "int32_t",
        "uint",
        "unsigned int",
        "uint32",
        "uint32_t",
        "float",
    ),
    8: (
        "longlong",
        "long long",
        "long long int",
        "signed long long",
        "signed long long int",
        "int64",
        "int64_t",
        "ulonglong",
        "unsigned long long",
        "unsigned long long int",
        "uint64",
        "uint64_t",
        "double",
    ),
}
_BYTES = {name: size for size, names in _TYPE_BYTES.items() for name in names}
_RAW, _GZIP, _TEXT, _HEX = ("raw",), ("gzip", "gz"), ("ascii", "text", "txt"), ("hex",)
_MAGIC = re.compile(rb"NRRD000[1-5]\s*$")
# Slicer's segmentations have long lines and eight keys a segment
_LONGEST_LINE = 1 << 16
_MOST_LINES = 5000
_MOST_AXES = 16
_LONGEST_WORD = 64
_CHUNK = 1 << 20
# Directions that ITK converts to its own; it treats all others as the first
_SPACES = (
    "left-posterior-superior",
    "lps",
    "right-anterior-superior",
    "ras",
    "left-anterior-superior",
    "las",
)


@dataclass(frozen=True)
class NrrdHeader:
    """The header of a NRRD file.

    Attributes:
        fields: name, in lower case and without blanks → value.
        keys: the file's own `key:=value` entries.
        end: bytes before the voxels, if they follow the header.
    """

    fields: Mapping[str, str]
    keys: Mapping[str, str]
    end: int


def read_nrrd_header(path: Path) -> NrrdHeader:
    """The header alone. Raises `DataError` if it is none, or too long."""
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    with path.open("rb") as file:
        if not _MAGIC.match(file.readline(16)):
            raise DataError(
                f"{shown(path)} is not a NRRD file (wrong magic bytes); export the scan again or"
                " rename it"
            )
        for line in _lines(path, file):
            key, sign, value = line.partition(":=")
            if sign:
                keys[key.strip()] = value.strip()
                continue
            name, sign, value = line.partition(":")
            name = name.lower().replace(" ", "")
            if not sign:
                raise DataError(
                    f"{shown(path)} has the header line {line[:60]!r}, which says nothing; export"
                    " the scan again"
                )
            if name in fields:
                raise DataError(
                    f"{shown(path)} has the header entry {name[:60]!r} twice; export the scan again"
                )
            fields[name] = value.strip()
        return NrrdHeader(fields, keys, file.tell())


def require_sound_nrrd(path: Path, unpack: bool = True) -> tuple[str, ...]:
    """What the header leaves open, each as a part of a sentence.

    Args:
        path: the file.
        unpack: whether to count compressed voxels too, rather than check the header alone.

    Raises:
        DataError: the header is wrong, names voxels elsewhere, or does not agree with the stored
            voxels.
    """
    header = read_nrrd_header(path)
    fields = header.fields
    for name in ("type", "dimension", "sizes", "encoding"):
        if name not in fields:
            raise DataError(f"{shown(path)} has no {name!r} in its header; export the scan again")
    sizes = _sizes(path, fields)
    element = _BYTES.get(fields["type"].lower())
    if element is None:
        raise DataError(
            f"{shown(path)} stores {fields['type'][:40]!r}; one integer or floating-point number a"
            " voxel is needed"
        )
    stored = _stored(path, header)
    promised = math.prod(sizes) * element
    packed = _require_holdable(path, fields, sizes, promised, element, stored.size)
    surplus: int | None = 0
    if packed and unpack:
        surplus = _packed_surplus(path, sizes, promised, stored)
    elif fields["encoding"].lower() in _RAW and not _skips(fields):
        surplus = stored.size - promised
    elif fields["encoding"].lower() in _TEXT and unpack:
        _require_short_words(path, stored)
    notes = [] if surplus == 0 else [surplus_note(surplus)]
    return (*notes, *_left_open(fields))


def _require_holdable(
    path: Path,
    fields: Mapping[str, str],
    sizes: list[int],
    promised: int,
    element: int,
    stored: int,
) -> bool:
    """Refuse more voxels than the file can hold. Returns whether they are compressed."""
    encoding = fields["encoding"].lower()
    packed = encoding in _GZIP
    if packed:
        most = DEFLATE_MAX_RATIO * stored
    elif encoding in _RAW:
        most = stored
    elif encoding in _HEX:  # two digits a byte
        most = stored // 2
    elif encoding in _TEXT:  # a digit and a blank
        most = element * (stored + 1) // 2
    else:
        raise DataError(
            f"{shown(path)} is stored as {fields['encoding'][:40]!r}, which is not read; export it"
            " with gzip or without compression"
        )
    require_holdable(path, sizes, promised, most)
    if packed and _skips(fields):
        raise DataError(
            f"{shown(path)} skips lines or bytes before packed voxels, which is not read; export it"
            " again"
        )
    return packed


def _skips(fields: Mapping[str, str]) -> bool:
    return "lineskip" in fields or "byteskip" in fields


def _packed_surplus(path: Path, sizes: list[int], promised: int, stored: Stored) -> int | None:
    """Bytes behind the voxels in a compressed stream: 0, or None for some number that was not
    counted. Refuses a stream that holds fewer bytes than the header promises.
    """
    found = inflated_bytes(stored, promised)
    if found < promised:
        raise DataError(
            f"{shown(path)} is cut short: its header promises {promised} bytes of voxels"
            f" ({times(sizes)}), but {found} are stored; export the scan again"
        )
    return None if found > promised else 0


def _require_short_words(path: Path, stored: Stored) -> None:
    """Refuse text that holds no numbers: a very long word crashes ITK."""
    with stored.opened() as file:
        before = b""
        while chunk := file.read(_CHUNK):
            text = before + chunk
            if re.search(rb"[^\s,]{%d}" % _LONGEST_WORD, text):
                raise DataError(
                    f"{shown(path)} holds no numbers where its voxels should stand; export the scan"
                    " again"
                )
            before = text[-_LONGEST_WORD:]


def _left_open(fields: Mapping[str, str]) -> Iterator[str]:
    """What the header does not say about the position of the voxels, and what is assumed
    instead.
    """
    space, directions = fields.get("space", ""), fields.get("spacedirections")
    if directions is None and "spacings" not in fields:
        yield "states no voxel size (neither 'space directions' nor 'spacings'): 1 mm is taken"
    if not space or directions is None:
        what = "'space'" if not space else "'space directions'"
        yield (
            f"states no orientation (no {what}): its axes are taken to run to the left, to the back"
            " and up; make sure that left and right are not swapped"
        )
    elif space.lower() not in _SPACES:
        yield (
            f"lies in the space {space[:40]!r}, which says nothing about the body; it is taken for"
            " left-posterior-superior"
        )
    if space and "spaceorigin" not in fields:
        yield "states no origin: the first voxel is taken to lie at 0, 0, 0 mm"
    units = [
        unit for unit in re.findall(r'"([^"]*)"', fields.get("spaceunits", "")) if unit.strip()
    ]
    odd = next(
        (unit for unit in units if unit.strip().lower() not in ("mm", "millimeter", "millimeters")),
        None,
    )
    if odd is not None:
        yield f"gives its places in {odd[:20]!r}, which are taken for millimetres"


def _lines(path: Path, file: BinaryIO) -> Iterator[str]:
    """The lines between the magic and the empty line, without comments."""
    for _ in range(_MOST_LINES):
        raw = file.readline(_LONGEST_LINE)
        if len(raw) == _LONGEST_LINE:
            raise DataError(
                f"{shown(path)} has a header line of over {_LONGEST_LINE} characters; export the"
                " scan again"
            )
        line = raw.rstrip(b"\r\n").decode("utf-8", errors="replace")
        if not line:
            return
        if not line.startswith("#"):
            yield line
    raise DataError(f"{shown(path)} has over {_MOST_LINES} header lines; export the scan again")


def _sizes(path: Path, fields: Mapping[str, str]) -> list[int]:
    words = fields["sizes"].split()
    if (
        not re.fullmatch(r"\d{1,2}", fields["dimension"])
        or not 1 <= int(fields["dimension"]) <= _MOST_AXES
    ):
        raise DataError(
            f"{shown(path)} has {fields['dimension'][:20]!r} axes; a 3D volume is needed"
        )
    if len(words) != int(fields["dimension"]) or not all(
        re.fullmatch(r"[1-9]\d{0,9}", word) for word in words
    ):
        raise DataError(
            f"{shown(path)} has the header entry sizes = {fields['sizes'][:60]!r};"
            f" {fields['dimension']} whole numbers are needed: export it again"
        )
    return [int(word) for word in words]


def _stored(path: Path, header: NrrdHeader) -> Stored:
    """The voxels: in the one file beside the header that it names, or behind the header."""
    name = header.fields.get("datafile")
    if name is None and path.suffix.lower() == ".nhdr":
        raise DataError(f"{shown(path)} names no data file; export the scan as .nrrd")
    if name is None:
        return Stored(path, header.end)
    lists = (name,) if name.upper().startswith("LIST") else ()
    return Stored(file_beside(path, name, ("", "-", ".", "..", *lists), ".nrrd"), 0)
