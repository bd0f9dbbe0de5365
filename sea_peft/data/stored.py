"""Compares what a volume's header promises with what its file holds, before any voxel is read.

A small file can promise, or inflate to, more than memory holds. So the header is read first, and
compressed voxels are inflated no further than it promises.
"""

import contextlib
import zlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sea_peft.data.wording import shown, times
from sea_peft.errors import DataError

DEFLATE_MAX_RATIO = 1100  # deflate cannot pack tighter than about 1032:1
MOST_BYTES = 4 << 30  # of stored voxels; a CT of 1024×1024×2000 voxels takes them
_CHUNK = 1 << 20
_ZLIB_OR_GZIP = 47  # zlib's code for telling the two apart by itself
_GZIP_MAGIC = b"\x1f\x8b"


def require_holdable(
    path: Path, shape: Iterable[int], promised: int, stored: int | None = None
) -> None:
    """Refuse a header that promises more bytes than the limit, or than the file can hold.

    Args:
        path: the file, for the sentence.
        shape: its voxels, for the sentence.
        promised: bytes of voxels according to the header.
        stored: the most bytes that the file can hold once uncompressed; None if that is checked
            elsewhere.
    """
    if stored is not None and promised > stored:
        raise DataError(
            f"{shown(path)} is cut short: its header promises {promised} bytes of voxels"
            f" ({times(shape)}), the file holds {stored} at most; export the scan again"
        )
    if promised > MOST_BYTES:
        raise DataError(
            f"{shown(path)} promises {promised / 2**30:.1f} GiB of voxels ({times(shape)}), more"
            f" than the {MOST_BYTES >> 30} GiB that are taken; crop or resample the scan"
        )


@dataclass(frozen=True)
class Stored:
    """The place of voxels: in `file`, from byte `start` on."""

    file: Path
    start: int

    @property
    def size(self) -> int:
        """Bytes from there to the end of the file."""
        return self.file.stat().st_size - self.start

    @contextlib.contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The file, opened at the first voxel."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            yield file


def file_beside(path: Path, name: str, no_names: Collection[str], whole: str) -> Path:
    """The one file beside a header that holds its voxels. Raises `DataError` if the name is of no
    such file.

    Args:
        path: the header.
        name: as it is written there.
        no_names: words that have another meaning there.
        whole: the suffix of files that hold both.
    """
    if set(name) & set("%/\\\0") or name in no_names or not (path.parent / name).is_file():
        raise DataError(
            f"{shown(path)} names {name[:60]!r} as its data file; one file beside it is needed:"
            f" export it as {whole}"
        )
    return path.parent / name


def inflated_bytes(stored: Stored, most: int, packed_bytes: int | None = None) -> int:
    """Number of bytes in a zlib or gzip stream, counted no further than `most` + 1.

    Args:
        stored: its place.
        most: where counting may end.
        packed_bytes: length of the stream; None for the rest of the file.

    Raises:
        DataError: the stream is damaged or cut short.
    """
    stream = zlib.decompressobj(_ZLIB_OR_GZIP)
    count, left = 0, packed_bytes

    def more() -> bytes:
        nonlocal left
        chunk = file.read(_CHUNK if left is None else min(left, _CHUNK))
        left = None if left is None else left - len(chunk)
        return chunk

    try:
        with stored.opened() as file:
            packed = more()
            while packed and count <= most:
                count += len(stream.decompress(packed, _CHUNK))
                if not stream.eof:
                    packed = stream.unconsumed_tail or more()
                elif stream.unused_data.startswith(_GZIP_MAGIC):  # gzip files may be concatenated
                    packed, stream = stream.unused_data, zlib.decompressobj(_ZLIB_OR_GZIP)
                else:
                    return count
    except zlib.error:
        count = -1
    if count > most:
        return most + 1
    raise DataError(
        f"{shown(stored.file)} holds damaged or incomplete compressed voxels; export the scan again"
    )


def surplus_note(surplus: int | None) -> str:
    """The note about bytes behind the voxels that the header does not mention; None if they
    were not counted.
    """
    count = "more bytes" if surplus is None else f"{surplus} bytes more"
    return (
        f"holds {count} than its header promises, which are not read; make sure that the whole scan"
        " is there"
    )
