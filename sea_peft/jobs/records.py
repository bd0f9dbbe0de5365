"""The records of a run: `config.json`, `cases.json`, its first event, its result, and the
adapter's config.
"""

import dataclasses
import json
import platform
import resource
import shlex
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from pydantic import ValidationError

from sea_peft import __version__, documents
from sea_peft.artefacts import store
from sea_peft.artefacts.adapter_file import AdapterConfig, AdapterUnit, Recommendation
from sea_peft.artefacts.known_labels import known_labels
from sea_peft.artefacts.quality import Quality
from sea_peft.artefacts.record import ArmDice, BackboneIdentity, HeadShape
from sea_peft.artefacts.result import (
    AuditCost,
    Budget,
    DiceScores,
    KnownDice,
    Result,
    Seconds,
    UnitCounts,
)
from sea_peft.artefacts.run_folder import GivenOptions, RunConfig, RunFolder
from sea_peft.atomic import PRIVATE, write_text
from sea_peft.backbones.typed import Typed
from sea_peft.data.cases import Case
from sea_peft.data.digest import case_hash
from sea_peft.errors import UsageError
from sea_peft.jobs.options import AdaptOptions
from sea_peft.jobs.scoring import ARMS
from sea_peft.jobs.setup import Begun, Setup
from sea_peft.loop.events import Recommended, RunStarted, Scored
from sea_peft.loop.outcome import Outcome
from sea_peft.loop.rows import Candidate


@dataclasses.dataclass(frozen=True)
class Reached:
    """The scores of a run, and the network that they recommend.

    Attributes:
        arms: arm → its score on test cases or by leave-one-out; empty if nothing was scored.
        held_out: arm → its score on the scans held out while searching.
        rates: `sensitivity` and `specificity` of the adapted arm → label → rate.
        recommended: the network that predictions use, and why.
    """

    arms: Mapping[str, Scored]
    held_out: Mapping[str, Scored]
    rates: Mapping[str, Mapping[str, float]]
    recommended: Recommended


def adapter_config(
    setup: Setup, active: Sequence[str], result: Result, known: Quality
) -> AdapterConfig:
    """The content of `adapter_config.json`: the units, how the run ended and what it saw."""
    dice = result.dice
    assert result.recommended is not None, "every run ends with one"
    card = setup.backbone.pretrained.card
    units = [setup.space.by_id[u] for u in active]
    return AdapterConfig(
        sea_peft_version=__version__,
        backbone=network_identity(setup),
        labels={name: list(codes) for name, codes in setup.dataset.labels.items()},
        channels=list(setup.dataset.channels),
        recipe=setup.recipe,
        window=setup.window,
        head=HeadShape(
            rows=list(setup.rows),
            classes=len(card.labels),
            on_features=setup.model.head.on_features,
        ),
        units=[
            AdapterUnit(
                id=u.id,
                family=u.family,
                level=u.level,
                placement=u.placement,
                path=u.site.path,
                cost=u.cost,
            )
            for u in units
        ],
        dice=ArmDice(unadapted=dice.unadapted, head_only=dice.head_only, adapted=dice.adapted),
        recommended=result.recommended,
        policy=setup.options.policy,
        seed=setup.options.seed,
        shots=setup.shots,
        quality=known,
        keep=result.keep,
        begun_from=setup.begun_from,
    )


def network_identity(setup: Setup) -> BackboneIdentity:
    """The identity of the run's network: its card, by name and by the content of its tensors."""
    pretrained = setup.backbone.pretrained
    card = pretrained.card
    return BackboneIdentity(
        architecture=card.architecture,
        kwargs=documents.as_json(card.kwargs),
        weights=card.name,
        sha256=pretrained.sha256,
        licence=card.licence,
        parameters=pretrained.parameters,
    )


def run_config(setup: Setup, name: str | None) -> RunConfig:
    """`config.json`: every resolved option, versions, the network's hash and the data's digest. It
    stays in the run folder.

    `name`: of the run, in reports and MLflow.

    Raises:
        UsageError: an option cannot be stored, and so not in an adapter either.
    """
    o = setup.options
    given = {name: getattr(o, name) for name in GivenOptions.model_fields}
    try:
        return RunConfig(
            id=uuid.uuid4().hex,
            name=name,
            data=_located(o.data),
            split=None if o.split is None else str(Path(o.split).resolve()),
            typed={
                name: value
                for name, value in documents.as_json(asdict(o)).items()
                if value is not None
            },
            profile=setup.profile,
            augmentation=setup.settings.augmentation,
            budget=o.budget or "profile",
            network=network_identity(setup),
            labels={name: list(codes) for name, codes in setup.dataset.labels.items()},
            channels=list(setup.dataset.channels),
            policy=o.policy,
            shots=setup.shots,
            steps=setup.settings.steps,
            cycles=setup.settings.cycles,
            patch=setup.window.patch,
            recipe=setup.recipe,
            seed=o.seed,
            device=str(setup.device),
            time_limit=o.time_limit,
            log_images=o.log_images,
            mlflow=o.mlflow,
            layout=setup.dataset.layout,
            data_digest=setup.public_digest,
            options=GivenOptions.model_validate(given),
            begun_from=setup.begun_from,
            versions={
                "python": platform.python_version(),
                "sea_peft": __version__,
                **{name: metadata.version(name) for name in ("torch", "monai", "numpy")},
                **({"mlflow": metadata.version("mlflow")} if store.installed() else {}),
            },
        )
    except ValidationError as error:
        raise UsageError(
            f"This cannot be written into a run folder ({documents.complaint(error)}); ask for"
            " something else."
        ) from error


