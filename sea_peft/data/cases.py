"""Cases and data sets: how the rest of the program sees a folder of scans."""

from __future__ import annotations

import dataclasses
import re
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sea_peft.data.grids import laid_on, require_same_grid
from sea_peft.data.overlaps import LabelMap
from sea_peft.data.volumes import (
    NIFTI_SUFFIXES,
    Volume,
    header_grid,
    read_volume,
    volume_stem,
    volume_suffix,
)
from sea_peft.errors import DataError


class Case(ABC):
    """One patient scan: named channels on one grid and, if it is labelled, a label map on the same
    grid.

    Attributes:
        id: unique within its data set.
        channels: names of the channels that this case has.
        partial: whether `label` leaves out codes that have masks of their own (see `with_codes`).
    """

    id: str
    channels: tuple[str, ...]
    partial: bool = False

    @abstractmethod
    def image(self, channel: str) -> Volume:
        """The volume of one channel. Raises `DataError` when it is missing or unreadable."""

    @abstractmethod
    def label(self) -> Volume | None:
        """Label codes as stored (0 = background), or None when the case has no label."""

    def with_codes(self, codes: frozenset[int]) -> Case | None:
        """The same case, allowed to read only these label codes.

        The case itself if one file holds all codes. None if nothing is drawn for any of these
        codes: either nobody looked for them, or there was nothing to find.
        """
        return self


