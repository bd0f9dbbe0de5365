"""What a run has come to: the schema of `result.json`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sea_peft.artefacts.adapter_file import Recommendation
from sea_peft.artefacts.record import ArmDice, MlflowId
from sea_peft.documents import Count, Dice, Duration, Name, Parameters, Record, Seed, Text
from sea_peft.loop.cost import PARAMETERS, Cost

_Rates = dict[Name, Dice]


class Budget(Record):
    """The limit, what is used, the head's share, and `used` as a fraction of the backbone, all as
    `cost_kind` counts.
    """

    limit: Count
    used: Count
    head: Count
    fraction: Annotated[float, Field(ge=0, le=1e6)]
    backbone_parameters: Parameters

    @property
    def cost_kind(self) -> Cost:
        """The kind of cost that these numbers count."""
        return PARAMETERS


class UnitCounts(Record):
    """Units in the audit space and units shipped."""

    offered: Count
    active: Count


class DiceScores(ArmDice):
    """Scores on the test cases, or by leave-one-out. Details are of `adapted`.

    Null: nothing was scored, or the arm cannot predict the labels.
    """

    per_label: _Rates
    per_case: dict[Name, _Rates]


class KnownDice(Record):
    """Dice of a label that the network knew, unadapted and adapted (`known_labels.KnownLabel`).

    `drawn`: whether both are against drawn masks; if not, against the unadapted network's own.
    """

    before: Dice
    after: Dice
    drawn: bool


class Seconds(Record):
    """Wall-clock time by activity."""

    total: Duration
    train: Duration
    audit: Duration
    allocate: Duration
    data: Duration
    test: Duration


class AuditCost(Record):
    """Patch forwards of audits, and those that auditing every unit on every patch would have
    taken.
    """

    patches: Count
    naive_patches: Count


class Result(Record):
    """`result.json`, which `seapeft adapt --json` also prints.

    `test`: what `dice` was measured on: test cases, the shots by leave-one-out, or nothing.
    `held_out`: Dice on the scans held out while searching or, at one shot, on its held-out labels.
    `recommended`: null in runs of earlier versions. `keep`: label → which connected parts of its
    masks are kept; all if it is not named. `known`: the labels that the network knew, if
    `--add-label` added others. `sensitivity`, `specificity`: by label, mean over scored cases.
    """

    status: Name
    shots: Count
    support_cases: Count
    audit_cases: Count
    test_cases: Count
    budget: Budget
    units: UnitCounts
    dice: DiceScores
    test: Literal["cases", "cv", "none"] = "cases"
    held_out: ArmDice | None = None
    recommended: Recommendation | None = None
    keep: dict[Name, Name] = Field(default_factory=dict)
    known: dict[Name, KnownDice] = Field(default_factory=dict)
    sensitivity: _Rates = Field(default_factory=dict)
    specificity: _Rates = Field(default_factory=dict)
    seconds: Seconds
    audit: AuditCost
    peak_memory_bytes: Annotated[int, Field(ge=0, le=2**60)]
    device: Name
    seed: Seed
    policy: Name
    run: Text
    mlflow_run_id: MlflowId | None
