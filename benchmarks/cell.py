"""One cell in this process: `sea_peft.jobs.adapt` with the cell's options, and what is kept of
it as a row.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.grid import Cell

DIGITS = 4
BASELINES = ("unadapted", "head_only")
# training phases of the policy's own arm, as the loop calls them
_TRAINING = ("warmup", "search", "refit")


class Watch:
    """Listens to a run: its scores, its settings, and the CPU seconds of this process between
    events, by what they went to.
    """

    def __init__(self) -> None:
        self.cpu: dict[str, float] = defaultdict(float)
        self.scored: dict[str, Any] = {}
        self.started: Any = None
        self._last = time.process_time()

    def __call__(self, event: Any) -> None:
        now = time.process_time()
        self.cpu[_spent_on(event)] += now - self._last
        self._last = now
        if event.kind == "scored":
            self.scored[event.arm] = event
        elif event.kind == "run_started":
            self.started = event


def run_cell(
    cell: Cell, policy: str, baselines: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Run one cell in this process; never raises for what goes wrong in it.

    Args:
        cell: what to run.
        policy: as `--policy` takes it.
        baselines: what `Store.baselines` gave, so that they are not fitted and scored anew; None:
            they are, and are returned.

    Returns:
        The row, and the baselines where they were made here.
    """
    import benchmarks.policies  # noqa: F401  (registers what grids compare with)
    from sea_peft.errors import SeaPeftError

    row: dict[str, Any] = {"cell": cell.row(), "policy": policy, "code": CODE, "machine": machine()}
    began, cpu = time.monotonic(), _cpu_seconds()
    watch = Watch()
    made = None
    with tempfile.TemporaryDirectory() as scratch:
        try:
            row |= {"exit_code": 0} | _adapted(cell, policy, baselines, Path(scratch), watch)
            if baselines is None:
                made = {arm: _arm(watch.scored[arm]) for arm in BASELINES}
        except Exception as error:
            known = isinstance(error, SeaPeftError)
            said = str(error) if known else f"{type(error).__name__}: {error}"
            row |= {
                "exit_code": error.exit_code if isinstance(error, SeaPeftError) else 1,
                "error": said,
            }
    row["seconds"] = {
        "wall": round(time.monotonic() - began, 1),
        "cpu": round(_cpu_seconds() - cpu, 1),
        **row.get("seconds", {}),
    }
    return row, made


def _adapted(
    cell: Cell, policy: str, baselines: Mapping[str, Any] | None, scratch: Path, watch: Watch
) -> dict[str, Any]:
    from sea_peft.jobs.adapt import adapt
    from sea_peft.jobs.options import AdaptOptions
    from sea_peft.loop.events import Scored

    data = (
        cell.data
        if cell.fold is None and not cell.without
        else str(_part(Path(cell.data), cell.fold, cell.without, scratch))
    )
    options = AdaptOptions(
        data=data,
        shots=cell.shots,
        budget=cell.budget,
        policy=policy,
        seed=cell.seed,
        out=scratch / "run",
        mlflow=False,
        **dict(cell.options),
    )
    known = baselines and {
        arm: Scored(arm=arm, **{"per_case": {}, **baselines[arm]}, seconds=0.0) for arm in BASELINES
    }
    result = adapt(options, listen=watch, baselines=known)
    config = json.loads(
        (scratch / "run" / "adapter" / "adapter_config.json").read_text(encoding="utf-8")
    )
    labels = list(config["labels"])
    families: dict[str, int] = defaultdict(int)
    for unit in config["units"]:
        families[unit["family"]] += unit["cost"]
    loop = watch.started.settings["loop"]
    return {
        "dice": {
            **{arm: _rounded(watch.scored[arm].dice) for arm in BASELINES},
            "adapted": _rounded(result.dice.adapted),
        },
        "weights": config["backbone"]["weights"],
        "labels": labels,
        "new_labels": [
            name for name, line in zip(labels, config["head"]["rows"], strict=True) if line is None
        ],
        "per_case": _by_case(result.dice.per_case, labels),
        "sensitivity": {name: _rounded(value) for name, value in result.sensitivity.items()},
        "specificity": {name: round(value, 6) for name, value in result.specificity.items()},
        "parameters": {
            "limit": result.budget.limit,
            "used": result.budget.used,
            "head": result.budget.head,
            "backbone": result.budget.backbone_parameters,
        },
        "cases": {
            "support": result.support_cases,
            "audit": result.audit_cases,
            "test": result.test_cases,
        },
        "crops": loop["steps"] * loop["batch_size"],
        "seconds": {
            **{f"cpu_{part}": round(seconds, 2) for part, seconds in sorted(watch.cpu.items())},
            "baselines": "reused" if baselines else "made",
        },
        "peak_memory_bytes": result.peak_memory_bytes,
        "audit": {"patches": result.audit.patches, "naive_patches": result.audit.naive_patches},
        "families": dict(sorted(families.items())),
        "units": [unit["id"] for unit in config["units"]],
    }


