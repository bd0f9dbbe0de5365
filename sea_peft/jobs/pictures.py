"""Pictures of a run's best, median and worst test case, predicted and labelled, for its report."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable

import numpy as np

from sea_peft.artefacts.report import Picture
from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.data.cases import Case
from sea_peft.data.prepare import label_indices, restore
from sea_peft.data.select import select
from sea_peft.errors import DataError, SeaPeftError, UsageError
from sea_peft.jobs.predictor import Predictor
from sea_peft.jobs.preview import preview_png
from sea_peft.jobs.records import read_case_names
from sea_peft.jobs.setup import open_data


@dataclasses.dataclass(frozen=True)
class ShownCase:
    """A test case that stands for the others. `role`: Best, Median or Worst; `dice`: label → Dice when the run was scored."""

    role: str
    case: Case
    dice: dict[str, float]

    @property
    def mean(self) -> float:
        """Mean Dice over labels, by which the case was picked."""
        return statistics.fmean(self.dice.values())


@dataclasses.dataclass(frozen=True, eq=False)
class Revisited:
    """A finished run with its adapter and its best, median and worst test case (fewer where there are fewer cases) at hand again.

    `channels`: what the cases call the adapter's channels. `of`: how many test cases were scored.
    """

    predictor: Predictor
    channels: tuple[str, ...]
    shown: tuple[ShownCase, ...]
    of: int


def revisit(folder: RunFolder, device: str = "auto") -> Revisited:
    """Open a run's adapter and data again, on `device` as on the command line.

    Raises:
        UsageError: the run has no result yet, or its `cases.json` cannot be read.
        DataError: the data, or one of those cases, are no longer where the run found them.
        WeightsError, DeviceError: the adapter cannot be used on this machine.
    """
    config, result = folder.read_config(), folder.read_result()
    scored = {case: dice for case, dice in result.dice.per_case.items() if dice}
    ranked = sorted(scored, key=lambda case: statistics.fmean(scored[case].values()))
    picked = {"Worst": ranked[:1], "Median": ranked[len(ranked) // 2 :][:1], "Best": ranked[-1:]}
    roles = {cases[0]: role for role, cases in picked.items() if cases}  # one case may be best, median and worst
    try:
        names = read_case_names(folder)
    except UsageError as error:
        raise UsageError(f"{str(error).rstrip('.')}; write the report without --images and --explain.") from error
    predictor = Predictor(folder.path, config["weights"], device)
    specs = [f"{name}={','.join(map(str, codes))}" for name, codes in predictor.labels.items()]
    dataset = select(open_data(config["data"]), specs, config["channels"])
    # test cases last, so that they win where a data set calls one of them like a training case
    by_name = {case.id: case for case in (*dataset.cases, *dataset.test_cases)}
    shown = []
    for hashed in (case for case in reversed(ranked) if case in roles):
        if names[hashed] not in by_name:
            raise DataError(
                f"case {names[hashed]} of the run is not in its data any more; write the report without --images and --explain"
            )
        shown.append(ShownCase(roles[hashed], by_name[names[hashed]], scored[hashed]))
    return Revisited(predictor, dataset.channels, tuple(shown), len(scored))


def case_pictures(run: Revisited, progress: Callable[[int, int], None] | None = None) -> list[Picture]:
    """Predict those cases again and draw them. The captions name no case."""
    made = []
    for done, shown in enumerate(run.shown, start=1):
        stored = shown.case.label()
        assert stored is not None, "only labelled cases are scored"
        output, scan = run.predictor.probabilities(shown.case, run.channels)
        masks = {
            "predicted": restore(output, scan.geometry),
            "labelled": label_indices(np.asarray(stored.array), run.predictor.labels),
        }
        png = preview_png(shown.case.image(run.channels[0]), masks, list(run.predictor.labels), scan.geometry)
        made.append(Picture(f"{shown.role} of {run.of} test cases: mean Dice {shown.mean:.3f}", png))
        if progress is not None:
            progress(done, len(run.shown))
    return made


def images_for_mlflow(folder: RunFolder, warn: Callable[[str], None], device: str = "auto") -> dict[str, bytes]:
    """Those pictures of a finished run by file name, where it was begun with --log-images; else none, and pixels stay out of MLflow.

    `warn` is told why they could not be made.
    """
    if not folder.config.is_file() or not folder.read_config().get("log_images"):
        return {}
    try:
        run = revisit(folder, device)
        pictures = case_pictures(run)
    except SeaPeftError as error:
        warn(f"MLflow gets no pictures of the run: {error}")
        return {}
    return {f"{shown.role.lower()}.png": picture.data for shown, picture in zip(run.shown, pictures, strict=True)}
