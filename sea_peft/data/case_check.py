"""Checks one case, with one sentence per finding.

Severities: an `error` makes the data unfit, and `adapt` stops. `skip` leaves the case out and
continues (its label map is sound, but holds none of the chosen labels). A `warning` is only
reported.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from sea_peft.data.cases import Case, Dataset
from sea_peft.data.codes import code_counts
from sea_peft.data.digest import volume_digest, voxel_hash
from sea_peft.data.grids import require_finite, require_same_grid, skewness
from sea_peft.data.intensity import is_ct_name, looks_like_hounsfield, not_hounsfield
from sea_peft.data.volumes import Volume
from sea_peft.data.wording import count
from sea_peft.errors import DataError

Severity = Literal["error", "skip", "warning"]

_PLAUSIBLE_SPACING_MM = (0.05, 20.0)
# MR scans with floating-point scaling can reach millions, a few times their usual values
_ODD_MAGNITUDE, _ODD_RATIO, _IMPOSSIBLE_MAGNITUDE = 1e6, 1000.0, 1e9
_FEW_VOXELS = 10
_SKEW_DEGREES = 0.5


@dataclass(frozen=True)
class Finding:
    """A finding of the check.

    Attributes:
        case: case id; empty if the finding concerns the data set as a whole.
        field: `channel FLAIR`, `label`, `voxels`, `cases`, `layout`, …
        severity: `error`, `skip` or `warning`.
        sentence: what is wrong, with both values, and what to do.
    """

    case: str
    field: str
    severity: Severity
    sentence: str


@dataclass(frozen=True, kw_only=True)
class CaseCheck:
    """The results for one case.

    Attributes:
        case: case id.
        findings: in the order found.
        shape: voxels of the first channel; None if it cannot be read.
        spacing: its voxel size in millimetres.
        values: channel → smallest and largest grey value.
        voxels: selected label → number of voxels.
        image_hashes: channel → hash of its voxels.
        digests: digests of all volumes read, channels first.
    """

    case: str
    findings: tuple[Finding, ...]
    shape: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] | None = None
    values: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    voxels: Mapping[str, int] = field(default_factory=dict)
    image_hashes: Mapping[str, str] = field(default_factory=dict)
    digests: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether the case can be a support, audit or test case."""
        return all(finding.severity == "warning" for finding in self.findings)


def check_case(case: Case, dataset: Dataset) -> CaseCheck:
    """Check one case against the selected channels and labels, reading every volume once."""
    findings: list[Finding] = []
    images: dict[str, Volume] = {}
    values: dict[str, tuple[float, float]] = {}
    for channel in dataset.channels:
        name = f"channel {channel}"
        try:
            volume = _named(case.id, name, partial(case.image, channel))
            require_finite(case.id, channel, volume)
            if images:
                first = next(iter(images))
                require_same_grid(case.id, name, volume, f"channel {first}", images[first])
        except DataError as error:
            findings.append(Finding(case.id, name, "error", str(error)))
            continue
        images[channel] = volume
        values[channel] = (float(volume.array.min()), float(volume.array.max()))
        findings += image_findings(case.id, channel, volume)
    image = next(iter(images.values()), None)
    label, voxels, on_label = _label(case, dataset, image)
    hashes = {channel: voxel_hash(volume.array) for channel, volume in images.items()}
    digests = [volume_digest(images[channel], hashed) for channel, hashed in hashes.items()]
    if label is not None:
        digests.append(volume_digest(label, voxel_hash(label.array)))
    return CaseCheck(
        case=case.id,
        findings=(*findings, *on_label),
        shape=image.shape if image else None,
        spacing=image.spacing if image else None,
        values=values,
        voxels=voxels,
        image_hashes=hashes,
        digests=tuple(digests),
    )


