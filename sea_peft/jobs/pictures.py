"""Pictures of a run's best, median and worst test case, predicted and labelled, for its report."""

import contextlib
import dataclasses
import statistics
from collections.abc import Callable, Mapping

import numpy as np

from sea_peft.artefacts.findings import labels_lost
from sea_peft.artefacts.history import History
from sea_peft.artefacts.report import Picture
from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.artefacts.trace import read_trace
from sea_peft.backbones.typed import NOTHING, Typed
from sea_peft.data.cases import Case, safe_name
from sea_peft.data.geometry import Geometry
from sea_peft.data.prepare import label_indices, restore
from sea_peft.data.progress import Progress, unwatched
from sea_peft.data.wording import count
from sea_peft.errors import DataError, SeaPeftError, UsageError
from sea_peft.jobs.model import network_called
from sea_peft.jobs.predictor import Predictor
from sea_peft.jobs.preview import preview_png
from sea_peft.jobs.reopened import reopen
from sea_peft.jobs.shades import shades
from sea_peft.loop.events import Scored


@dataclasses.dataclass(frozen=True)
class ShownCase:
    """A test case that stands for the others. `role`: Best, Median or Worst; `dice`: label →
    Dice when the run was scored.
    """

    role: str
    case: Case
    dice: dict[str, float]

    @property
    def mean(self) -> float:
        """Mean Dice over labels, by which the case was picked."""
        return statistics.fmean(self.dice.values())


@dataclasses.dataclass(frozen=True)
class LostLabel:
    """A label on which the adapter is clearly worse than the unadapted backbone.

    Attributes:
        label: its name.
        drop: over all test cases, in words.
        case: the test case in which it lost most.
    """

    label: str
    drop: str
    case: Case


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Revisited:
    """A finished run, opened again with its adapter and its best, median and worst test case (fewer
    if there are fewer cases).

    Attributes:
        predictor: with the adapter on.
        network: the one whose predictions are shown.
        channels: the cases' names for the adapter's channels.
        labels: the adapter's, with the codes that masks are compared with. Those without codes are
            drawn nowhere, and not shown.
        shown: the cases.
        of: number of test cases that were scored.
        lost: labels that get a picture of their own.
    """

    predictor: Predictor
    network: str
    channels: tuple[str, ...]
    labels: Mapping[str, tuple[int, ...]]
    shown: tuple[ShownCase, ...]
    of: int
    lost: tuple[LostLabel, ...]


