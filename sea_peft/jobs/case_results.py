"""The results of predicting one case: its mask, a sidecar that describes it, and optional files.
All of them appear, or none.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sea_peft import __version__
from sea_peft.artefacts.palette import family_colours
from sea_peft.artefacts.quality import Quality
from sea_peft.atomic import sync_folder, unfinished, write_bytes, write_text, writing
from sea_peft.data.case_check import image_findings
from sea_peft.data.cases import Case, FileCase
from sea_peft.data.dicom.segmentation import segmentation_bytes
from sea_peft.data.dicom.structures import structure_set_bytes
from sea_peft.data.geometry import Geometry
from sea_peft.data.grids import require_finite
from sea_peft.data.prepare import Scan, restore, restore_map, restore_probability
from sea_peft.data.progress import Progress
from sea_peft.data.slicer import write_segments
from sea_peft.data.volumes import Volume, volume_suffix, write_volume
from sea_peft.errors import DataError
from sea_peft.jobs.ensemble import Ensemble
from sea_peft.jobs.inference import confidences
from sea_peft.jobs.keeping import Keep, keep_parts
from sea_peft.jobs.predictor import Predictor
from sea_peft.jobs.preview import preview_png
from sea_peft.jobs.quality import judge, look_at_prediction
from sea_peft.jobs.shades import shades
from sea_peft.jobs.statistics import Sidecar, digest_of, measured

MAKER = "sea_peft"
_LONGEST_NAME = 255 - 20  # bytes on every common file system, less the suffix of unfinished files
_WRITTEN_AS = {".nhdr": ".nrrd", ".mhd": ".mha"}


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """Where the results of one case go. File names come from the case's name, without any
    folders in it.
    """

    mask: Path
    sidecar: Path
    preview: Path | None
    segmentation: Path | None
    structures: Path | None
    slicer: Path | None
    disagreement: Path | None
    probabilities: Mapping[str, Path]

    @classmethod
    def of(
        cls,
        case: FileCase,
        out: Path,
        labels: Sequence[str],
        probabilities: bool,
        preview: bool,
        dicom_seg: bool,
        rtstruct: bool,
        seg_nrrd: bool,
        disagreement: bool = False,
    ) -> CaseFiles:
        """The files of a case in the folder `out`. The flags say which optional ones are wanted."""
        suffix = volume_suffix(_source(case)) or ".nii.gz"
        suffix = _WRITTEN_AS.get(suffix, suffix)
        name = re.sub(r"[/\\\0]", "_", case.id)
        wanted = labels if probabilities else ()
        return cls(
            mask=out / f"{name}{suffix}",
            sidecar=out / f"{name}.json",
            preview=out / f"{name}.png" if preview else None,
            segmentation=out / f"{name}.dcm" if dicom_seg else None,
            structures=out / f"{name}_rtstruct.dcm" if rtstruct else None,
            slicer=out / f"{name}.seg.nrrd" if seg_nrrd else None,
            disagreement=out / f"{name}_disagreement{suffix}" if disagreement else None,
            probabilities={
                label: out / f"{name}_probability_{part}{suffix}"
                for label, part in _file_parts(wanted).items()
            },
        )

    @property
    def all(self) -> list[Path]:
        """Every file, the mask first."""
        optional = (
            self.preview,
            self.segmentation,
            self.structures,
            self.slicer,
            self.disagreement,
        )
        asked = [path for path in optional if path is not None]
        return [self.mask, self.sidecar, *asked, *self.probabilities.values()]


def _file_parts(labels: Sequence[str]) -> dict[str, str]:
    """Label → its part of a file name: letters of any script, and a number where two labels
    would be alike.
    """
    parts: dict[str, str] = {}
    for label in labels:
        plain = re.sub(r"[^\w.-]+", "_", label).strip("._-")[:40] or "label"
        taken = {part.casefold() for part in parts.values()}
        names = (plain if n == 1 else f"{plain}_{n}" for n in itertools.count(1))
        parts[label] = next(name for name in names if name.casefold() not in taken)
    return parts


def mask_values(labels: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The value of each label in a mask: its own code if every label has exactly one, else 1..L in
    the order of the labels.
    """
    if all(len(codes) == 1 for codes in labels.values()):
        return {name: codes[0] for name, codes in labels.items()}
    return {name: index for index, name in enumerate(labels, start=1)}


