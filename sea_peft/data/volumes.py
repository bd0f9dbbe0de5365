"""Reading and writing one 3D volume: NIfTI through nibabel, NRRD and MetaImage through SimpleITK.

A volume keeps the file's own axis order; its affine maps voxel indices to millimetres in RAS+
(nibabel's convention; NRRD and MetaImage are converted from LPS). Whatever cannot be read is a
`DataError` of one sentence.
"""

import gzip
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sea_peft.data.itk import itk_grid, read_itk, write_itk
from sea_peft.data.nifti import nifti_grid, read_nifti, write_nifti
from sea_peft.data.wording import count, in_plain_words, shown, times
from sea_peft.errors import DataError, refusing

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
SUFFIXES = NIFTI_SUFFIXES + ITK_SUFFIXES
WRITABLE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")


@dataclass(frozen=True, eq=False)
class Volume:
    """One 3D volume.

    Attributes:
        array: `[I, J, K]` in the file's own axis order, any real dtype.
        affine: 4×4 float64, voxel index → millimetres, RAS+.
        notes: the reader's assumptions and warnings, each a part of a sentence.
    """

    array: np.ndarray
    affine: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along the three array axes."""
        i, j, k = self.array.shape
        return i, j, k

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in millimetres along the three array axes."""
        i, j, k = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0)).tolist()
        return i, j, k


def volume_suffix(path: Path) -> str | None:
    """The volume suffix that `path` ends with (lower case), or None if it is no volume's name."""
    name = path.name.lower()
    return next((s for s in SUFFIXES if name.endswith(s) and len(name) > len(s)), None)


def volume_stem(path: Path) -> str:
    """The file name without its volume suffix.

    Examples:
        >>> volume_stem(Path("scans/a.nii.gz"))
        'a'
    """
    suffix = volume_suffix(path)
    return path.name[: -len(suffix)] if suffix else path.stem


def read_volume(path: Path | str, component: int | None = None, of: int = 1) -> Volume:
    """Read one volume.

    Voxel values are not judged here: the checks find NaN, and count it.

    Args:
        path: a `.nii`, `.nii.gz`, `.nrrd`, `.nhdr`, `.mha` or `.mhd` file.
        component: the channel to take from a file with several; None for a 3D file.
        of: number of channels that such a file is declared to hold.

    Raises:
        DataError: the file is missing, damaged, not three-dimensional, holds other channels than
            declared, or its header makes no sense.
    """
    path = Path(path)
    suffix = volume_suffix(path)
    if suffix is None:
        raise DataError(
            f"{shown(path)} is not a volume: the name must end in one of {', '.join(SUFFIXES)}"
        )
    _require_file(path)
    with refusing(
        DataError,
        lambda e: (
            f"{shown(path)} cannot be read as {suffix} ({_reason(e)}); export it again or take the"
            " case out"
        ),
    ):
        if suffix in NIFTI_SUFFIXES:
            array, affine, notes = read_nifti(path)
        else:
            array, affine, notes = read_itk(path, vector=component is not None)
    array = _one_volume(path, array, component, of)
    _require_sane(path, array, affine)
    return Volume(array, affine, notes)


