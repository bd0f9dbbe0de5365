"""NRRD and MetaImage files through SimpleITK, which works in LPS; affines here are RAS+."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from sea_peft.data.wording import shown, times
from sea_peft.errors import DataError

_META_SUFFIXES = (".mha", ".mhd")
_META_HEADER_BYTES = 1 << 16
# How many numbers each entry of a 3D MetaImage header has
_META_NUMBERS = {
    "NDims": 1, "DimSize": 3, "ElementSpacing": 3, "ElementSize": 3, "ElementNumberOfChannels": 1,
    "TransformMatrix": 9, "Rotation": 9, "Orientation": 9, "Offset": 3, "Position": 3, "Origin": 3,
    "CenterOfRotation": 3,
}  # fmt: skip
_DETACHED_SUFFIXES = (".nhdr", ".mhd")  # header and voxels in two files
_DEFLATE_MAX_RATIO = 1100  # deflate cannot pack tighter than about 1032:1
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels `[I, J, K]` and RAS+ affine. Raises whatever SimpleITK raises for damaged files."""
    import SimpleITK as sitk

    if path.suffix.lower() in _META_SUFFIXES:
        _require_sound_meta_header(path)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
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
    detached = path.suffix.lower() in _DETACHED_SUFFIXES
    if not detached and math.prod(shape) > _DEFLATE_MAX_RATIO * path.stat().st_size:
        raise DataError(
            f"{shown(path)} is cut short: its header promises {times(shape)} voxels, "
            f"the file holds {path.stat().st_size} bytes; export the scan again"
        )
    image = reader.Execute()
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    lps = np.eye(4)
    lps[:3, :3] = np.asarray(image.GetDirection()).reshape(3, 3) * np.asarray(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    return array, _LPS_TO_RAS @ lps


def _require_sound_meta_header(path: Path) -> None:
    """Refuse a MetaImage header whose counts are wrong: ITK trusts them and ends the whole program."""
    with path.open("rb") as file:
        head = file.read(_META_HEADER_BYTES)
    seen = set()
    for line in head.splitlines():
        key, sign, value = (part.strip().decode("latin-1") for part in line.partition(b"="))
        if not sign:
            continue
        wanted = _META_NUMBERS.get(key)
        if key == "NDims" and value != "3":
            raise DataError(f"{shown(path)} has {value[:20]} axes; a 3D volume is needed")
        if wanted is not None and not _numbers(value, wanted):
            raise DataError(
                f"{shown(path)} has the header entry {key} = {value[:60]}; {wanted} numbers are needed: export it again"
            )
        seen.add(key)
        if key == "ElementDataFile":
            _require_one_data_file(path, value)
            break
    # ITK would take a missing voxel size for 1 mm
    missing = [key for key in ("NDims", "DimSize", "ElementSpacing", "ElementDataFile") if key not in seen]
    if missing:
        raise DataError(f"{shown(path)} has no {missing[0]} in its header; export the scan again")


def _require_one_data_file(path: Path, name: str) -> None:
    """Refuse what is not one file beside the header: ITK would take a `%` in the name for a printf format."""
    if name == "LOCAL" and path.suffix.lower() == ".mha":
        return
    plain = not set(name) & set("%/\\\0") and name not in ("LIST", "LOCAL", "")
    if not plain or not (path.parent / name).is_file():
        raise DataError(
            f"{shown(path)} names {name[:60]!r} as its data file; one file beside it is needed: export it as .mha"
        )


def _numbers(text: str, count: int) -> bool:
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        return False
    return len(numbers) == count and all(math.isfinite(number) for number in numbers)


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
