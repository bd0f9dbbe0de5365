"""A plausible run as events, without a network: by default 12 units at 6 sites, 3 cycles, 5
shots.
"""

from __future__ import annotations

import hashlib
import random
import uuid
from pathlib import Path
from typing import Any

from sea_peft.artefacts.profile import Profile
from sea_peft.artefacts.record import BackboneIdentity
from sea_peft.artefacts.result import AuditCost, Budget, DiceScores, Result, Seconds, UnitCounts
from sea_peft.artefacts.run_folder import GivenOptions, RunConfig, RunFolder
from sea_peft.artefacts.trace import TraceWriter
from sea_peft.data.augmentation import Augmentation
from sea_peft.data.recipe import Recipe
from sea_peft.loop import events as ev
from sea_peft.loop.events import Event
from sea_peft.loop.rows import Ablation, Candidate, Decision, Ranking

STAGES = ("stem", "encoder", "encoder", "bottleneck", "decoder", "head")
HEAD, BACKBONE = 51, 600_000


def make_config(**changes: Any) -> RunConfig:
    """A config.json that goes with the events; the data lie in a folder that is named after a
    patient.
    """
    given = {
        "shots": 5,
        "budget": "1%",
        "labels": (),
        "channels": (),
        "policy": "sea",
        "steps": 90,
        "cycles": None,
        "patch": None,
        "spacing": None,
        "seed": 0,
        "time_limit": None,
        "log_images": False,
        "mlflow": True,
        "test": None,
    }
    fields = {
        "id": "0" * 32,
        "name": "2026-07-01-cdcdcdcd-1",
        "data": "/home/someone/Jane_Doe_scans",
        "split": None,
        "typed": {
            "data": "/home/someone/Jane_Doe_scans",
            "runs": "/home/someone/runs",
            "profile": "/home/someone/Jane_Doe.toml",
        },
        "profile": Profile(name="mine", families={}),
        "augmentation": Augmentation(),
        "network": BackboneIdentity(
            architecture="segresnet",
            kwargs={},
            weights="phantom-source",
            sha256="ab" * 32,
            parameters=BACKBONE,
        ),
        "labels": {"liver": [1], "spleen": [2]},
        "channels": ["CT"],
        "patch": (48, 48, 32),
        "recipe": Recipe(),
        "device": "cpu",
        "cycles": 3,
        "layout": "nnunet_raw",
        "data_digest": "cd" * 32,
        "options": GivenOptions.model_validate(given),
        "versions": {"sea_peft": "0.1.0"},
    }
    shared = {
        name: given[name]
        for name in (
            "shots",
            "budget",
            "policy",
            "steps",
            "seed",
            "time_limit",
            "log_images",
            "mlflow",
        )
    }
    return RunConfig(**{**shared, **fields, **changes})


CONFIG = make_config().flat()


def hashed(case: str) -> str:
    return hashlib.sha256(case.encode()).hexdigest()[:12]