def header_grid(path: Path) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Shape and voxel size in mm of a volume's first three axes, from its header alone. Raises
    `DataError`.
    """
    _require_file(path)
    with refusing(
        DataError,
        lambda e: f"{shown(path)} has a header that cannot be read ({_reason(e)}); export it again",
    ):
        shape, spacing = (nifti_grid if volume_suffix(path) in NIFTI_SUFFIXES else itk_grid)(path)
        (i, j, k), (x, y, z) = shape[:3], spacing[:3]
    return (int(i), int(j), int(k)), (float(x), float(y), float(z))


def write_volume(path: Path | str, volume: Volume, like: Path | str | None = None) -> None:
    """Write `volume` atomically: the file appears whole or not at all.

    Args:
        path: target; the suffix (`.nii`, `.nii.gz`, `.nrrd`, `.mha`) decides the format.
        volume: what to write.
        like: the input scan. If it is of the same format family, its geometry fields are copied
            verbatim, so that both files report the identical affine. Free text of its header is
            never copied.

    Raises:
        DataError: the suffix is unknown, or writing fails.
    """
    path = Path(path)
    suffix = volume_suffix(path)
    if suffix not in WRITABLE_SUFFIXES:
        raise DataError(
            f"cannot write {shown(path)}: the name must end in one of"
            f" {', '.join(WRITABLE_SUFFIXES)}"
        )
    like = Path(like) if like is not None else None
    if like is not None and (volume_suffix(like) in NIFTI_SUFFIXES) != (suffix in NIFTI_SUFFIXES):
        like = None
    array = _storable(volume.array)
    try:
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as building:
            made = Path(building) / f"volume{suffix}"
            write = write_nifti if suffix in NIFTI_SUFFIXES else write_itk
            write(made, array, volume.affine, like)
            made.replace(path)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"cannot write {shown(path)} ({_reason(error)}); check free space and permissions"
        ) from error


def _require_file(path: Path) -> None:
    try:
        size = path.stat().st_size
        is_file = path.is_file()
    except FileNotFoundError:
        raise DataError(
            f"{shown(path)} does not exist; check the path or take the case out"
        ) from None
    except OSError as error:
        raise DataError(
            f"{shown(path)} cannot be opened ({_reason(error)}); check the link or the permissions"
        ) from error
    if not is_file:
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise DataError(f"{shown(path)} is {what}, not a volume; give the file itself")
    if size == 0:
        raise DataError(
            f"{shown(path)} is empty (0 bytes); export the scan again or take the case out"
        )


def _reason(error: BaseException) -> str:
    """One short line; ITK's own messages run over several lines and repeat source paths."""
    text = str(error)
    if isinstance(error, MemoryError) or "allocate memory" in text:
        return "it claims more voxels than memory can hold"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
        return "the gzip stream is damaged or cut short"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "itk" in text:
        lines = [line.rpartition(": ")[2] for line in lines if line.startswith("[nrrd]")]
        return lines[-1][:120] if lines else "its header or its data are damaged"
    return lines[-1][:120] if lines else type(error).__name__


def _one_volume(path: Path, array: np.ndarray, component: int | None, of: int) -> np.ndarray:
    if array.ndim == 5 and array.shape[3] == 1:
        array = array[:, :, :, 0]  # X, Y, Z, 1, C: how ITK and ANTs write channels
    found = array.shape[3] if array.ndim == 4 else 1
    if component is not None and found != of and array.ndim <= 4:
        raise DataError(
            f"{shown(path)} holds {count(found, 'channel')}, but {of} are declared; correct the"
            " channel names in the JSON file, or list one file per channel"
        )
    if component is not None and array.ndim == 4:
        return array[..., component]
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise DataError(f"{shown(path)} {in_plain_words(array.shape)}")
    return array


def _require_sane(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    if array.dtype.kind not in "buif":
        raise DataError(
            f"{shown(path)} stores {array.dtype} voxels; real numbers are needed (one grey value"
            " per voxel)"
        )
    if min(array.shape) < 1:
        raise DataError(
            f"{shown(path)} has no voxels (shape {times(array.shape)}); export the scan again"
        )
    axes = affine[:3, :3]
    with np.errstate(over="ignore"):
        lengths = np.sqrt((axes**2).sum(axis=0)) if np.isfinite(affine).all() else np.zeros(3)
    # Unit axes: their determinant is the cell's skewness whatever the spacing
    if not (lengths > 1e-6).all() or abs(np.linalg.det(axes / lengths)) < 1e-3:
        raise DataError(
            f"{shown(path)} has an unusable orientation or voxel size in its header; export the"
            " scan again"
        )


def _storable(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if array.dtype == np.int64:  # not every NIfTI reader takes 64-bit integers
        return array.astype(np.int32)
    return array