@dataclass(frozen=True, eq=False)
class Ready:
    """A case that was read and prepared. `notes`: oddities of the scan, as in `data check`."""

    scan: Scan
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class CaseWriter:
    """Predicts cases and writes the wanted results of each.

    Attributes:
        predictor: the adapter on its backbone.
        keeping: label → the connected parts of its masks to keep.
        statistics: whether sidecars hold the numbers of `statistics.measured`.
        qc: what the adapter's run saw, to judge masks by (`--qc`); None without.
    """

    predictor: Predictor
    keeping: Mapping[str, Keep]
    statistics: bool
    qc: Quality | None = None

    def ready(self, case: FileCase) -> Ready:
        """Prepare the case for the network. Raises DataError if the scan is unfit."""
        notes = input_notes(case)
        return Ready(self.predictor.prepared(case), notes)

    def write(self, case: FileCase, ready: Ready, files: CaseFiles, progress: Progress) -> Sidecar:
        """Predict one case and write all of its results.

        They are made in a folder beside their place and moved when complete. A case that fails
        therefore leaves nothing, and earlier results are kept. The sidecar is moved first, since it
        marks the rest as ours, and the mask last: a case with a mask is complete and from one
        prediction.

        Returns:
            The sidecar's content.

        Raises:
            DataError: a name is too long, or a volume cannot be written.
            DiskError: another file cannot be written, or a result cannot be moved to its place.
            OutputError: the network's output is not finite.
        """
        out, name = files.mask.parent, files.sidecar.stem
        if long := next(filter(too_long, files.all), None):
            raise DataError(
                f"a result would be called {long.name}, which is too long for a file name; give the"
                " scan a shorter one"
            )
        with writing(out):
            building = unfinished(out / name)
            building.mkdir()
        try:
            written = self._make(case, ready, files, building, progress)
            with writing(out):
                files.mask.unlink(missing_ok=True)
                for path in reversed(files.all):
                    os.replace(building / path.name, path)
                sync_folder(out)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return written

    def depends_on(self, files: CaseFiles) -> Sidecar:
        """What an earlier sidecar must hold for its results to count as up to date, except the
        scan's digest (`input_sha256`).
        """
        asked = {name: value for name, value in _extras(files).items() if value}
        return {"mask": files.mask.name, "labels": self._values(), **asked, **self._made_by()}

    def _make(
        self, case: FileCase, ready: Ready, files: CaseFiles, building: Path, progress: Progress
    ) -> Sidecar:
        predictor, scan = self.predictor, ready.scan
        output, disagreement = predictor.with_disagreement(scan, building, progress)
        affine, like = scan.geometry.affine, _source(case)
        values = mask_values(predictor.labels)
        labels = list(values)
        millilitres = scan.geometry.voxel_millilitres
        keep = {1 + labels.index(label): rule for label, rule in self.keeping.items()}
        indices = keep_parts(restore(output, scan.geometry), keep, millilitres)
        kind = np.uint8 if max(values.values()) <= np.iinfo(np.uint8).max else np.uint16
        mask = np.array([0, *values.values()], dtype=kind)[indices]
        sidecar = self._sidecar(case, files, _volumes(indices, labels, millilitres))
        sure = confidences(output, labels) if self.statistics or self.qc is not None else {}
        if self.qc is not None:
            look = look_at_prediction(scan, output, labels, predictor.recipe.spacing)
            sidecar["qc"] = judge(
                self.qc, predictor.network, look, sure, predictor.channels
            ).as_json()
        if self.statistics:
            grey = {
                channel: np.asarray(case.image(channel).array) for channel in predictor.channels
            }
            found = measured(indices, labels, grey, millilitres)
            sidecar["statistics"] = {
                label: {**of, "confidence": sure[label]} for label, of in found.items()
            }
        if disagreement is not None:
            sidecar["disagreement"] = dict(disagreement.labels)
        write_text(
            building / files.sidecar.name, json.dumps(sidecar, indent=2, ensure_ascii=False) + "\n"
        )
        for label, path in files.probabilities.items():
            probability = restore_probability(output, 1 + labels.index(label), scan.geometry)
            write_volume(building / path.name, Volume(probability, affine), like=like)
        if files.preview is not None:
            write_bytes(
                building / files.preview.name, picture(predictor, case, indices, scan.geometry)
            )
        slices = next(iter(case.images.values())).slices
        if files.segmentation is not None:
            write_bytes(
                building / files.segmentation.name, segmentation_bytes(mask, slices, values)
            )
        if files.structures is not None:
            content = structure_set_bytes(mask, slices, values, family_colours(labels))
            write_bytes(building / files.structures.name, content)
        if files.slicer is not None:
            write_segments(
                building / files.slicer.name,
                Volume(mask, affine),
                values,
                family_colours(labels),
                like,
            )
        if disagreement is not None and files.disagreement is not None:
            where = restore_map(disagreement.where, scan.geometry)
            write_volume(building / files.disagreement.name, Volume(where, affine), like=like)
        write_volume(building / files.mask.name, Volume(mask, affine), like=like)
        return sidecar

    def _sidecar(self, case: FileCase, files: CaseFiles, volumes: Mapping[str, float]) -> Sidecar:
        return {
            "mask": files.mask.name,
            "labels": self._values(),
            "volumes_ml": dict(volumes),
            **_extras(files),
            "recommended": self.predictor.config.recommended.model_dump(),
            **self._made_by(),
            "input_sha256": digest_of(case),
            "made_by": f"{MAKER} {__version__}",
            "note": (
                "Research software, not a medical device: a qualified person must check every mask."
            ),
        }

    def _values(self) -> dict[str, int]:
        return {"background": 0, **mask_values(self.predictor.labels)}

    def _made_by(self) -> Sidecar:
        """Everything that a mask depends on, besides the scan."""
        predictor = self.predictor
        others = predictor.members[1:] if isinstance(predictor, Ensemble) else []
        return {
            "channels": list(predictor.channels),
            "network": predictor.network,
            "kept": {label: str(rule) for label, rule in self.keeping.items()},
            "adapter": _identity(predictor),
            "ensemble": (
                {"method": "mean", "with": [_identity(other) for other in others]}
                if others
                else None
            ),
        }


