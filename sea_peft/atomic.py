"""Writes files whole or not at all, and says in one sentence why if it cannot."""

import contextlib
import errno
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from sea_peft.errors import DiskError

PRIVATE = 0o600
_REASONS = {
    errno.ENOSPC: "the disk is full: free some space there, or have it written elsewhere",
    errno.EDQUOT: "the disk quota is used up: free some space there, or have it written elsewhere",
    errno.EACCES: "permission is denied: make the folder writable, or have it written elsewhere",
    errno.EPERM: "permission is denied: make the folder writable, or have it written elsewhere",
    errno.EFBIG: (
        "the file would be larger than is allowed here: raise the limit (`ulimit -f`), or have it"
        " written elsewhere"
    ),
    errno.EROFS: "the file system is read-only: have it written elsewhere",
    errno.ENOTDIR: "a part of that path is a file, not a folder: have it written elsewhere",
    errno.ENOENT: "its folder does not exist (any more): have it written elsewhere",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` while writing `path` into a `DiskError` of one sentence."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(
            error.errno or 0, f"{error.strerror or error}: have it written elsewhere"
        )
        raise DiskError(f"Cannot write {path}: {reason}.") from error


def make_folder(folder: Path) -> None:
    """Make the folder if it does not exist. Raises DiskError."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, beside `out`. It becomes `out` on success, and is removed on failure.
    Raises DiskError.
    """
    make_folder(out.parent)
    with writing(out):
        building = unfinished(out)
        building.mkdir()
    try:
        yield building
        with writing(out):
            os.rename(building, out)
            sync_folder(out.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut, if the platform can (Windows cannot
    open folders).
    """
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left while writing into `folder`.

    These are dot files and folders `.<name>.<pid>.tmp`, and `.old` where something was being
    replaced.

    Raises:
        DiskError: they cannot be removed.
    """
    with writing(folder):
        for path in (*folder.glob(".*.tmp"), *folder.glob(".*.old")):
            _remove(path)


def unfinished(path: Path) -> Path:
    """The place where this process makes `path` before it is renamed. Removes what killed
    processes left there.
    """
    remove_unfinished(path)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_unfinished(path: Path) -> None:
    """Remove what processes left that were killed while they made `path`."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        pid = left.name.removeprefix(f".{path.name}.").removesuffix(
            ".tmp"
        )  # no number where it is of `<path>.<more>`
        if pid.isdigit() and not _alive(int(pid)):
            _remove(left)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


def write_bytes(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write `data` to `path` so that readers see the old file or the whole new one, also after a
    crash. `instead`: as for `writing`; `mode`: who may read it, less what the umask forbids
    (`PRIVATE`: its owner alone).

    Raises:
        DiskError: the disk is full or the place is not writable; `path` is then as it was.
    """
    with writing(path):
        temporary = unfinished(path)
        try:
            with open(
                temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)
            ) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """`write_bytes` of `text` in UTF-8."""
    write_bytes(path, text.encode("utf-8"), mode)
