"""Sound volumes of every format that is read, and damaged copies of them, drawn by seed."""

from __future__ import annotations

import gzip
import random
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from synthetic_scans import AFFINE, scan

from sea_peft.data.volumes import Volume, write_volume

SHAPE = (7, 6, 5)
_NUMBERS = (
    b"0",
    b"-1",
    b"1",
    b"2",
    b"3",
    b"4",
    b"7",
    b"65535",
    b"99999999",
    b"2147483648",
    b"-9223372036854775808",
    b"1e30",
    b"nan",
    b"inf",
    b"1e-30",
    b"0.5",
    b"",
    b"%d",
    b"LIST",
    b"LOCAL",
    b"../x",
    b"/dev/zero",
    b"-",
)
_WORDS = (
    b"gzip",
    b"raw",
    b"ascii",
    b"hex",
    b"bzip2",
    b"True",
    b"False",
    b"MET_DOUBLE",
    b"MET_UCHAR",
    b"double",
    b"uchar",
    b"block",
    b"big",
    b"none",
    b"list",
    b"vector",
)


def seeds(folder: Path) -> dict[str, dict[str, bytes]]:
    """Kind → file name → bytes; the first file of a kind is the one that is damaged. `folder`
    is a place to write in.
    """
    image, _ = scan(3, SHAPE)
    array = np.rint(image).astype(np.int16)
    found: dict[str, dict[str, bytes]] = {}
    for suffix in (".nii", ".nii.gz", ".nrrd", ".mha"):
        write_volume(folder / f"a{suffix}", Volume(array, AFFINE))
        found[suffix] = {f"a{suffix}": (folder / f"a{suffix}").read_bytes()}
    found["nifti2"] = {"a.nii": nibabel.Nifti2Image(array, AFFINE).to_bytes()}
    swapped = nibabel.Nifti1Header(endianness=">")
    found["big endian"] = {
        "a.nii": nibabel.Nifti1Image(array.astype(">i2"), AFFINE, swapped).to_bytes()
    }
    scaled = nibabel.Nifti1Image(array, AFFINE)
    scaled.header.set_slope_inter(0.5, 3)
    found["scaled"] = {"a.nii": scaled.to_bytes()}
    raw = array.tobytes(order="F")
    nrrd = (
        b"NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 7 6 5\nspace"
        b" directions: (1.2,0,0) (0,1,0) (0,0,2)\nkinds: domain domain domain\nendian:"
        b" little\nencoding: %s\nspace origin: (0,0,0)\nkey:=value\n"
    )
    text = b" ".join(str(v).encode() for v in array.ravel(order="F"))
    found["nrrd raw"] = {"a.nrrd": nrrd % b"raw" + b"\n" + raw}
    found["nrrd text"] = {"a.nrrd": nrrd % b"ascii" + b"\n" + text}
    found["nrrd beside"] = {"a.nhdr": nrrd % b"raw" + b"data file: a.raw\n", "a.raw": raw}
    meta = (
        b"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB ="
        b" False\nCompressedData = %s\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0"
        b" 0\nElementSpacing = 1.2 1 2\nDimSize = 7 6 5\n%sElementType = MET_SHORT\nElementDataFile"
        b" = %s\n"
    )
    packed = zlib.compress(raw)
    found["mha raw"] = {"a.mha": meta % (b"False", b"", b"LOCAL") + raw}
    found["mha packed"] = {"a.mha": meta % (b"True", b"", b"LOCAL") + packed}
    size = b"CompressedDataSize = %d\n" % len(packed)
    found["mha sized"] = {"a.mha": meta % (b"True", size, b"LOCAL") + packed}
    found["mhd beside"] = {"a.mhd": meta % (b"False", b"", b"a.raw"), "a.raw": raw}
    return found


def dicom_seed(folder: Path, series: list[Path]) -> dict[str, bytes]:
    """A series as a kind: its first slice is the one that is damaged."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in series}


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A copy with one to four things wrong with it: bytes, numbers in the text of the header,
    or the length of packed voxels.
    """
    unpack = content.startswith(b"\x1f\x8b") and draw.random() < 0.8
    inner = gzip.decompress(content) if unpack else content
    for _ in range(draw.randint(1, 4)):
        inner = draw.choice(_WAYS)(inner, draw)
    return gzip.compress(inner, 1) if unpack else inner


def _place(content: bytes, draw: random.Random) -> int:
    # headers lie in the first 420 bytes, and most harm is done there
    return draw.randrange(min(len(content), 420) + 1 if draw.random() < 0.8 else len(content) + 1)


def _replaced(content: bytes, draw: random.Random) -> bytes:
    at, new = _place(content, draw), draw.randbytes(draw.choice((1, 1, 2, 4, 8)))
    return content[:at] + new + content[at + len(new) :]


def _inserted(content: bytes, draw: random.Random) -> bytes:
    at = _place(content, draw)
    return (
        content[:at]
        + draw.choice((draw.randbytes(3), b"\n", b"\n\n", b"\0" * 64, *_NUMBERS))
        + content[at:]
    )


def _deleted(content: bytes, draw: random.Random) -> bytes:
    at = _place(content, draw)
    return content[:at] + content[at + draw.choice((1, 2, 4, 40)) :]


def _cut(content: bytes, draw: random.Random) -> bytes:
    return (
        content[: _place(content, draw)] if draw.random() < 0.5 else content[: -draw.randint(1, 40)]
    )


def _grown(content: bytes, draw: random.Random) -> bytes:
    return content + draw.choice((b"\0", draw.randbytes(40), b"\0" * 5000, content[-300:]))


def _other_token(content: bytes, draw: random.Random) -> bytes:
    """Another number or word where the text of a header has one."""
    tokens = list(re.finditer(rb"[A-Za-z0-9.+-]+", content[:420]))
    if not tokens:
        return content
    token = draw.choice(tokens)
    return content[: token.start()] + draw.choice(_NUMBERS + _WORDS) + content[token.end() :]


def _other_line(content: bytes, draw: random.Random) -> bytes:
    """A line of the header twice, away, or very long."""
    lines = content[:420].split(b"\n")
    at = draw.randrange(len(lines))
    lines[at : at + 1] = draw.choice(
        ([lines[at]] * 2, [], [lines[at] + b"x" * 70_000], [b"k%d:=v" % n for n in range(6000)])
    )
    return b"\n".join(lines) + content[420:]


def _other_length(content: bytes, draw: random.Random) -> bytes:
    """The packed voxels of a header that says otherwise: more, fewer, or a bomb."""
    at = next(
        (
            at
            for mark in (b"LOCAL\n", b"\n\n")
            if (at := content.find(mark) + len(mark)) >= len(mark)
        ),
        len(content),
    )
    packed = draw.choice((zlib.compress, gzip.compress))
    return content[:at] + packed(b"\7" * draw.choice((0, 1, 419, 421, 1 << 16, 1 << 26)), 1)


_WAYS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _replaced,
    _replaced,
    _replaced,
    _inserted,
    _deleted,
    _cut,
    _grown,
    _other_token,
    _other_token,
    _other_line,
    _other_length,
)