def revisit(
    folder: RunFolder, typed: Typed = NOTHING, device: str = "auto", use: str | None = None
) -> Revisited:
    """Open a run's adapter and data again.

    Args:
        folder: the run folder.
        typed: as for `Predictor`.
        device: as on the command line.
        use: "adapted" or "unadapted"; None for the network that the run recommends.

    Raises:
        UsageError: the run has no result yet, or its `cases.json` cannot be read.
        DataError: the data, or one of those cases, are no longer where the run found them.
        WeightsError: the adapter is refused.
        DeviceError: the device is not there.
    """
    history = History(read_trace(folder.trace))
    folder.read_result()  # says how to go on where there is none
    predictor = Predictor(folder.path, typed, device, "adapted", verb="report")
    network = predictor.config.recommended.network if use is None else network_called(use)
    if network == "both":
        raise UsageError(
            "--use both is not scored by a run, so there is no best and worst case to draw; use"
            " adapted."
        )
    arms = history.scored if history.tested_on == "test" else {}
    scored = (
        {case: dice for case, dice in arms[network].per_case.items() if dice}
        if network in arms
        else {}
    )
    ranked = sorted(scored, key=lambda case: statistics.fmean(scored[case].values()))
    picked = {"Worst": ranked[:1], "Median": ranked[len(ranked) // 2 :][:1], "Best": ranked[-1:]}
    roles = {
        cases[0]: role for role, cases in picked.items() if cases
    }  # one case may be best, median and worst
    drops = labels_lost(history) if arms else {}
    try:
        run = reopen(folder, predictor.labels)
        shown = [
            ShownCase(roles[case], run.case(case), scored[case])
            for case in reversed(ranked)
            if case in roles
        ]
        lost = tuple(
            LostLabel(label, drop, run.case(_lost_most(arms, label)))
            for label, drop in drops.items()
        )
    except (UsageError, DataError) as error:
        raise type(error)(
            f"{str(error).rstrip('.')}; write the report without --images and --explain."
        ) from error
    return Revisited(
        predictor=predictor,
        network=network,
        channels=run.channels,
        labels=run.labels,
        shown=tuple(shown),
        of=len(scored),
        lost=lost,
    )


def _lost_most(arms: Mapping[str, Scored], label: str) -> str:
    """The hashed case in which the adapter is furthest below the unadapted backbone."""
    before, after = arms["unadapted"].per_case, arms["adapted"].per_case
    both = [case for case in before if label in before[case] and label in after.get(case, {})]
    return max(both, key=lambda case: before[case][label] - after[case][label])


def case_pictures(run: Revisited, progress: Progress = unwatched) -> list[Picture]:
    """Predict and draw those cases, then every label that lost, centred on it. The captions
    name no case.
    """
    made = []
    labels, of = list(run.predictor.labels), len(run.shown) + len(run.lost)
    for shown in run.shown:
        mask, geometry = _predicted(run, shown.case, run.network)
        png = _drawn(run, shown.case, {"predicted": mask}, geometry)
        by = "" if run.network == "adapted" else " by the unadapted network"
        cases = count(run.of, "test case")
        made.append(Picture(f"{shown.role} of {cases}{by}: mean Dice {shown.mean:.3f}", png))
        progress(len(made), of)
    for lost in run.lost:
        before, geometry = _predicted(run, lost.case, "unadapted")
        after, _ = _predicted(run, lost.case, "adapted")
        masks = {"unadapted": before, "adapted": after}
        png = _drawn(run, lost.case, masks, geometry, about=1 + labels.index(lost.label))
        made.append(
            Picture(
                f"{lost.label} lost by the adapter ({lost.drop}): the test case in which it lost"
                " most",
                png,
            )
        )
        progress(len(made), of)
    return made


def _predicted(run: Revisited, case: Case, network: str) -> tuple[np.ndarray, Geometry]:
    """Label indices on the case's own grid, by one of the two networks."""
    with run.predictor.model.unadapted() if network == "unadapted" else contextlib.nullcontext():
        scan = run.predictor.prepared(case, run.channels)
        output = run.predictor.probabilities(scan)
    return restore(output, scan.geometry), scan.geometry


def _drawn(
    run: Revisited,
    case: Case,
    masks: Mapping[str, np.ndarray],
    geometry: Geometry,
    about: int | None = None,
) -> bytes:
    config, image = run.predictor.config, case.image(run.channels[0])
    shown = shades(np.asarray(image.array), config.channels[0], config.recipe.intensity)
    drawn = np.array([True, *map(bool, run.labels.values())])
    masks = {title: np.where(drawn[mask], mask, 0) for title, mask in masks.items()}
    return preview_png(image, masks, list(run.labels), geometry, shown, about, _labelled(run, case))


def _labelled(run: Revisited, case: Case) -> np.ndarray:
    stored = case.label()
    assert stored is not None, "only labelled cases are scored"
    return label_indices(np.asarray(stored.array), run.labels)


def images_for_mlflow(
    folder: RunFolder, warn: Callable[[str], None], typed: Typed = NOTHING, device: str = "auto"
) -> dict[str, bytes]:
    """The same pictures of a finished run by file name, if it was begun with --log-images.
    Otherwise none: pixels stay out of MLflow.

    `warn` is told if they cannot be made. `typed`: as for `revisit`.
    """
    if not folder.config.is_file() or not folder.read_config().log_images:
        return {}
    try:
        run = revisit(folder, typed, device)
        pictures = case_pictures(run)
    except SeaPeftError as error:
        warn(f"MLflow gets no pictures of the run: {error}")
        return {}
    names = [
        *(shown.role.lower() for shown in run.shown),
        *(f"lost_{safe_name(lost.label)}" for lost in run.lost),
    ]
    return {f"{name}.png": picture.data for name, picture in zip(names, pictures, strict=True)}
