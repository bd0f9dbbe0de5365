"""The options of a run, and the checks that need no data."""

import dataclasses
from pathlib import Path

from sea_peft.backbones.typed import Typed
from sea_peft.data.augmentation import Augmentation, load_augmentation
from sea_peft.data.split import Tests
from sea_peft.data.split_file import NamedCases, read_split
from sea_peft.data.wording import count
from sea_peft.errors import UsageError
from sea_peft.jobs.model import Backbone
from sea_peft.jobs.target import phantom_name
from sea_peft.loop.policies import Entry
from sea_peft.loop.settings import LoopSettings

# An embedded phantom is for a first look: two minutes on a CPU, too short for more augmentation
# than of grey values (which would give 0.868 instead of 0.881 on the default target). One's own
# scans are worth four times as many steps.
DEFAULT_STEPS = 480
PHANTOM_STEPS = 120
DEFAULT_SHOTS = 5
DEFAULT_CYCLES = 3
_MOST_CYCLES, _MOST_STEPS = 10_000, 10**9


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptOptions:
    """The options of `seapeft adapt` as the user gave them. None: the default is taken.

    Attributes:
        data: a path, `phantom:NAME`, or None for the embedded default target.
        shots: labelled scans to use; None: those of `split`, else 5.
        budget: a share (`1%`) or a count (`47k`); None: the profile's.
        profile: name or file of a budget profile.
        backbone: name of an architecture, or `package.module:factory`.
        weights: name or file of weights.
        labels: `NAME=CODES` or names; empty: all of the data set.
        channels: names, in the backbone's order; empty: matched by name.
        policy: what chooses the active set.
        steps: optimizer steps, warm-up and refit included.
        cycles: audits during the search.
        patch: voxels along each axis; None: the weights' own.
        spacing: mm along each axis; None: the weights' own.
        seed: of everything random.
        device: `auto`, `cpu`, `cuda[:N]` or `mps`.
        time_limit: seconds for training and audits of all arms together; preparing and scoring come
            on top.
        augment: `full`, `grey`, `none` or a TOML file (`sea_peft.data.augmentation`); by default
            `grey` on phantoms and `full` on scans.
        out: the run folder; None: a new one in `runs`.
        runs: the folder of all runs, which also holds the MLflow store.
        log_images: whether MLflow gets pictures of scans.
        mlflow: whether MLflow is told of the run at all.
        test: how many test cases to score on at most; `none`; `cv`: every shot by an adapter fitted
            without it; None: every labelled case that is no shot.
        split: a JSON file that names the cases (`sea_peft.data.split_file`).
        name: what the run is called; None: a name that says nothing about data on disk.
        add_labels: `NAME=CODES` or names of structures that the network does not know; it keeps all
            that it knows (`sea_peft.jobs.adding`).
        max_forget: Dice points that a known label may lose by that; None: not asked.
        from_run: a finished run whose units and head this one begins with
            (`sea_peft.jobs.going_on`); None: from nothing.
    """

    data: str | None = None
    shots: int | None = None
    budget: str | None = None
    profile: str = "default"
    backbone: str | None = None
    weights: str | None = None
    labels: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    policy: str = "sea"
    steps: int | None = None
    cycles: int | None = None
    patch: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] | None = None
    seed: int = 0
    device: str = "auto"
    time_limit: float | None = None
    augment: str = "default"
    out: str | Path | None = None
    runs: str | Path = Path("runs")
    log_images: bool = False
    mlflow: bool = True
    test: Tests = None
    split: str | Path | None = None
    name: str | None = None
    from_run: str | Path | None = None
    add_labels: tuple[str, ...] = ()
    max_forget: float | None = None

    @property
    def typed(self) -> Typed:
        """The network as the user typed it. `backbone` and `weights` never come from a file."""
        return Typed(self.backbone, self.weights)


def wanted_cases(options: AdaptOptions) -> tuple[int, NamedCases | None]:
    """The number of shots asked for, and the cases of the split file if there is one. Raises
    UsageError.
    """
    named = None if options.split is None else read_split(Path(options.split))
    shots = (
        options.shots
        if options.shots is not None
        else DEFAULT_SHOTS
        if named is None
        else named.shots
    )
    if shots < 1:
        raise UsageError(f"--shots {shots} is not a number of labelled scans; ask for 1 or more.")
    if named is not None and shots != named.shots:
        raise UsageError(
            f"--shots {shots} and {named.file}, which names {named.shots} support and audit cases,"
            " do not agree; leave --shots out."
        )
    if options.test == "cv" and shots == 1:
        raise UsageError(
            "--test cv leaves out one shot after the other and trains on the rest, so it needs"
            " --shots 2."
        )
    if isinstance(options.test, str) and options.test not in ("none", "cv"):
        raise UsageError(
            f"--test {options.test} is not known; give a number of test cases, none or cv."
        )
    if isinstance(options.test, int) and options.test < 1:
        raise UsageError(
            f"--test {options.test} is not a number of test cases; ask for 1 or more, none or cv."
        )
    return shots, named


def loop_settings(
    options: AdaptOptions, backbone: Backbone, entry: Entry, augmentation: Augmentation | None
) -> LoopSettings:
    """Steps, cycles, window and augmentation of a run. `augmentation`: that of a resumed run.
    Raises UsageError.
    """
    phantom = phantom_name(options.data) is not None
    default, usual = (PHANTOM_STEPS, "grey") if phantom else (DEFAULT_STEPS, "full")
    steps = default if options.steps is None else options.steps
    cycles = DEFAULT_CYCLES if options.cycles is None else options.cycles
    if entry.cycles is not None:
        cycles = entry.cycles
    if not 1 <= cycles <= _MOST_CYCLES:
        raise UsageError(f"--cycles {cycles}: choose 1 to {_MOST_CYCLES:,}.")
    if steps > _MOST_STEPS:
        raise UsageError(f"--steps {steps} would never end; ask for {_MOST_STEPS:,} at most.")
    patch = options.patch or backbone.pretrained.card.patch
    backbone.pretrained.architecture.check_size(patch, backbone.pretrained.card.kwargs)
    settings = LoopSettings(
        steps=steps,
        cycles=cycles,
        window=backbone.pretrained.card.window(patch),
        time_limit=options.time_limit,
        augmentation=augmentation
        or load_augmentation(usual if options.augment == "default" else options.augment),
        holds_known=bool(options.add_labels),
    )
    least = cycles + 2
    if steps < least or min(settings.plan()[1]) < 1:
        raise UsageError(
            f"--steps {steps} is too few for {count(cycles, 'cycle')} with a warm-up and a refit;"
            f" ask for at least {4 * cycles + 4} steps"
            + (" or fewer --cycles." if cycles > 1 else ".")
        )
    return settings