def options_of(config: RunConfig, folder: RunFolder, typed: Typed) -> tuple[AdaptOptions, Begun]:
    """The options of a run to be resumed, from its `config.json`, and what it was begun with.

    The network is the one that the user types now, or the installed weights with the hash of the
    run's. The only paths taken from the file are those of the data and of the split file.

    Raises:
        UsageError: an earlier version began the run.
    """
    if (
        config.options is None
        or config.network is None
        or config.profile is None
        or config.augmentation is None
    ):
        raise UsageError(
            f"{folder.path} was begun by an earlier sea_peft, so it can be looked at and not"
            " resumed; start a new run."
        )
    options = AdaptOptions(
        **{name: getattr(config.options, name) for name in GivenOptions.model_fields},
        data=config.data,
        profile=config.profile.name,
        device=config.device,
        backbone=typed.backbone,
        weights=typed.weights,
        split=None if config.split is None else Path(config.split),
        out=folder.path,
        runs=folder.root,
        from_run=None if config.begun_from is None else folder.begun_from,
    )
    command = f"seapeft adapt --resume {shlex.quote(str(folder.path))}"
    return options, Begun(config.network, config.profile, config.augmentation, command)


def _located(name: str | None) -> str | None:
    """A path made absolute, so that the run can be resumed from elsewhere; a name unchanged."""
    return str(Path(name).resolve()) if name is not None and Path(name).exists() else name


def write_case_names(folder: RunFolder, setup: Setup) -> None:
    """`cases.json`, readable by its owner alone: hashed id → name. Nothing else in the run
    folder names a case.
    """
    names = {
        case_hash(case.id, setup.salt): case.id
        for cases in _by_role(setup).values()
        for case in cases
    }
    write_text(
        folder.case_names, json.dumps(names, indent=2, ensure_ascii=False) + "\n", mode=PRIVATE
    )


def run_started(setup: Setup) -> RunStarted:
    """The first event: the units on offer and their budget, the settings, and the hashed cases
    by role.
    """
    own = setup.policy.settings
    return RunStarted(
        policy=setup.options.policy,
        seed=setup.options.seed,
        limit=setup.space.limit,
        head=setup.space.head,
        backbone_parameters=setup.whole,
        units=[Candidate.of(unit, setup.space.cost(unit)) for unit in setup.space.units],
        settings=documents.as_json(
            {"loop": asdict(setup.settings), "policy": asdict(own) if own is not None else {}}
        ),
        split={
            role: [case_hash(case.id, setup.salt) for case in cases]
            for role, cases in _by_role(setup).items()
        },
        begun_from=setup.begun_from,
    )


def run_result(
    setup: Setup,
    outcome: Outcome,
    reached: Reached,
    kept: Mapping[str, str],
    folder: Path,
    seconds: Mapping[str, float],
    total: float,
) -> Result:
    """`result.json`. `kept`: label → which parts of its masks are kept. `seconds`: spent on `data`
    and on `test`; `total`: spent on everything, including the time before a resume.
    """
    adapted = reached.arms.get("adapted")
    return Result(
        status="done",
        shots=setup.shots,
        support_cases=len(setup.split.support),
        audit_cases=len(setup.split.audit),
        test_cases=len(setup.split.test),
        budget=Budget(
            limit=setup.space.limit,
            used=outcome.used,
            head=setup.space.head,
            fraction=outcome.used / setup.whole,
            backbone_parameters=setup.whole,
        ),
        units=UnitCounts(offered=len(setup.space.units), active=len(outcome.active)),
        dice=DiceScores(
            **_means(reached.arms),
            per_label=adapted.per_label if adapted else {},
            per_case=adapted.per_case if adapted else {},
        ),
        test=setup.tested_on,
        held_out=ArmDice(**_means(reached.held_out)) if reached.held_out else None,
        recommended=Recommendation.model_validate(asdict(reached.recommended)),
        keep=dict(kept),
        known={
            label.name: KnownDice(before=label.before, after=label.after, drawn=label.drawn)
            for label in known_labels(reached.arms, reached.held_out)
        },
        sensitivity=dict(reached.rates["sensitivity"]),
        specificity=dict(reached.rates["specificity"]),
        seconds=Seconds(total=total, data=seconds["data"], test=seconds["test"], **outcome.seconds),
        audit=AuditCost(patches=outcome.patches, naive_patches=outcome.naive_patches),
        peak_memory_bytes=peak_memory(),
        device=str(setup.device),
        seed=setup.options.seed,
        policy=setup.options.policy,
        run=str(folder),
        mlflow_run_id=None,
    )


def _means(arms: Mapping[str, Scored]) -> dict[str, float | None]:
    return {arm: arms[arm].dice if arm in arms else None for arm in ARMS}


def _by_role(setup: Setup) -> dict[str, tuple[Case, ...]]:
    return {"support": setup.split.support, "audit": setup.split.audit, "test": setup.split.test}


def peak_memory() -> int:
    """Bytes of the process's largest resident set so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
