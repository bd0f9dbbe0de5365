"""`seapeft data check`, `data init` and `data phantom`: check a data set, describe one, or make
one.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sea_peft.artefacts.privacy import public_digest
from sea_peft.backbones.weights import Card, card_of
from sea_peft.data.cases import Dataset
from sea_peft.data.checks import Checked, check
from sea_peft.data.layouts import open_dataset
from sea_peft.data.progress import Progress, unwatched
from sea_peft.data.select import select
from sea_peft.data.write import write_datalist, write_nnunet_raw
from sea_peft.errors import UsageError
from sea_peft.jobs.model import matching_rows
from sea_peft.jobs.target import open_data
from sea_peft.phantom import PATIENTS, phantom_dataset

_NAMED = 12  # labels in one sentence


@dataclasses.dataclass(frozen=True, eq=False)
class DataReport:
    """A data set and everything that its check found. `unknown`: a sentence for the user if the
    weights know none of its labels.
    """

    dataset: Dataset
    checked: Checked
    unknown: str | None = None

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """Label → the number of labelled cases that hold it, and its voxels in all of them."""
        every = [entry.voxels for entry in self.checked.cases]
        return {
            name: (
                sum(voxels.get(name, 0) > 0 for voxels in every),
                sum(voxels.get(name, 0) for voxels in every),
            )
            for name in self.dataset.labels
        }

    def document(self) -> dict[str, object]:
        """Everything as JSON types."""
        return {
            "name": self.dataset.name,
            "layout": self.dataset.layout,
            "channels": list(self.dataset.channels),
            "labels": {name: list(codes) for name, codes in self.dataset.labels.items()},
            "label_counts": {
                name: {"cases": n, "voxels": m} for name, (n, m) in self.counts.items()
            },
            "labelled_cases": len(self.dataset.cases),
            "test_cases": len(self.dataset.test_cases),
            "unlabelled_cases": len(self.dataset.unlabelled),
            "usable_cases": len(self.checked.usable.cases) + len(self.checked.usable.test_cases),
            "digest": public_digest(self.checked.digest),
            "cases": [
                {
                    "case": entry.case,
                    "usable": entry.usable,
                    "shape": entry.shape,
                    "spacing_mm": entry.spacing,
                    "grey_values": {channel: list(ends) for channel, ends in entry.values.items()},
                    "voxels": dict(entry.voxels),
                }
                for entry in self.checked.cases
            ],
            "labels_unknown": self.unknown,
            "findings": [dataclasses.asdict(finding) for finding in self.checked.findings],
        }


def check_data(
    data: str,
    labels: Sequence[str] = (),
    channels: Sequence[str] = (),
    shots: int | None = None,
    progress: Progress = unwatched,
    weights: str | None = None,
) -> DataReport:
    """Everything that is wrong or odd with a data set (a path, or `phantom:NAME`), reported at
    once.

    Args:
        data: the data set.
        labels: as for `adapt`.
        channels: as for `adapt`.
        shots: number of shots to check for.
        progress: called with (done, of).
        weights: name or file of the weights to compare label names with; None for the default ones.

    Raises:
        DataError: the data set cannot be opened, or a label or channel is missing.
        WeightsError: there are no such weights.
    """
    dataset = select(open_data(data), labels, channels)
    unknown = None if dataset.layout == "phantom" else _unknown_labels(dataset, card_of(weights))
    return DataReport(dataset, check(dataset, shots, progress), unknown)


def _unknown_labels(dataset: Dataset, card: Card) -> str | None:
    """Advice for when the weights know no label by name, which is usual if masks hold codes
    without names.
    """
    names = list(dataset.labels)
    if not names or any(row is not None for row in matching_rows(card.labels, names)):
        return None
    theirs, codes = card.labels[1:], next(iter(dataset.labels.values()))
    known = ", ".join(theirs[:_NAMED]) + (
        f" and {len(theirs) - _NAMED} more" if len(theirs) > _NAMED else ""
    )
    ours = ", ".join(names[:_NAMED]) + (
        f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    )
    example = f"--label {theirs[0] if theirs else 'NAME'}={','.join(map(str, codes))}"
    return (
        f"{card.name} knows none of the labels by name ({ours}), so each would be learnt from"
        f" nothing; it knows {known}. Where one of these is meant, name it, for instance {example}."
    )


def init_data(folder: Path) -> tuple[Path, Dataset]:
    """Write a datalist for a folder of scans. Returns the file, and the data set as it now reads.
    Raises DataError.
    """
    file = write_datalist(folder)
    return file, open_dataset(folder)


def make_phantoms(
    name: str, out: Path, cases: int, progress: Progress = unwatched, skip: int = 0
) -> Dataset:
    """Write `cases` labelled phantoms of the target `name` as an nnU-Net folder. The first `skip`
    patients are passed over.

    Raises:
        UsageError: fewer than one case is asked for, or the patients have no such numbers.
        DataError: there is no such target, or `out` is taken.
    """
    if cases < 1:
        raise UsageError(f"--cases {cases}: at least one case is needed.")
    if skip < 0 or skip + cases > PATIENTS:
        raise UsageError(
            f"--skip {skip}, --cases {cases}: there are {PATIENTS} patients, counted from 0."
        )
    write_nnunet_raw(phantom_dataset(name, support=cases, test=0, skip=skip), out, progress)
    return open_dataset(out)
