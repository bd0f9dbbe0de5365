"""What a run puts down about itself: `config.json`, `cases.json`, its first event, its result, and the adapter's config."""

from __future__ import annotations

import dataclasses
import json
import platform
import resource
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sea_peft import __version__
from sea_peft.artefacts import run_folder as files
from sea_peft.artefacts.adapter_file import AdapterConfig, AdapterUnit, BackboneIdentity, DiceSummary, Recommendation
from sea_peft.artefacts.atomic import PRIVATE, write_text
from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.data.augment import AUGMENTATIONS
from sea_peft.data.cases import Case
from sea_peft.data.digest import case_hash
from sea_peft.errors import UsageError
from sea_peft.jobs.scoring import ARMS
from sea_peft.jobs.setup import AdaptOptions, Setup
from sea_peft.loop.budget import profiles_folder
from sea_peft.loop.events import Recommended, RunStarted, Scored
from sea_peft.loop.outcome import Outcome
from sea_peft.loop.rows import Candidate


@dataclasses.dataclass(frozen=True)
class Reached:
    """What a run came to, in Dice. `arms`: by name, on test cases or by leave-one-out; empty where nothing was scored. `held_out`: by name,
    on the scans held out while searching. `rates`: the adapted arm's `sensitivity` and `specificity`, by label."""

    arms: Mapping[str, Scored]
    held_out: Mapping[str, Scored]
    rates: Mapping[str, Mapping[str, float]]
    recommended: Recommended


def adapter_config(setup: Setup, active: Sequence[str], result: files.Result) -> AdapterConfig:
    """What `adapter_config.json` says of these units and of how the run ended."""
    dice = result.dice
    assert result.recommended is not None, "every run ends with one"
    card = setup.backbone.pretrained.card
    units = [setup.space.by_id[u] for u in active]
    return AdapterConfig(
        sea_peft_version=__version__,
        backbone=BackboneIdentity(
            architecture=card.architecture,
            kwargs=card.kwargs,
            weights=card.name,
            sha256=setup.backbone.pretrained.sha256,
            licence=card.licence,
            parameters=setup.backbone.pretrained.parameters,
        ),
        labels={name: list(codes) for name, codes in setup.dataset.labels.items()},
        channels=list(setup.dataset.channels),
        recipe=setup.recipe.model_dump(mode="json"),
        window=setup.window,
        head={"rows": list(setup.rows), "classes": len(card.labels), "on_features": setup.model.head.on_features},
        units=[
            AdapterUnit(id=u.id, family=u.family, level=u.level, placement=u.placement, path=u.site.path, cost=u.cost)
            for u in units
        ],
        dice=DiceSummary(unadapted=dice.unadapted, head_only=dice.head_only, adapted=dice.adapted),
        recommended=result.recommended,
        policy=setup.options.policy,
        seed=setup.options.seed,
        shots=setup.shots,
    )


def run_config(setup: Setup, name: str) -> dict[str, Any]:
    """`config.json`: every resolved option, versions, backbone hash, data digest. It stays in the run folder. `name`: what reports and
    MLflow call the run; `id`: what MLflow finds it by."""
    o, card = setup.options, setup.backbone.pretrained.card
    return {
        **as_json(asdict(o)),
        "id": uuid.uuid4().hex,
        "name": name,
        "data": _located(o.data),
        "shots": setup.shots,
        "split": None if o.split is None else str(o.split.resolve()),
        "profile": _located_profile(o.profile),
        "augment": o.augment if o.augment in ("default", *AUGMENTATIONS) else _located(o.augment),
        "budget": o.budget or "profile",
        "backbone": card.architecture,
        "weights": _located(o.weights) or card.name,
        "labels": {name: list(codes) for name, codes in setup.dataset.labels.items()},
        "channels": list(setup.dataset.channels),
        "layout": setup.dataset.layout,
        "steps": setup.settings.steps,
        "cycles": setup.settings.cycles,
        "patch": list(setup.settings.patch),
        "recipe": setup.recipe.model_dump(mode="json"),
        "device": str(setup.device),
        "backbone_sha256": setup.backbone.pretrained.sha256,
        "data_digest": setup.public_digest,
        "options": as_json(asdict(o)),
        "versions": {
            "python": platform.python_version(),
            "sea_peft": __version__,
            **{name: metadata.version(name) for name in ("torch", "monai", "numpy", "mlflow")},
        },
    }


