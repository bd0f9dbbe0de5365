"""`seapeft data check`, `data init`, `data phantom`: look at a data set, describe one, make one."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sea_peft.artefacts.privacy import public_digest
from sea_peft.data.cases import Dataset
from sea_peft.data.checks import Checked, check
from sea_peft.data.layouts import open_dataset
from sea_peft.data.progress import Progress, unwatched
from sea_peft.data.select import select
from sea_peft.data.write import write_datalist, write_nnunet_raw
from sea_peft.errors import UsageError
from sea_peft.jobs.target import open_data
from sea_peft.phantom import phantom_dataset


@dataclasses.dataclass(frozen=True, eq=False)
class DataReport:
    """A data set and everything that its check found."""

    dataset: Dataset
    checked: Checked

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """Label → in how many labelled cases it is, and its voxels in all of them."""
        every = [entry.voxels for entry in self.checked.cases]
        return {
            name: (sum(voxels.get(name, 0) > 0 for voxels in every), sum(voxels.get(name, 0) for voxels in every))
            for name in self.dataset.labels
        }

    def document(self) -> dict[str, object]:
        """Everything as JSON types."""
        return {
            "name": self.dataset.name,
            "layout": self.dataset.layout,
            "channels": list(self.dataset.channels),
            "labels": {name: list(codes) for name, codes in self.dataset.labels.items()},
            "label_counts": {name: {"cases": n, "voxels": m} for name, (n, m) in self.counts.items()},
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
            "findings": [dataclasses.asdict(finding) for finding in self.checked.findings],
        }


def check_data(
    data: str,
    labels: Sequence[str] = (),
    channels: Sequence[str] = (),
    shots: int | None = None,
    progress: Progress = unwatched,
) -> DataReport:
    """Everything that is wrong or odd with a data set (a path, or `phantom:NAME`), all at once.

    Raises:
        DataError: it cannot be opened at all, or a label or channel is not there.
    """
    dataset = select(open_data(data), labels, channels)
    return DataReport(dataset, check(dataset, shots, progress))


def init_data(folder: Path) -> tuple[Path, Dataset]:
    """Write a datalist for a folder of scans. Returns the file, and the data set as it reads now. Raises DataError."""
    file = write_datalist(folder)
    return file, open_dataset(folder)


def make_phantoms(name: str, out: Path, cases: int, progress: Progress = unwatched) -> Dataset:
    """Write `cases` labelled phantoms of the target `name` as an nnU-Net folder.

    Raises:
        UsageError: fewer than one case is asked for.
        DataError: there is no such target, or `out` is taken.
    """
    if cases < 1:
        raise UsageError(f"--cases {cases}: at least one case is needed.")
    write_nnunet_raw(phantom_dataset(name, support=cases, test=0), out, progress)
    return open_dataset(out)
