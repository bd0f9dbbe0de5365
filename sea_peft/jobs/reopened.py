"""The cases of a finished run, found again in its data by the hashed ids of its trace."""

import dataclasses
from collections.abc import Mapping, Sequence

from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.data.cases import Case
from sea_peft.data.select import select
from sea_peft.errors import DataError
from sea_peft.jobs.adding import drawn_in
from sea_peft.jobs.target import open_data


@dataclasses.dataclass(frozen=True, eq=False)
class Reopened:
    """The cases of a run.

    Attributes:
        channels: the cases' names for the adapter's channels, in its order.
        labels: the adapter's, with the codes by which they are scored (`adding.drawn_in`).
        names: hashed id → name.
        by_name: name → case.
    """

    channels: tuple[str, ...]
    labels: Mapping[str, tuple[int, ...]]
    names: Mapping[str, str]
    by_name: Mapping[str, Case]

    def case(self, hashed: str) -> Case:
        """The case with this hashed id. Raises DataError if it is gone."""
        name = self.names.get(hashed, hashed)
        if name not in self.by_name:
            raise DataError(f"case {name} of the run is not in its data any more")
        return self.by_name[name]


def reopen(folder: RunFolder, labels: Mapping[str, Sequence[int]]) -> Reopened:
    """Open a run's data again. `labels`: those of its adapter, name → codes.

    Raises:
        UsageError: `config.json` or `cases.json` cannot be read.
        DataError: the data are no longer where the run found them.
    """
    config, names = folder.read_config(), folder.read_case_names()
    specs = [f"{name}={','.join(map(str, codes))}" for name, codes in labels.items() if codes]
    opened = open_data(config.data)
    dataset = select(opened, specs, config.channels)
    # test cases last, so that they win if a data set gives one of them the name of a training case
    by_name = {case.id: case for case in (*dataset.cases, *dataset.test_cases)}
    return Reopened(dataset.channels, drawn_in(opened, labels), names, by_name)