def _label(
    case: Case, dataset: Dataset, image: Volume | None
) -> tuple[Volume | None, dict[str, int], list[Finding]]:
    """The label map, the number of voxels of each selected label, and the findings on it."""
    try:
        label = _named(case.id, "label", partial(_label_of, case))
        counts = code_counts(label.array, f"case {case.id}: label")
        if image is not None:
            require_same_grid(case.id, "label", label, "image", image)
        strangers = [
            code for code in counts if code and dataset.codes and code not in dataset.codes
        ]
        if strangers:
            raise DataError(
                f"case {case.id}: label holds code {strangers[0]}"
                f" ({count(counts[strangers[0]], 'voxel')}), but only"
                f" {_listed(dataset.codes or ())} are declared; declare it or correct the label"
            )
        if set(counts) <= {0} and not case.partial:
            raise DataError(
                f"case {case.id}: label is empty (all {label.array.size} voxels are 0); label the"
                " case or take it out"
            )
    except DataError as error:
        return None, {}, [Finding(case.id, "label", "error", str(error))]
    voxels = {
        name: sum(counts.get(code, 0) for code in codes) for name, codes in dataset.labels.items()
    }
    findings = []
    if not any(voxels.values()):
        wanted = ", ".join(f"{name}={_listed(codes)}" for name, codes in dataset.labels.items())
        held = (
            "holds nothing"
            if case.partial
            else f"holds codes {_listed(c for c in counts if c)}, none"
        )
        sentence = (
            f"case {case.id}: label {held} of the chosen ones ({wanted}); the case is left out"
        )
        findings.append(Finding(case.id, "label", "skip", sentence))
    findings += [
        Finding(case.id, "label", "warning", f"case {case.id}: label {note}")
        for note in label.notes
    ]
    few = [f"{name} ({count})" for name, count in voxels.items() if 0 < count < _FEW_VOXELS]
    if few:
        more = f" and {len(few) - 3} more" if len(few) > 3 else ""
        sentence = (
            f"case {case.id}: fewer than {_FEW_VOXELS} voxels are labelled"
            f" {', '.join(few[:3])}{more}; Dice on so few will be unsteady"
        )
        findings.append(Finding(case.id, "label", "warning", sentence))
    return label, voxels, findings


def image_findings(case_id: str, channel: str, volume: Volume) -> list[Finding]:
    """Whether grey values and grid of one channel are plausible, and what the reader noted."""
    where = f"case {case_id}: channel {channel}"
    low, high = float(volume.array.min()), float(volume.array.max())
    found: list[tuple[Severity, str]] = [("warning", f"{where} {note}") for note in volume.notes]
    if (skew := skewness(volume.affine)) > _SKEW_DEGREES:
        sentence = (
            f"{where} has axes {skew:.1f}° away from right angles (a tilted gantry?); its planes"
            " are taken as they are stored, so masks fit, but shapes are sheared"
        )
        found.append(("warning", sentence))
    if low == high:
        sentence = (
            f"{where} holds the single value {low:g}; export the scan again or take the case out"
        )
        found.append(("error", sentence))
    elif is_ct_name(channel) and not looks_like_hounsfield(volume.array):
        sentence = (
            f"{where} {not_hounsfield(volume.array)}; if it was rescaled, declare another channel"
            " name"
        )
        found.append(("warning", sentence))
    if _odd_values(volume.array, max(abs(low), abs(high)), is_ct_name(channel)):
        found.append(
            ("warning", f"{where} runs from {low:.4g} to {high:.4g}; are these grey values?")
        )
    smallest, largest = _PLAUSIBLE_SPACING_MM
    if not all(smallest <= size <= largest for size in volume.spacing):
        sizes = " × ".join(f"{size:.4g}" for size in volume.spacing)
        found.append(
            ("warning", f"{where} has voxels of {sizes} mm; is the voxel size in millimetres?")
        )
    return [
        Finding(case_id, f"channel {channel}", severity, sentence) for severity, sentence in found
    ]


def _odd_values(array: np.ndarray, magnitude: float, hounsfield: bool) -> bool:
    """Whether the largest value is beyond what scanners give, or far beyond the rest of this
    scan.
    """
    if magnitude <= _ODD_MAGNITUDE or hounsfield:
        return magnitude > _ODD_MAGNITUDE
    return magnitude > _IMPOSSIBLE_MAGNITUDE or magnitude > _ODD_RATIO * float(
        np.percentile(np.abs(array), 99)
    )


def _named(case_id: str, name: str, read: Callable[[], Volume]) -> Volume:
    """Read a volume, and put the case in front of a sentence about its file."""
    try:
        return read()
    except DataError as error:
        sentence = str(error)
        known = sentence.startswith(f"case {case_id}")
        raise DataError(sentence if known else f"case {case_id}: {name}: {sentence}") from error


def _label_of(case: Case) -> Volume:
    label = case.label()
    if label is None:
        raise DataError(f"case {case.id}: no label file; add it or move the image out")
    return label


def _listed(codes: Iterable[int]) -> str:
    return ", ".join(str(code) for code in sorted(codes))
