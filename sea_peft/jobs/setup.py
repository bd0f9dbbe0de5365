"""Resolves and checks everything that a run needs, before anything is trained or written."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from sea_peft.adapters import Adapted
from sea_peft.artefacts.privacy import paths_in, public_digest
from sea_peft.artefacts.profile import Profile, load_profile
from sea_peft.artefacts.record import BackboneIdentity
from sea_peft.data.augmentation import Augmentation
from sea_peft.data.cases import Dataset
from sea_peft.data.checks import refuse_or_pass
from sea_peft.data.intensity import choose_intensity
from sea_peft.data.progress import unwatched
from sea_peft.data.recipe import Recipe
from sea_peft.data.select import select
from sea_peft.data.sliding import SlidingWindow
from sea_peft.data.split import Split, split, split_as_named
from sea_peft.data.split_file import NamedCases
from sea_peft.data.wording import count
from sea_peft.errors import DataError, UsageError
from sea_peft.jobs.adding import require_alone, widened
from sea_peft.jobs.going_on import Earlier, read_earlier
from sea_peft.jobs.inputs import matching_channels
from sea_peft.jobs.memory import Activations, Need, inference_need, training_need
from sea_peft.jobs.model import Backbone, audit_space, matching_rows, open_recorded, own_device
from sea_peft.jobs.options import AdaptOptions, loop_settings, wanted_cases
from sea_peft.jobs.target import open_asked, open_data
from sea_peft.loop.budget import check_feasible, parse_budget
from sea_peft.loop.policies import make_policy, policy_entry
from sea_peft.loop.policy import Policy
from sea_peft.loop.processes import ALONE, Processes
from sea_peft.loop.settings import LoopSettings
from sea_peft.loop.space import Space


@dataclasses.dataclass(frozen=True)
class Begun:
    """What a resumed run was begun with. `command`: what the user types to resume it, without
    options that are missing here.
    """

    network: BackboneIdentity
    profile: Profile
    augmentation: Augmentation
    command: str


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Setup:
    """A run with all of its needs resolved.

    Attributes:
        options: what the user asked for.
        profile: the units on offer, and the default budget.
        backbone: the pretrained network and its sites.
        dataset: the cases, with the wanted labels and channels. Labels without codes are known to
            the network, and kept.
        scored: label → codes that masks are compared with.
        split: the cases by role.
        digest: of the data; case ids are hashed with it (`salt`).
        recipe: how scans are prepared.
        rows: for each target label the backbone's output row; None if it is new to the backbone.
        model: the backbone with its adapters and head.
        space: the units on offer under their budget.
        whole: size of the backbone, in the units that the budget counts.
        settings: of the loop.
        policy: the chosen policy, as it is before a run.
        device: where the model is.
        processes: those that work on the run.
        warnings: sentences for the user.
        earlier: the run that this one continues; None if it begins from nothing.
        mixed_precision: as for `Trainer`.
    """

    options: AdaptOptions
    profile: Profile
    backbone: Backbone
    dataset: Dataset
    scored: Mapping[str, tuple[int, ...]]
    split: Split
    digest: str
    recipe: Recipe
    rows: tuple[int | None, ...]
    model: Adapted
    space: Space
    whole: int
    settings: LoopSettings
    policy: Policy
    device: torch.device
    processes: Processes
    warnings: tuple[str, ...]
    earlier: Earlier | None = None
    mixed_precision: bool | None = None

    @property
    def begun_from(self) -> str | None:
        """sha256 of the tensors of the adapter that it begins with."""
        return None if self.earlier is None else self.earlier.sha256

    @property
    def salt(self) -> str:
        """The data's own digest, which is written nowhere: the same data give the same hashed ids,
        which nobody can guess without the data.
        """
        return self.digest

    @property
    def public_digest(self) -> str:
        """The digest that may be written. A phantom's ids are no secret, and neither is its
        name.
        """
        return self.digest if self.dataset.layout == "phantom" else public_digest(self.digest)

    @property
    def new_labels(self) -> tuple[str, ...]:
        """Target labels that the backbone has no output for."""
        return tuple(
            label for label, row in zip(self.dataset.labels, self.rows, strict=True) if row is None
        )

    @property
    def kept_labels(self) -> tuple[str, ...]:
        """Target labels that are known to the network and held by its own opinion, drawn or not."""
        return tuple(label for label, codes in self.dataset.labels.items() if not codes)

    @property
    def neutral_name(self) -> str:
        """A name for the data that others may see: a phantom's own name, or the first digits of the
        public digest.

        The name of a folder on disk is never used, since it can hold the name of a patient.
        """
        return self.dataset.name if self.dataset.layout == "phantom" else self.public_digest[:8]

    @property
    def shots(self) -> int:
        """Number of labelled scans that the refit trains on."""
        return len(self.split.shots)

    @property
    def tested_on(self) -> Literal["cases", "cv", "none"]:
        """What the run is scored on: test cases; its own shots, each by an adapter that never saw
        it (cv); or nothing.
        """
        return "cases" if self.split.test else "cv" if self.options.test == "cv" else "none"

    @property
    def folds(self) -> tuple[Split, ...]:
        """The splits of leave-one-out; empty unless the run is scored on its own shots."""
        return self.split.leave_one_out() if self.tested_on == "cv" else ()

    @property
    def window(self) -> SlidingWindow:
        """The window of the network, in training, audits, scores and prediction."""
        return self.settings.window

    def fresh_policy(self, name: str | None = None) -> Policy:
        """The chosen policy, or the one called `name`, as it is before a run."""
        return _policy(
            name or self.options.policy, self.space, self.options.seed, self.settings, self.earlier
        )

    def need(self) -> Need:
        """The memory and disk of the run: the larger of training on the shots and scoring whole
        scans.
        """
        network, patch = self.backbone.pretrained.network, self.window.patch
        activations = Activations.of(network, self.backbone.example)
        channels = len(self.dataset.channels)
        training = training_need(
            self.split.shots, self.recipe, channels, patch, self.settings.batch_size, activations
        )
        outputs = 2 * (
            len(self.dataset.labels) + 1
        )  # the unadapted and the head-only arm are scored together
        scored = (
            *self.split.test,
            *(self.split.shots if self.folds or not self.split.audit else self.split.audit),
        )
        scoring = inference_need(scored, self.recipe, channels, outputs, patch, activations)
        return Need(max(training.memory, scoring.memory), training.disk + scoring.disk)


def prepare_run(
    options: AdaptOptions,
    say: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
    begun: Begun | None = None,
    processes: Processes = ALONE,
    mixed_precision: bool | None = None,
) -> Setup:
    """Resolve and check everything that a run needs. Writes nothing.

    Args:
        options: what the user asked for.
        say: receives sentences for the user.
        progress: called with (done, of) while the data set is checked.
        begun: of a run that is resumed: its network, profile and augmentation.
        processes: those that will work on the run.
        mixed_precision: as for `Trainer`.

    Raises:
        SeaPeftError: what is wrong, with its exit code.
    """
    entry = policy_entry(options.policy)
    require_alone(options)
    earlier = None if options.from_run is None else read_earlier(Path(options.from_run))
    if earlier is not None:
        options = earlier.options(options)
    shots, named = wanted_cases(options)
    if not 0 <= options.seed < 2**63:
        raise UsageError(
            f"--seed {options.seed} is out of range; give a whole number from 0 up to below 2^63."
        )
    if options.name is not None and not 0 < len(options.name.strip()) <= 60:
        raise UsageError(
            "--name takes 1 to 60 characters: what the run is to be called in its folder, in"
            " reports and in MLflow."
        )
    device = own_device(options.device, processes)
    if begun is not None:
        profile, backbone = (
            begun.profile,
            open_recorded(begun.network, options.typed, begun.command),
        )
    else:
        profile, backbone = load_profile(options.profile), open_asked(options.data, options.typed)
    if earlier is not None:
        earlier.require_backbone(backbone)
    pretrained = backbone.pretrained
    kind = profile.cost_kind
    whole = kind.of_backbone(pretrained.network, backbone.example)
    limit = parse_budget(options.budget or profile.budget, whole, kind)
    settings = loop_settings(
        options, backbone, entry, None if begun is None else begun.augmentation
    )
    units = audit_space(backbone, profile.offers() if entry.offers is None else entry.offers)
    costs = kind.of_units(units, pretrained.network, backbone.example)

    opened = open_data(options.data)
    by_name = options.channels or _channels_by_name(opened, pretrained.card.channels)
    dataset = select(opened, options.add_labels or options.labels, by_name)
    for text in paths_in([*dataset.labels, *dataset.channels]):
        raise UsageError(
            f"{text!r} reads like a path, and an adapter carries no paths; name it --label"
            " NAME=CODES."
        )
    if len(dataset.channels) != len(pretrained.card.channels):
        raise UsageError(
            f"{pretrained.card.name} takes {count(len(pretrained.card.channels), 'channel')}"
            f" ({', '.join(pretrained.card.channels)}), but {len(dataset.channels)} would be given"
            f" ({', '.join(dataset.channels)}); choose with --channel, in that order."
        )
    wide = widened(pretrained.card, opened, dataset) if options.add_labels else None
    labels = dataset.labels if wide is None else wide.labels
    rows = (
        tuple(matching_rows(pretrained.card.labels, tuple(labels))) if wide is None else wide.rows
    )
    model = Adapted(
        pretrained.network,
        backbone.sites,
        units,
        rows,
        len(pretrained.card.labels),
        backbone.example,
        options.seed,
    ).to(device)
    new = [name for name, row in zip(labels, rows, strict=True) if row is None]
    if profile.head == "frozen" and new:
        raise UsageError(
            f"Label {new[0]} is new to {pretrained.card.name}, but profile {profile.name} freezes"
            ' the head, so it could never be predicted; set head = "new" there or choose another'
            " --profile."
        )
    model.head.keeps_known = profile.head == "new"
    head = (
        0
        if profile.head == "frozen"
        else kind.of_head(model.head, pretrained.network, backbone.example)
    )
    space = Space(units, limit, head, kind=kind, costs=costs)
    if earlier is not None:
        earlier.require_units(space, tuple(dataset.labels), profile, options.policy)
    no_choice = check_feasible(space, whole) if entry.offers is None else None
    # phantoms are right by construction, and checking them would render every one
    phantom = dataset.layout == "phantom"
    warnings = list(dataset.warnings) if phantom else []
    if no_choice:
        warnings.append(no_choice)
    if not by_name and len(dataset.channels) > 1:
        warnings.append(
            f"{pretrained.card.name} names its channels {', '.join(pretrained.card.channels)}, and"
            " these are not among the data's: they are taken in the order"
            f" {', '.join(dataset.channels)}; choose another with --channel."
        )
    digest, holds = f"phantom:{dataset.name}", dict[str, frozenset[str]]()
    if not phantom:
        checked = refuse_or_pass(
            _only_named(dataset, named), shots if named is None else None, progress or unwatched
        )
        dataset, digest, holds = checked.usable, checked.digest, checked.holds
        warnings += [f.sentence for f in checked.findings if f.severity != "error"]
    seen = frozenset() if earlier is None else earlier.shots
    parts = (
        split(dataset, shots, options.seed, options.test, seen, holds)
        if named is None
        else split_as_named(dataset, named, options.seed, options.test, seen, holds)
    )
    if parts.hidden:
        warnings.append(
            f"No shot but {' and '.join(case.id for case in parts.audit)}, held out for audits,"
            f" holds {' and '.join(sorted(parts.hidden))}: the search trains without an example."
            " More shots that hold it would help."
        )
    if earlier is not None:
        own = sum(case.id in seen for case in parts.shots)
        audited = (
            f" ({len(earlier.estimates)} of them audited there, so not again)"
            if earlier.estimates
            else ""
        )
        say(
            f"Going on from {earlier.folder.path}: its {count(len(earlier.units), 'unit')}{audited}"
            f" and its head begin as they are there. Of the {count(len(parts.shots), 'shot')} it"
            f" has trained on {own}."
        )
    recipe = backbone.recipe
    if options.spacing is not None:
        recipe = recipe.model_copy(update={"spacing": options.spacing})
    if earlier is not None:
        recipe = earlier.config.recipe
    else:
        recipe, changed = choose_intensity(recipe, parts.shots, dataset.channels)
        if changed:
            warnings.append(changed)
    if not parts.test and options.test != "cv":
        warnings.append(
            "The run is not scored on unseen scans: "
            + (
                "--test none asks for that."
                if options.test == "none"
                else "no labelled scan is left to test on."
            )
            + (
                " --test cv scores every shot by an adapter that never saw it."
                if shots > 1 and earlier is None
                else ""
            )
        )
    if shots == 1:
        warnings.append(
            "One shot leaves no case to audit on: utilities are measured on held-out labels of the"
            " same scan and are not independent."
        )
    # a fixed topology of which nothing fits is refused here
    policy = _policy(options.policy, space, options.seed, settings, earlier)
    setup = Setup(
        options=options,
        profile=profile,
        backbone=backbone,
        dataset=dataclasses.replace(dataset, labels=labels),
        scored=labels if wide is None else wide.scored,
        split=parts,
        digest=digest,
        recipe=recipe,
        rows=rows,
        model=model,
        space=space,
        whole=whole,
        settings=settings,
        policy=policy,
        device=device,
        processes=processes,
        warnings=tuple(warnings),
        earlier=earlier,
        mixed_precision=mixed_precision,
    )
    if options.time_limit is None:
        return setup
    # the head alone trains as long as the policy
    arms = (1.0 + (space.head > 0)) * (1 + len(setup.folds))
    settings = dataclasses.replace(settings, time_limit=options.time_limit / arms)
    return dataclasses.replace(setup, settings=settings)


def _policy(
    name: str, space: Space, seed: int, settings: LoopSettings, earlier: Earlier | None
) -> Policy:
    carried = None if earlier is None else earlier.carried
    return make_policy(
        name, space, seed=seed, cycles=settings.cycles, steps=settings.steps, carried=carried
    )


def _only_named(dataset: Dataset, named: NamedCases | None) -> Dataset:
    """The data set without the cases that a split file leaves out; all of it if there is no file,
    or it names no test cases.
    """
    if named is None or named.test is None:
        return dataset
    wanted = {*named.support, *named.audit, *named.test}
    return dataset.with_cases(
        [case for case in dataset.cases if case.id in wanted],
        [case for case in dataset.test_cases if case.id in wanted],
    )


def _channels_by_name(dataset: Dataset, wanted: Sequence[str]) -> tuple[str, ...]:
    """The data set's names for the backbone's channels, in the backbone's order; empty if names
    do not match.
    """
    try:
        return matching_channels(dataset, wanted)
    except DataError:
        return ()