def _identity(predictor: Predictor) -> Sidecar:
    config = predictor.config
    return {
        "policy": config.policy,
        "units": len(config.units),
        "weights": config.backbone.weights,
        "backbone_sha256": config.backbone.sha256,
        "sha256": predictor.sha256,
    }


def _extras(files: CaseFiles) -> Sidecar:
    """The names of the files beside the mask: empty or None if not wanted."""
    return {
        "probabilities": {label: path.name for label, path in files.probabilities.items()},
        "preview": files.preview.name if files.preview else None,
        "dicom_seg": files.segmentation.name if files.segmentation else None,
        "rtstruct": files.structures.name if files.structures else None,
        "seg_nrrd": files.slicer.name if files.slicer else None,
        "disagreement_map": files.disagreement.name if files.disagreement else None,
    }


def _volumes(indices: np.ndarray, labels: Sequence[str], millilitres: float) -> dict[str, float]:
    counts = np.bincount(indices.ravel(), minlength=1 + len(labels)).tolist()
    return {
        label: round(voxels * millilitres, 3)
        for label, voxels in zip(labels, counts[1:], strict=False)
    }


def input_notes(case: FileCase) -> tuple[str, ...]:
    """Oddities of the scan. Raises `DataError` if it is unfit."""
    notes = []
    for channel in case.channels:
        volume = case.image(channel)
        require_finite(case.id, channel, volume)
        for finding in image_findings(case.id, channel, volume):
            if finding.severity == "error":
                raise DataError(finding.sentence)
            notes.append(finding.sentence)
    return tuple(notes)


def picture(predictor: Predictor, case: Case, indices: np.ndarray, geometry: Geometry) -> bytes:
    """A PNG of three planes of a case.

    `indices`: its mask `[I, J, K]` on its own grid, 1..L in the order of the predictor's labels.
    """
    image = case.image(predictor.channels[0])
    shown = shades(np.asarray(image.array), predictor.channels[0], predictor.recipe.intensity)
    return preview_png(image, {"": indices}, list(predictor.labels), geometry, shown)


def _source(case: FileCase) -> Path:
    """The file of the first channel, whose grid the results use."""
    return next(iter(case.images.values())).path


def too_long(path: Path) -> bool:
    """Whether common file systems refuse a file name of this length."""
    return len(os.fsencode(path.name)) > _LONGEST_NAME
