"""Pictures of a run's best, median and worst test case, predicted and labelled, for its report."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable

import numpy as np

from sea_peft.artefacts.report import Picture
from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.data.prepare import label_indices, restore
from sea_peft.data.select import select
from sea_peft.errors import DataError
from sea_peft.jobs.predictor import Predictor
from sea_peft.jobs.preview import preview_png
from sea_peft.jobs.setup import open_data


def case_pictures(folder: RunFolder, progress: Callable[[int, int], None] | None = None) -> list[Picture]:
    """Read the run's data again, predict those cases again, and draw them. The captions name no case.

    Raises:
        UsageError: the run has no result yet.
        DataError: the data, or one of those cases, are no longer where the run found them.
        WeightsError, DeviceError: the adapter cannot be used on this machine.
    """
    config, result = folder.read_config(), folder.read_result()
    means = {case: statistics.fmean(dice.values()) for case, dice in result.dice.per_case.items() if dice}
    ranked = sorted(means, key=lambda case: means[case])
    picked = {"Worst": ranked[:1], "Median": ranked[len(ranked) // 2 :][:1], "Best": ranked[-1:]}
    wanted = {cases[0]: role for role, cases in picked.items() if cases}
    names: dict[str, str] = json.loads((folder.path / "cases.json").read_text("utf-8"))
    predictor = Predictor(folder.path, config["weights"])
    specs = [f"{name}={','.join(map(str, codes))}" for name, codes in predictor.labels.items()]
    dataset = select(open_data(config["data"]), specs, config["channels"])
    # test cases last, so that they win where a data set calls one of them like a training case
    by_name = {case.id: case for case in (*dataset.cases, *dataset.test_cases)}
    made = []
    for done, (hashed, role) in enumerate(sorted(wanted.items(), key=lambda item: -means[item[0]]), start=1):
        case = by_name.get(names[hashed])
        stored = case.label() if case is not None else None
        if case is None or stored is None:
            raise DataError(
                f"case {names[hashed]} of the run is not in its data any more; write the report without --images"
            )
        output, scan = predictor.probabilities(case, dataset.channels)
        masks = {
            "predicted": restore(output, scan.geometry),
            "labelled": label_indices(np.asarray(stored.array), predictor.labels),
        }
        png = preview_png(case.image(dataset.channels[0]), masks, list(predictor.labels), scan.geometry)
        made.append(Picture(f"{role} of {len(means)} test cases: mean Dice {means[hashed]:.3f}", png))
        if progress is not None:
            progress(done, len(wanted))
    return made