def _arm(scored: Any) -> dict[str, Any]:
    """A baseline's scores as they are stored, and as `Scored` takes them back."""
    return {
        "dice": scored.dice,
        "per_label": {name: _rounded(value) for name, value in scored.per_label.items()},
        "per_case": {
            case: {k: _rounded(v) for k, v in by.items()} for case, by in scored.per_case.items()
        },
    }


def _by_case(
    per_case: Mapping[str, Mapping[str, float]], labels: list[str]
) -> dict[str, list[float | None]]:
    """Dice by case, in the order of `labels`; None where the case has no such label."""
    return {case: [_rounded(by.get(name)) for name in labels] for case, by in per_case.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


def _spent_on(event: Any) -> str:
    """What the time before this event went to."""
    if event.kind == "training_step":
        return "train" if event.phase in _TRAINING else str(event.phase)
    kinds = {
        "run_started": "setup",
        "searched": "train",
        "saliency_measured": "train",
        "audited": "audit",
        "compared": "audit",
    }
    return kinds.get(event.kind, "other")


def _part(data: Path, fold: int | None, without: tuple[str, ...], scratch: Path) -> Path:
    """A datalist in `scratch` of the same files but for the cases `without`, with the `fold`-th
    labelled case as the test and the others as candidates; without a fold, all are candidates.
    """
    from sea_peft.data.cases import Case, FileCase
    from sea_peft.data.layouts import open_dataset

    dataset = open_dataset(data)
    cases = sorted((*dataset.cases, *dataset.test_cases), key=lambda case: case.id)
    absent = set(without) - {case.id for case in cases}
    assert not absent, f"{dataset.name} has no case {', '.join(sorted(absent))} to leave out"
    cases = [case for case in cases if case.id not in without]

    def entry(case: Case) -> dict[str, Any]:
        assert isinstance(case, FileCase), "a data set on disk"
        assert case.label_file is not None, "a labelled case"
        images = [str(case.images[channel].path.resolve()) for channel in dataset.channels]
        return {"id": case.id, "image": images, "label": str(case.label_file.resolve())}

    written = scratch / "datalist.json"
    datalist = {
        "name": dataset.name,
        "channel_names": dict(enumerate(dataset.channels)),
        "labels": {
            "background": 0,
            **{name: list(codes) for name, codes in dataset.labels.items()},
        },
        "training": [entry(case) for i, case in enumerate(cases) if i != fold],
        "test": [] if fold is None else [entry(cases[fold])],
    }
    written.write_text(json.dumps(datalist), encoding="utf-8")
    return written


def _cpu_seconds() -> float:
    """User and system time of this process and of what it started and waited for."""
    own, children = (
        resource.getrusage(resource.RUSAGE_SELF),
        resource.getrusage(resource.RUSAGE_CHILDREN),
    )
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def code_hash() -> str:
    """Eight digits of the hash of everything that decides what is chosen and trained: data,
    backbones, adapters, loop, and the budget profiles.
    """
    import sea_peft

    package = Path(sea_peft.__file__).parent
    files = [
        f
        for room in ("data", "backbones", "adapters", "loop")
        for f in (package / room).rglob("*.py")
    ]
    digest = hashlib.sha256()
    for file in sorted([*files, *(package.parent / "budgets").glob("*.toml")]):
        digest.update(
            file.relative_to(package.parent).as_posix().encode() + b"\0" + file.read_bytes()
        )
    return digest.hexdigest()[:8]


# of the code as it is when it is imported: cells forked from one process run that, whatever happens
# to the files meanwhile
CODE = code_hash()


@functools.cache
def machine() -> dict[str, Any]:
    """What the numbers were made on."""
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
