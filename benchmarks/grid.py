"""A grid of runs as TOML in `benchmarks/grids/`: data × shots × seeds × budgets × policies, and the
options they share.

    store = "unet"                   # results/unet/; grids with the same store share their cells
    data = ["phantom:low-dose-ct"]   # or paths of data sets
    shots = [5]
    seeds = [0, 1, 2]
    budgets = ["1%"]
    policies = ["sea", "affine_lora", "random_mix-1"]
    unbound = ["full"]               # run once, whatever the budgets
    leave_one_out = 4                # the first four cases, each left out once as the test case
    without = ["case_002"]           # ids of cases that no cell sees

    [options]                        # fields of sea_peft.jobs.options.AdaptOptions
    backbone = "unet"

`random_mix-N` is the N-th random subset with the mix of families that `sea` chose in the same
comparison.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GRIDS = Path(__file__).parent / "grids"
REFERENCE = "sea"
"""The policy whose mix of families the random mixes copy, and which the tables compare with the
others.
"""
_SINGULAR = {"labels": "label", "channels": "channel"}
_MIX = re.compile(r"random_mix-(\d+)")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a grid. `budget`: None for a policy that no budget binds. `fold`: the case left
    out as the test, counted in the order of case ids; None where the run draws its test cases
    itself. `without`: ids of cases that it must not see. `options`: sorted (field, value) pairs of
    `AdaptOptions`.
    """

    data: str
    shots: int
    seed: int
    budget: str | None
    policy: str
    fold: int | None
    options: tuple[tuple[str, Any], ...]
    without: tuple[str, ...] = ()

    @property
    def comparison(self) -> str:
        """Names what is the same for all policies and budgets: data, shots, seed or fold, and
        options.
        """
        data = self.data.removeprefix("phantom:").rstrip("/").rpartition("/")[2]
        parts = [data, f"{self.shots}-shot", f"seed-{self.seed}"]
        parts += [] if self.fold is None else [f"fold-{self.fold}"]
        parts += [
            f"{key}-{_plain(value)}"
            for key, value in self.options
            if key not in ("backbone", "weights", "labels", "channels")
        ]
        return ".".join(parts)

    @property
    def name(self) -> str:
        """File name of its row, without suffix."""
        budget = "unbound" if self.budget is None else self.budget.replace("%", "pct")
        return f"{self.comparison}.{budget}.{self.policy}"

    @property
    def partner(self) -> Cell | None:
        """The cell that must be there before this one can be run, None where it needs no other."""
        return dataclasses.replace(self, policy=REFERENCE) if _MIX.fullmatch(self.policy) else None

    def policy_asked_for(self, partner: Mapping[str, Any] | None) -> str:
        """The policy as `seapeft adapt --policy` takes it. `partner`: the row of the partner's
        cell.
        """
        drawn = _MIX.fullmatch(self.policy)
        if drawn is None:
            return self.policy
        assert partner is not None, "a random mix is run after its partner"
        mix = ",".join(f"{family}={cost}" for family, cost in sorted(partner["families"].items()))
        return (
            f"random_mix(draw={drawn[1]},{mix})" if mix else "head_only"
        )  # no unit in any order is the head alone

    def command(self) -> str:
        """The same run by hand; where cases are left out, the data set comes from the runner."""
        flags = {
            "shots": self.shots,
            "seed": self.seed,
            "policy": self.policy,
            "budget": self.budget,
            **dict(self.options),
        }
        flags = {_SINGULAR.get(k, k): v for k, v in flags.items()}
        words = [w for k, v in flags.items() if v is not None for w in (f"--{k}", _plain(v, ","))]
        return shlex.join(["seapeft", "adapt", self.data, *words])

    def row(self) -> dict[str, Any]:
        """As JSON types, to tell whether a row was made by this cell."""
        row = {**dataclasses.asdict(self), "options": dict(self.options)}
        if not self.without:  # as in rows of grids that leave nothing out
            del row["without"]
        return row


class Grid(pydantic.BaseModel):
    """A grid file. Raises `pydantic.ValidationError` naming the field that is wrong."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    store: str = pydantic.Field(pattern=r"^[\w-]+$")
    data: list[str]
    shots: list[int]
    seeds: list[int]
    budgets: list[str]
    policies: list[str]
    unbound: list[str] = []
    leave_one_out: int | Literal[False] = False
    """Number of cases of the data sets, each of which is left out once."""
    without: list[str] = []
    """Ids of cases that no cell sees, such as patients whom the weights were trained on."""
    options: dict[str, Any] = {}

    @pydantic.model_validator(mode="after")
    def _mixes_have_their_partner(self) -> Grid:
        if any(map(_MIX.fullmatch, self.policies)) and REFERENCE not in self.policies:
            raise ValueError(f"random mixes copy the mix of {REFERENCE}: put it among the policies")
        return self

    def cells(self) -> list[Cell]:
        """Seeds outermost, so that a grid that is stopped holds whole comparisons; the
        reference first, since mixes wait for it.
        """
        folds = list(range(self.leave_one_out)) if self.leave_one_out else [None]
        policies = sorted(self.policies, key=lambda policy: policy != REFERENCE)
        bound = [(policy, budget) for budget in self.budgets for policy in policies]
        options = tuple(
            sorted(
                (key, tuple(value) if isinstance(value, list) else value)
                for key, value in self.options.items()
            )
        )
        each = [*bound, *((policy, None) for policy in self.unbound)]
        return [
            Cell(data, shots, seed, budget, policy, fold, options, tuple(self.without))
            for seed, shots, data, fold in itertools.product(
                self.seeds, self.shots, self.data, folds
            )
            for policy, budget in each
        ]


def grid_names() -> list[str]:
    """The grids that there are."""
    return sorted(path.stem for path in GRIDS.glob("*.toml"))


def read_grid(name: str) -> Grid:
    """The grid `benchmarks/grids/<name>.toml`, or the TOML file at that path."""
    path = Path(name) if name.endswith(".toml") else GRIDS / f"{name}.toml"
    return Grid.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))


def _plain(value: Any, separator: str = "x") -> str:
    return separator.join(map(str, value)) if isinstance(value, tuple) else str(value)