def options_of(config: Mapping[str, Any], path: Path) -> tuple[AdaptOptions, str]:
    """The options that `run_config` kept in the file `path`, for a resumed run, and the public digest of the data.

    Raises:
        UsageError: it is not as this version writes it.
    """
    try:
        given = dict(config["options"])
        for name in ("labels", "channels"):
            given[name] = tuple(given[name])
        for name in ("patch", "spacing"):
            given[name] = tuple(given[name]) if given[name] is not None else None
        for name in ("out", "runs", "split"):
            given[name] = Path(given[name]) if given[name] is not None else None
        located = {name: config[name] for name in ("data", "profile", "augment", "weights", "device")}
        if given["split"] is not None:
            given["split"] = Path(config["split"])
        return AdaptOptions(**{**given, **located}), str(config["data_digest"])
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{path} was not written by this sea_peft ({error}), so the run cannot be resumed; start a new one."
        ) from error


def _located(name: str | None) -> str | None:
    """A path made absolute, so that the run can be resumed from elsewhere; a name as it is."""
    return str(Path(name).resolve()) if name is not None and Path(name).exists() else name


def _located_profile(name: str) -> str:
    """As `_located`; a shipped profile goes before a file of its name."""
    return name if name in {path.stem for path in profiles_folder().glob("*.toml")} else str(_located(name))


def write_case_names(folder: RunFolder, setup: Setup) -> None:
    """`cases.json`, readable by its owner alone: hashed id → name. Nothing else in the run folder names a case."""
    names = {case_hash(case.id, setup.salt): case.id for cases in _by_role(setup).values() for case in cases}
    path = folder.path / "cases.json"
    write_text(path, json.dumps(names, indent=2, ensure_ascii=False) + "\n", mode=PRIVATE)


def read_case_names(folder: RunFolder) -> dict[str, str]:
    """Hashed id → name, from `cases.json`.

    Raises:
        UsageError: it was removed, belongs to somebody else, or is damaged.
    """
    path = folder.path / "cases.json"
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"{path}, which says what the run's cases are called, cannot be read ({reason}).") from error


def run_started(setup: Setup) -> RunStarted:
    """The first event: what is on offer under which budget, the settings, and the hashed cases by role."""
    own = setup.policy.settings
    return RunStarted(
        setup.options.policy,
        setup.options.seed,
        setup.space.limit,
        setup.space.head,
        setup.backbone.pretrained.parameters,
        [Candidate.of(unit) for unit in setup.space.units],
        as_json({"loop": asdict(setup.settings), "policy": asdict(own) if own is not None else {}}),
        {role: [case_hash(case.id, setup.salt) for case in cases] for role, cases in _by_role(setup).items()},
    )


def run_result(
    setup: Setup, outcome: Outcome, reached: Reached, folder: Path, seconds: Mapping[str, float], total: float
) -> files.Result:
    """What the run ended with. `seconds`: spent on `data` and on `test`; `total`: on everything, with what went before a resume."""
    adapted, parameters = reached.arms.get("adapted"), setup.backbone.pretrained.parameters
    return files.Result(
        status="done",
        shots=setup.shots,
        support_cases=len(setup.split.support),
        audit_cases=len(setup.split.audit),
        test_cases=len(setup.split.test),
        budget=files.Budget(
            limit=setup.space.limit,
            used=outcome.used,
            head=setup.space.head,
            fraction=outcome.used / parameters,
            backbone_parameters=parameters,
        ),
        units=files.UnitCounts(offered=len(setup.space.units), active=len(outcome.active)),
        dice=files.DiceScores(
            **_means(reached.arms),
            per_label=adapted.per_label if adapted else {},
            per_case=adapted.per_case if adapted else {},
        ),
        test=setup.tested_on,
        held_out=files.HeldOut(**_means(reached.held_out)) if reached.held_out else None,
        recommended=Recommendation.model_validate(asdict(reached.recommended)),
        sensitivity=dict(reached.rates["sensitivity"]),
        specificity=dict(reached.rates["specificity"]),
        seconds=files.Seconds(
            total=total,
            train=outcome.seconds.train,
            audit=outcome.seconds.audit,
            allocate=outcome.seconds.allocate,
            data=seconds["data"],
            test=seconds["test"],
        ),
        audit=files.AuditCost(patches=outcome.patches, naive_patches=outcome.naive_patches),
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


def as_json(value: Any) -> Any:
    """Dataclass dictionaries as JSON types: tuples become lists, models dictionaries, paths strings."""
    return json.loads(json.dumps(value, default=lambda v: v.model_dump() if isinstance(v, BaseModel) else str(v)))


def peak_memory() -> int:
    """Bytes of the process's largest resident set so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
