"""NRRD and MetaImage files through SimpleITK, which works in LPS; affines here are RAS+."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sea_peft.data.chatter import captured
from sea_peft.data.metaimage import require_sound_metaimage
from sea_peft.data.wording import shown, times
from sea_peft.errors import DataError

_META_SUFFIXES = (".mha", ".mhd")
_DETACHED_SUFFIXES = (".nhdr", ".mhd")  # header and voxels in two files
_DEFLATE_MAX_RATIO = 1100  # deflate cannot pack tighter than about 1032:1
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_itk(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Voxels `[I, J, K]`, RAS+ affine, and what ITK warned of. Raises whatever SimpleITK raises for damaged files."""
    notes: list[str] = []
    with captured(notes):
        array, affine = _read(path)
    return array, affine, tuple(f"was read with a warning ({note})" for note in notes)


def itk_grid(path: Path) -> tuple[Sequence[int], Sequence[float]]:
    """Shape and voxel size in mm, without reading the voxels."""
    import SimpleITK as sitk

    if path.suffix.lower() in _META_SUFFIXES:
        require_sound_metaimage(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with captured([]):
        reader.ReadImageInformation()
    return reader.GetSize(), reader.GetSpacing()


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK as sitk

    if path.suffix.lower() in _META_SUFFIXES:
        require_sound_metaimage(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    shape = reader.GetSize()
    if reader.GetNumberOfComponents() > 1:
        raise DataError(
            f"{shown(path)} holds {reader.GetNumberOfComponents()} values per voxel; one is needed: "
            "export each channel or segment as its own file"
        )
    if len(shape) != 3:
        raise DataError(f"{shown(path)} has {len(shape)} axes ({times(shape)}); a 3D volume is needed")
    stored = sum(file.stat().st_size for file in _data_files(path))
    if math.prod(shape) > _DEFLATE_MAX_RATIO * stored:
        raise DataError(
            f"{shown(path)} is cut short: its header promises {times(shape)} voxels, the file holds {stored} "
            "bytes; export the scan again"
        )
    image = reader.Execute()
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    lps = np.eye(4)
    lps[:3, :3] = np.asarray(image.GetDirection()).reshape(3, 3) * np.asarray(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    return array, _LPS_TO_RAS @ lps


def _data_files(path: Path) -> list[Path]:
    """The files that can hold the voxels: the file itself, or all beside a header of a detached format."""
    if path.suffix.lower() not in _DETACHED_SUFFIXES:
        return [path]
    same_stem = [file for file in path.parent.iterdir() if file.stem == path.stem and file.is_file()]
    return same_stem if len(same_stem) > 1 else [file for file in path.parent.iterdir() if file.is_file()]


def write_itk(path: Path, array: np.ndarray, affine: np.ndarray, like: Path | None) -> None:
    """Write compressed voxels with the affine, or with the exact geometry of the file `like`."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    if like is not None:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(like))
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
    sitk.WriteImage(image, str(path), useCompression=True)
