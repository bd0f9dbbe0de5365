"""NRRD and MetaImage files through SimpleITK, which works in LPS; affines here are RAS+."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sea_peft.data.capture_stdout import capture_stdout
from sea_peft.data.metaimage import require_sound_metaimage
from sea_peft.data.nrrd import require_sound_nrrd
from sea_peft.data.wording import in_plain_words, shown
from sea_peft.errors import DataError

if TYPE_CHECKING:
    import SimpleITK as sitk

_META_SUFFIXES = (".mha", ".mhd")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# What ITK says of volumes that it reads rightly: places are judged by our own checks, and bytes
# behind the voxels are counted before. It goes on after damage too ("Uncompress failed"), so
# anything else is damage.
_HARMLESS = re.compile(
    r"Non uniform sampling or missing slices detected|finished reading raw data, but file not"
    r" at EOF"
)


def read_itk(path: Path, vector: bool = False) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Voxels `[I, J, K]`, RAS+ affine, and notes on what the header leaves open or ITK warned of.

    Args:
        path: the file.
        vector: whether to take several values per voxel; they come last, `[I, J, K, C]`.

    Raises:
        DataError: header and voxels do not agree, or ITK reports an error.
        Exception: whatever SimpleITK raises for damaged files.
    """
    import SimpleITK as sitk

    left_open = _require_sound(path)
    said: list[str] = []
    with capture_stdout(said):
        image = _read(path, vector)
        array = sitk.GetArrayFromImage(image)
    notes = (*left_open, *harmless(path, said))
    array = array.transpose(2, 1, 0, 3) if array.ndim == 4 else array.transpose(2, 1, 0)
    lps = np.eye(4)
    lps[:3, :3] = np.asarray(image.GetDirection()).reshape(3, 3) * np.asarray(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    return array, _LPS_TO_RAS @ lps, notes


def harmless(path: Path, said: Sequence[str]) -> list[str]:
    """ITK's warnings about a volume, as notes. Raises `DataError` for any that is not known to
    be harmless.
    """
    for sentence in said:
        if not _HARMLESS.search(sentence):
            raise DataError(
                f"{shown(path)} is damaged, or of a kind that ITK does not read ({sentence});"
                " export the scan again"
            )
    return [f"was read with a warning ({sentence})" for sentence in said]


def itk_grid(path: Path) -> tuple[Sequence[int], Sequence[float]]:
    """Shape and voxel size in mm, without reading the voxels."""
    _require_sound(path, unpack=False)
    reader = _reader(path)
    with capture_stdout([]):
        reader.ReadImageInformation()
    return reader.GetSize(), reader.GetSpacing()


def _require_sound(path: Path, unpack: bool = True) -> tuple[str, ...]:
    look_through = (
        require_sound_metaimage if path.suffix.lower() in _META_SUFFIXES else require_sound_nrrd
    )
    return look_through(path, unpack)


def _read(path: Path, vector: bool) -> sitk.Image:
    image = _reader(path).Execute()
    shape, components = image.GetSize(), image.GetNumberOfComponentsPerPixel()
    if components > 1 and not vector:
        raise DataError(
            f"{shown(path)} holds {components} values per voxel; one is needed: export each channel"
            " or segment as its own file"
        )
    if len(shape) != 3:
        raise DataError(f"{shown(path)} {in_plain_words(shape)}")
    return image


def _reader(path: Path) -> sitk.ImageFileReader:
    """ITK's reader for the format that was checked, and no other that would accept the file."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO" if path.suffix.lower() in _META_SUFFIXES else "NrrdImageIO")
    reader.SetFileName(str(path))
    return reader


def write_itk(
    path: Path,
    array: np.ndarray,
    affine: np.ndarray,
    like: Path | None,
    keys: Mapping[str, str] | None = None,
) -> None:
    """Write compressed voxels with the affine, or with the exact geometry of the file `like`.
    `keys`: further entries of the header.
    """
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    if like is not None:
        reader = _reader(like)
        reader.ReadImageInformation()
        spacing, direction, origin = reader.GetSpacing(), reader.GetDirection(), reader.GetOrigin()
    else:
        lps = _LPS_TO_RAS @ affine
        lengths = np.sqrt((lps[:3, :3] ** 2).sum(axis=0))
        spacing, origin = lengths.tolist(), lps[:3, 3].tolist()
        direction = (lps[:3, :3] / lengths).ravel().tolist()
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    image.SetOrigin(origin)
    for key, value in (keys or {}).items():
        image.SetMetaData(key, value)
    sitk.WriteImage(image, str(path), useCompression=True)
