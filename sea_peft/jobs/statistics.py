"""Statistics of masks for a cohort: one CSV with a row for each scan and label, from the
sidecars.
"""

import csv
import hashlib
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sea_peft.atomic import write_text
from sea_peft.data.cases import FileCase
from sea_peft.errors import UsageError
from sea_peft.jobs.keeping import parts

Sidecar = dict[str, Any]  # the content of the file beside a mask, as JSON types
_FIRST = ["case", "label", "volume_ml"]
_LAST = ["components", "touches_border", "confidence", "network", "kept"]
_OF_SEVERAL = ["disagreement"]


def measured(
    indices: np.ndarray,
    labels: Sequence[str],
    channels: Mapping[str, np.ndarray],
    millilitres: float,
) -> dict[str, Sidecar]:
    """Label → its numbers in one mask.

    Args:
        indices: label indices `[I, J, K]`, 1..L in the order of `labels`.
        labels: their names.
        channels: name → stored grey values `[I, J, K]`.
        millilitres: volume of a voxel.

    Returns:
        `volume_ml`; `mean`, the mean grey value by channel (None for an empty mask); `components`,
            the number of parts whose voxels share no corner; `touches_border`, whether the mask
            reaches the scan's first or last plane along any axis.
    """
    found: dict[str, Sidecar] = {}
    for index, label in enumerate(labels, start=1):
        mask = indices == index
        count = int(np.count_nonzero(mask))
        ends = (mask.take((0, -1), axis=axis).any() for axis in range(3))
        found[label] = {
            "volume_ml": round(count * millilitres, 3),
            "mean": {
                name: float(f"{grey[mask].mean(dtype=np.float64):.6g}") if count else None
                for name, grey in channels.items()
            },
            "components": parts(mask)[1],
            "touches_border": bool(any(ends)),
        }
    return found


def digest_of(case: FileCase) -> str:
    """sha256 over the files of a case, channel by channel."""
    digest = hashlib.sha256()
    for channel in sorted(case.images):
        for file in case.images[channel].files:
            with file.open("rb") as scan:
                while part := scan.read(1 << 20):
                    digest.update(part)
    return digest.hexdigest()


def are_numbers(found: object, labels: Collection[str]) -> bool:
    """Whether these are a mask's numbers for these labels, not edited ones."""
    return (
        isinstance(found, dict)
        and found.keys() == set(labels)
        and all(map(_is_of_one_label, found.values()))
    )


def _is_of_one_label(numbers: object) -> bool:
    """Whether these are a label's results of `measured` and `inference.confidences`."""
    keys = {"volume_ml", "mean", "components", "touches_border", "confidence"}
    return (
        isinstance(numbers, dict) and numbers.keys() == keys and isinstance(numbers["mean"], dict)
    )


def require_ours(table: Path, channels: Sequence[str], ensemble: bool = False) -> None:
    """Raise UsageError if the CSV would replace a file of another kind. `ensemble`: as for
    `write_table`.
    """
    if not table.exists():
        return
    try:
        with table.open(encoding="utf-8", newline="") as file:
            first = next(csv.reader(file), [])
    except (OSError, ValueError, csv.Error):
        first = []
    if first != _header(channels, ensemble):
        whose = "these adapters'" if ensemble else "this adapter's"
        raise UsageError(
            f"{table} exists and is no table of {whose} statistics; choose another --statistics."
        )


def write_table(
    table: Path, channels: Sequence[str], by_case: Mapping[str, Sidecar], ensemble: bool = False
) -> None:
    """Write the whole CSV. `by_case`: case → its sidecar. `ensemble`: whether the masks are of
    several adapters, which may disagree. Raises DiskError.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_header(channels, ensemble))
    for case, sidecar in by_case.items():
        for label, of in sidecar["statistics"].items():
            means = [of["mean"].get(channel) for channel in channels]
            apart = [sidecar["disagreement"][label]] if ensemble else []
            rows.writerow(
                [
                    case,
                    label,
                    of["volume_ml"],
                    *means,
                    of["components"],
                    "yes" if of["touches_border"] else "no",
                    of["confidence"],
                    sidecar["network"],
                    sidecar["kept"].get(label, "all"),
                    *apart,
                ]
            )
    write_text(table, text.getvalue())


def _header(channels: Sequence[str], ensemble: bool) -> list[str]:
    return [
        *_FIRST,
        *(f"mean_{channel}" for channel in channels),
        *_LAST,
        *(_OF_SEVERAL if ensemble else []),
    ]
