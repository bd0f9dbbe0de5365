"""The policies by name. One factory makes them all; other packages and the benchmarks register
theirs here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import TypeAdapter

from sea_peft import extensions
from sea_peft.adapters import Offer
from sea_peft.errors import UsageError
from sea_peft.loop.policy import GoesOn, Policy
from sea_peft.loop.space import Space
from sea_peft.loop.utility import Estimate


def _no_settings(_cycles: int, _steps: int | None) -> None:
    """The settings of a policy that has none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A policy on offer.

    Attributes:
        name: as the user types it.
        about: what it does, in one line.
        make: space, seed and settings → the policy.
        settings: numbers of cycles and of optimizer steps → the policy's settings.
        offers: family → the part of it in the audit space; None for all that the budget profile
            offers.
        outside_budget: whether it ignores the budget, for comparisons.
        cycles: number of its search cycles; None for as many as the run has.
    """

    name: str
    about: str
    make: Callable[[Space, int, Any], Policy]
    settings: Callable[[int, int | None], object] = _no_settings
    offers: Mapping[str, Offer] | None = None
    outside_budget: bool = False
    cycles: int | None = None


Describe = Callable[[str], Entry]

_ENTRIES: dict[str, Entry] = {}
_DESCRIBED: dict[str, Describe] = {}
_SOURCES: list[Callable[[], Mapping[str, Entry]]] = []


def register(entry: Entry) -> Entry:
    """Put a policy on offer. Raises ValueError if its name is taken."""
    if entry.name in _ENTRIES:
        raise ValueError(f"policy {entry.name!r} is registered twice")
    _ENTRIES[entry.name] = entry
    return entry


def register_described(prefix: str, describe: Describe) -> None:
    """Put policies on offer whose names describe them, `prefix(field=value,...)`.

    `describe`: the whole name → its entry, or UsageError.
    """
    _DESCRIBED[prefix] = describe


def register_source(entries: Callable[[], Mapping[str, Entry]]) -> None:
    """Put policies on offer that derive from something else, such as a topology for every
    registered family.
    """
    _SOURCES.append(entries)


def policies() -> dict[str, Entry]:
    """Every policy with a fixed name, by name."""
    extensions.load("policies")
    following = {name: entry for source in _SOURCES for name, entry in source().items()}
    return {**following, **_ENTRIES}


def policy_entry(name: str) -> Entry:
    """The entry called `name`. Raises UsageError if there is none."""
    known = policies()
    if name in known:
        return known[name]
    describe = _DESCRIBED.get(name.partition("(")[0])
    if describe is None:
        there = ", ".join(sorted(known, key=lambda n: n != "sea"))
        raise UsageError(
            f"No policy is called {name!r}; there are {there}; {extensions.way_in('policies')}."
        )
    return describe(name)


def make_policy(
    name: str,
    space: Space,
    *,
    seed: int,
    cycles: int,
    steps: int | None = None,
    settings: Mapping[str, object] | None = None,
    carried: Mapping[str, Estimate] | None = None,
) -> Policy:
    """A new policy under the space's budget.

    Args:
        name: as it is registered.
        space: the audit space.
        seed: of the run.
        cycles: number of search cycles.
        steps: number of optimizer steps of the run; None where there is none, or `settings` are
            given.
        settings: those of an earlier run, as JSON types; None for the policy's own.
        carried: units that are on from the start → the estimates of an earlier run's audits. For
            policies whose settings are `GoesOn`.

    Raises:
        UsageError: no policy has this name.
        BudgetError: none of its units fits.
        pydantic.ValidationError: the settings are not valid for it.
    """
    entry = policy_entry(name)
    own: Any = entry.settings(cycles, steps)
    if own is not None and settings is not None:
        own = TypeAdapter(type(own)).validate_python(dict(settings))
    if carried and isinstance(own, GoesOn):
        own = dataclasses.replace(own, carried=dict(carried))
    return entry.make(space, seed, own)