def make_units(sites: int = 6) -> list[Candidate]:
    rows = []
    for order in range(sites):
        stage = STAGES[order * len(STAGES) // sites]
        site = f"{stage}_layers.{order}.conv"
        at = {"site": site, "kind": "conv", "stage": stage, "order": order, "placement": "parallel"}
        lora, affine = f"lora@{site}#r4", f"affine@{site}"
        rows.append(Candidate(unit=lora, family="lora", level=4, cost=900 + 200 * order, **at))
        rows.append(Candidate(unit=affine, family="affine", level=0, cost=32 * (order + 1), **at))
    return rows


def make_events(
    cycles: int = 3,
    sites: int = 6,
    seed: int = 0,
    adapted: float = 0.84,
    shots: int = 5,
    unadapted: float | None = 0.61,
) -> list[Event]:
    """The events of one run, in the order in which the controller emits them; a function of the
    arguments.
    """
    return list(_Run(cycles, sites, seed, shots).events(adapted, unadapted))


class _Run:
    def __init__(self, cycles: int, sites: int, seed: int, shots: int) -> None:
        self.cycles, self.seed, self.shots = cycles, seed, shots
        self.rng = random.Random(seed)
        self.units = make_units(sites)
        self.cost = {row.unit: row.cost for row in self.units}
        self.limit = 1000 * sites
        self.truth = {unit: self.rng.gauss(0.006, 0.008) for unit in self.cost}
        self.ema: dict[str, float] = {}
        self.active: list[str] = []

    def events(self, adapted: float, unadapted: float | None):
        rng, cost = self.rng, self.cost
        audit = 1 if self.shots > 1 else 0
        roles = {"support": self.shots - audit, "audit": audit, "test": 8}
        split = {role: [hashed(f"{role}{i}") for i in range(n)] for role, n in roles.items()}
        settings = {
            "loop": {"steps": 90, "warmup_share": 0.08},
            "policy": {"utility": {"decay": 0.93}},
        }
        yield ev.RunStarted(
            policy="sea",
            seed=self.seed,
            limit=self.limit,
            head=HEAD,
            backbone_parameters=BACKBONE,
            units=self.units,
            settings=settings,
            split=split,
        )
        yield ev.Searched(
            cycle=-1,
            phase="warmup",
            first_step=0,
            last_step=7,
            loss=0.9,
            active=[],
            probes=[],
            seconds=1.0,
        )
        yield ev.SaliencyMeasured(0, {unit: rng.random() * 1e-3 for unit in cost}, 0.2)
        for cycle in range(self.cycles):
            yield (allocated := self.allocate(cycle, final=False))
            for step in range(20):
                yield ev.TrainingStep("search", 7 + 20 * cycle + step, 90, 0.5)
            first, loss = 7 + 20 * cycle, 0.8 * 0.7**cycle
            on = sorted(allocated.active + allocated.probes)
            yield ev.Searched(
                cycle=cycle,
                phase="search",
                first_step=first,
                last_step=first + 20,
                loss=loss,
                active=allocated.active,
                probes=allocated.probes,
                seconds=2.5,
            )
            rows = [
                Ablation(
                    unit=u,
                    delta=self.truth[u] + rng.gauss(0, 0.003),
                    standard_error=0.003,
                    patches=8,
                    deltas=(0.001,) * 8,
                )
                for u in on
            ]
            dice, naive = 0.6 + 0.2 * (1 - 0.5**cycle), 8 * (len(cost) + 1)
            yield ev.Audited(
                cycle=cycle,
                dice_on=dice,
                hard_dice=dice + 0.02,
                rows=rows,
                patches=8 * (len(on) + 1),
                naive_patches=naive,
                independent=bool(audit),
                seconds=0.7,
            )
            yield ev.Ranked(cycle, [self.rank(row, cycle) for row in rows])
        yield (allocated := self.allocate(self.cycles, final=True))
        yield ev.Compared({"unadapted": 0.6, "sea": 0.8}, "sea", "hard Dice on the audit patches")
        for first, last in ((67, 80), (80, 90)):
            yield ev.Searched(
                cycle=self.cycles,
                phase="refit",
                first_step=first,
                last_step=last,
                loss=20 / last,
                active=allocated.active,
                probes=[],
                seconds=3.0,
            )
        for arm, mean in (("unadapted", unadapted), ("head_only", 0.66), ("adapted", adapted)):
            yield self.scored(arm, mean, split["test"])
        used = HEAD + sum(cost[u] for u in allocated.active)
        yield ev.RunFinished("done", allocated.active, used, "all steps done")

    def allocate(self, cycle: int, final: bool) -> ev.Allocated:
        ranked = sorted(
            (u for u, e in self.ema.items() if e > 0.002), key=lambda u: -self.ema[u] / self.cost[u]
        )
        chosen, used, decisions = [], HEAD, []
        for unit in ranked:
            if used + self.cost[unit] <= self.limit:
                chosen.append(unit)
                used += self.cost[unit]
                kept = unit in self.active
                decisions.append(self.decide(unit, "keep" if kept else "add", "worth its cost"))
        for unit, ema in self.ema.items():
            if unit not in chosen:
                why = f"value {ema:+.4f} for {self.cost[unit]} parameters does not pay"
                decisions.append(
                    self.decide(unit, "drop" if unit in self.active else "refuse", why)
                )
        probes = []
        for unit in [] if final else self.rng.sample(list(self.cost), len(self.cost)):
            if unit not in self.ema and used + self.cost[unit] <= self.limit and len(probes) < 4:
                probes.append(unit)
                used += self.cost[unit]
                decisions.append(self.decide(unit, "probe", "by saliency"))
        changes = len(set(chosen) ^ set(self.active))
        self.active = sorted(chosen)
        value = sum(self.ema[u] for u in chosen)
        coverage = len(self.ema) / len(self.cost)
        return ev.Allocated(
            cycle=cycle,
            active=self.active,
            probes=probes,
            used=used,
            limit=self.limit,
            head=HEAD,
            value=value,
            changes=changes,
            coverage=coverage,
            decisions=decisions,
            final=final,
            seconds=0.01,
        )

    def decide(self, unit: str, decision: str, reason: str) -> Decision:
        return Decision(unit, decision, self.ema.get(unit), reason)

    def rank(self, row: Ablation, cycle: int) -> Ranking:
        unit, delta = row.unit, row.delta
        was = "active" if unit in self.active else "probe"
        ema = self.ema[unit] = 0.7 * self.ema.get(unit, delta) + 0.3 * delta
        good = ema > 0.002
        return Ranking(
            unit=unit,
            state="active" if good else "cooling",
            was=was,
            delta=delta,
            ema=ema,
            median=ema,
            iqr=0.001,
            score=ema - 0.00025,
            standard_error=row.standard_error,
            audits=cycle + 1,
            votes=1 if good else -1,
            guard=0,
            reason="votes for it" if good else "votes against it",
        )

    def scored(self, arm: str, mean: float | None, cases: list[str]) -> ev.Scored:
        if mean is None:
            return ev.Scored(arm=arm, dice=None, per_label={}, per_case={}, seconds=1.0)
        per_case = {
            case: {"liver": mean + 0.05 + self.rng.gauss(0, 0.01), "spleen": mean - 0.05}
            for case in cases
        }
        liver = sum(row["liver"] for row in per_case.values()) / len(cases)
        per_label = {"liver": liver, "spleen": mean - 0.05}
        return ev.Scored(
            arm=arm,
            dice=(liver + mean - 0.05) / 2,
            per_label=per_label,
            per_case=per_case,
            seconds=1.5,
        )


def make_result(
    events: list[Event], run: str = "runs/x", mlflow_run_id: str | None = None
) -> Result:
    """The result.json that goes with `events`."""
    started, finished = events[0], events[-1]
    assert isinstance(started, ev.RunStarted)
    assert isinstance(finished, ev.RunFinished)
    scored = {e.arm: e for e in events if isinstance(e, ev.Scored)}
    audits = [e for e in events if isinstance(e, ev.Audited)]
    split = {role: len(ids) for role, ids in started.split.items()}
    return Result(
        status="done",
        shots=split["support"] + split["audit"],
        support_cases=split["support"],
        audit_cases=split["audit"],
        test_cases=split["test"],
        budget=Budget(
            limit=started.limit,
            used=finished.used,
            head=started.head,
            fraction=finished.used / started.backbone_parameters,
            backbone_parameters=started.backbone_parameters,
        ),
        units=UnitCounts(offered=len(started.units), active=len(finished.active)),
        dice=DiceScores(
            unadapted=scored["unadapted"].dice,
            head_only=scored["head_only"].dice,
            adapted=scored["adapted"].dice,
            per_label=scored["adapted"].per_label,
            per_case=scored["adapted"].per_case,
        ),
        seconds=Seconds(total=40.0, train=20.0, audit=5.0, allocate=0.1, data=3.0, test=4.0),
        audit=AuditCost(
            patches=sum(a.patches for a in audits),
            naive_patches=sum(a.naive_patches for a in audits),
        ),
        peak_memory_bytes=1_900_000_000,
        device="cpu",
        seed=started.seed,
        policy=started.policy,
        run=run,
        mlflow_run_id=mlflow_run_id,
    )


def write_run(root: Path, events: list[Event], **config: Any) -> RunFolder:
    """The run folder that `events` would have left, without its adapter. `config`: what differs
    from `CONFIG` in its `config.json`.
    """
    folder = RunFolder.create(root, "phantom")
    with TraceWriter(folder.trace) as trace:
        for event in events:
            trace(event)
    folder.write_config(make_config(**{"id": uuid.uuid4().hex, **config}))
    if isinstance(events[-1], ev.RunFinished):
        folder.write_result(make_result(events, run=folder.name))
    return folder