@dataclass(frozen=True)
class ImageFile:
    """The file of one channel: a 3D file, one component `of` several in a file, or the slices of a
    DICOM series in the folder `path`.
    """

    path: Path
    component: int | None = None
    of: int = 1
    slices: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All of its files."""
        return self.slices or (self.path,)

    @property
    def read_in_silence(self) -> bool:
        """Whether other threads may print while it is read.

        The libraries for other formats print past Python, so nobody can use the process's output
        meanwhile (`capture_stdout`).
        """
        return not self.slices and volume_suffix(self.path) in NIFTI_SUFFIXES

    def grid(self) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
        """Shape and voxel size in mm, from the headers alone. Raises `DataError`."""
        if not self.slices:
            return header_grid(self.path)
        from sea_peft.data.dicom.series import series_grid

        return series_grid(self.slices)

    def read(self) -> Volume:
        """The volume. Raises `DataError`."""
        if not self.slices:
            return read_volume(self.path, self.component, self.of)
        from sea_peft.data.dicom.series import read_series

        return read_series(self.slices)


@dataclass(frozen=True, eq=False)
class FileCase(Case):
    """A case on disk.

    Attributes:
        images: channel name → file.
        label_file: one label map, or None.
        masks: label code → binary mask file, for layouts with one file per structure. Where masks
            overlap, the smaller structure wins.
        ignored: codes of voxels that nobody labelled. Training and scores would treat them as
            background, so a label map that holds one is refused.
    """

    id: str
    images: Mapping[str, ImageFile]
    _: KW_ONLY
    label_file: Path | None = None
    masks: Mapping[int, Path] = field(default_factory=dict)
    ignored: frozenset[int] = frozenset()
    partial: bool = False

    @property
    def channels(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.images)

    @property
    def labelled(self) -> bool:
        """Whether a label file or a mask belongs to this case."""
        return self.label_file is not None or bool(self.masks)

    @property
    def in_slices(self) -> bool:
        """Whether a channel lies in the slices of a DICOM series."""
        return any(image.slices for image in self.images.values())

    def image(self, channel: str) -> Volume:
        if channel not in self.images:
            raise DataError(
                f"case {self.id}: channel {channel} is missing (it has"
                f" {', '.join(self.images) or 'none'}); add the file or choose other channels"
            )
        return _CACHE.read(self.images[channel])

    def forget(self) -> None:
        """Drop the images that were read, when they are no longer needed."""
        for image in self.images.values():
            _CACHE.forget(image)

    def label(self) -> Volume | None:
        if self.label_file is not None:
            return self._without_ignored(_CACHE.read(ImageFile(self.label_file)))
        return self._merged_masks() if self.masks else None

    def with_codes(self, codes: frozenset[int]) -> Case | None:
        return self._drawing("masks", codes) if self.masks else self

    def _drawing(self, apart: str, codes: frozenset[int]) -> FileCase | None:
        """This case with the masks of these codes alone. `apart`: the field with the place of
        each code's mask.
        """
        every = getattr(self, apart)
        kept = {code: where for code, where in every.items() if code in codes}
        changes: dict[str, Any] = {apart: kept, "partial": self.partial or len(kept) < len(every)}
        return dataclasses.replace(self, **changes) if kept else None

    def _without_ignored(self, label: Volume) -> Volume:
        for code in sorted(self.ignored):
            count = int(np.count_nonzero(np.rint(label.array) == code))
            if count:
                raise DataError(
                    f"case {self.id}: label holds {count} voxels of code {code}, which is declared"
                    " as ignore (not labelled), but here every voxel needs a label; label them, or"
                    " declare the code under another name and choose the other labels, which makes"
                    " it background",
                    "labels",
                )
        return label

    def _merged_masks(self) -> Volume:
        names = {code: volume_stem(path) for code, path in self.masks.items()}
        merged: LabelMap | None = None
        first: Volume | None = None
        for code in sorted(self.masks):
            mask = read_volume(self.masks[code])
            if merged is None or first is None:
                merged, first = (
                    LabelMap(mask.shape, names),
                    Volume(np.empty(mask.shape, bool), mask.affine),
                )
            name, others = (
                f"mask {self.masks[code].name}",
                f"mask {self.masks[min(self.masks)].name}",
            )
            require_same_grid(self.id, name, mask, others, first)
            merged.paint(code, mask.array > 0.5)
        assert merged is not None
        assert first is not None
        return _finished(merged, first.affine, self.id)


def _finished(labels: LabelMap, affine: np.ndarray, case: str) -> Volume:
    try:
        array, notes = labels.finished()
    except DataError as error:
        raise DataError(f"case {case}: {error}") from error
    return Volume(array, affine, notes)


@dataclass(frozen=True, eq=False)
class SlicerCase(FileCase):
    """A case whose label map is a segmentation of 3D Slicer (`.seg.nrrd`). Its segments have names,
    and different values in each file.

    Attributes:
        segments: label code → (layer, value) of each segment of this name.
        layers: number of layers in the file; segments that overlap lie in several.
        names: label code → name.
    """

    segments: Mapping[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    layers: int = 1
    names: Mapping[int, str] = field(default_factory=dict)

    def label(self) -> Volume | None:
        assert self.label_file is not None
        several = self.layers > 1
        sources = [
            ImageFile(self.label_file, at if several else None, self.layers)
            for at in range(self.layers)
        ]
        stored = [_CACHE.read(source) for source in sources]
        labels = LabelMap(stored[0].shape, self.names)
        for code, parts in sorted(self.segments.items()):
            labels.paint(
                code, np.logical_or.reduce([stored[layer].array == value for layer, value in parts])
            )
        image = _CACHE.read(next(iter(self.images.values())))
        merged = _finished(labels, stored[0].affine, self.id)
        return laid_on(
            dataclasses.replace(merged, notes=(*stored[0].notes, *merged.notes)),
            image.shape,
            image.affine,
        )

    def with_codes(self, codes: frozenset[int]) -> Case | None:
        return self._drawing("segments", codes)


@dataclass(frozen=True, eq=False)
class DicomCase(FileCase):
    """A DICOM series with its segmentation object, or with a label file of another format.

    Attributes:
        segmentation: the DICOM-SEG that was drawn on the series, or None.
        segments: label code → segment numbers in it.
        names: label code → name.
    """

    segmentation: Path | None = None
    segments: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        return self.segmentation is not None or self.label_file is not None

    def label(self) -> Volume | None:
        (series,) = self.images.values()
        if self.segmentation is None:
            stored = super().label()
            image = _CACHE.read(series)
            return None if stored is None else laid_on(stored, image.shape, image.affine)
        from sea_peft.data.dicom.segmentation import read_segmentation

        return read_segmentation(self.segmentation, series.slices, self.segments, self.names)

    def with_codes(self, codes: frozenset[int]) -> Case | None:
        return self if self.segmentation is None else self._drawing("segments", codes)


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """A data set as its layout declares it, or the part of it that `select` chose.

    Attributes:
        name: short, safe as a folder name; never a path.
        layout: the reader that recognised it: `nnunet_raw`, `datalist`, `folders`, `phantom`, …
        channels: channel names in the declared order (after `select`: in the wanted one).
        labels: label name → its codes, without background.
        cases: labelled cases that may become support, audit or test, sorted by id.
        test_cases: labelled cases that the layout itself marks as test; empty if it marks none.
        unlabelled: cases without label.
        codes: every code that a label map may hold besides 0; None if the layout declares none (the
            labels were then found by reading the label maps).
        warnings: sentences about the layout's own files (unknown JSON keys, labels without images,
            …).
    """

    name: str
    layout: str
    channels: tuple[str, ...]
    labels: Mapping[str, tuple[int, ...]]
    cases: tuple[Case, ...]
    test_cases: tuple[Case, ...] = ()
    unlabelled: tuple[Case, ...] = ()
    codes: frozenset[int] | None = None
    warnings: tuple[str, ...] = ()

    def with_cases(
        self, cases: Iterable[Case], test_cases: Iterable[Case] | None = None
    ) -> Dataset:
        """The same data set with other cases, for instance only the usable ones."""
        chosen = tuple(sorted(cases, key=lambda case: case.id))
        tests = self.test_cases if test_cases is None else tuple(test_cases)
        return dataclasses.replace(self, cases=chosen, test_cases=tests)


def safe_name(text: str) -> str:
    """`text` reduced to characters that are safe in a folder name on every system."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[:64] or "data"


class VolumeCache:
    """The most recently read volumes, up to a number of bytes, so that checking and preparing read
    each file once.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._bytes = 0
        self._held: OrderedDict[tuple[ImageFile, int, int], Volume] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, source: ImageFile) -> Volume:
        """The volume as it is on disk now. Its array is read-only because it is shared."""
        try:
            stats = [path.stat() for path in source.files]
        except OSError:
            return source.read()  # raises an error with the right sentence
        key = (source, max(stat.st_mtime_ns for stat in stats), sum(stat.st_size for stat in stats))
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        volume = source.read()
        volume.array.flags.writeable = False
        with self._lock:
            if (
                before := self._held.pop(key, None)
            ) is not None:  # read meanwhile by another thread
                self._bytes -= before.array.nbytes
            self._held[key] = volume
            self._bytes += volume.array.nbytes
            while self._bytes > self._limit:
                self._bytes -= self._held.popitem(last=False)[1].array.nbytes
        return volume

    def forget(self, source: ImageFile) -> None:
        """Drop the volumes of this file."""
        with self._lock:
            for key in [key for key in self._held if key[0] == source]:
                self._bytes -= self._held.pop(key).array.nbytes


_CACHE = VolumeCache(limit_bytes=1 << 30)
