"""The policies by name. One factory makes them all; packages beside this one and the benchmarks register theirs here."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import TypeAdapter

from sea_peft import extensions
from sea_peft.adapters import Offer
from sea_peft.errors import UsageError
from sea_peft.loop.policy import Policy
from sea_peft.loop.space import Space
from sea_peft.loop.utility import Estimate


def _no_settings(_cycles: int) -> None:
    """A policy that follows none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A policy on offer. `about`: what it does, in a line. `make`: space, seed and settings → the policy. `settings`: cycles of the run → what
    it follows. `offers`: family → what of it the audit space holds; None for what the budget profile offers. `outside_budget`: a comparison
    that no budget binds. `cycles`: of its search, None for as many as the run has."""

    name: str
    about: str
    make: Callable[[Space, int, Any], Policy]
    settings: Callable[[int], object] = _no_settings
    offers: Mapping[str, Offer] | None = None
    outside_budget: bool = False
    cycles: int | None = None


Describe = Callable[[str], Entry]

_ENTRIES: dict[str, Entry] = {}
_DESCRIBED: dict[str, Describe] = {}
_SOURCES: list[Callable[[], Mapping[str, Entry]]] = []


def register(entry: Entry) -> Entry:
    """Put a policy on offer. Raises ValueError where its name is taken."""
    if entry.name in _ENTRIES:
        raise ValueError(f"policy {entry.name!r} is registered twice")
    _ENTRIES[entry.name] = entry
    return entry


def register_described(prefix: str, describe: Describe) -> None:
    """Put policies on offer whose names describe them, `prefix(field=value,...)`. `describe`: the whole name → its entry, or UsageError."""
    _DESCRIBED[prefix] = describe


def register_source(entries: Callable[[], Mapping[str, Entry]]) -> None:
    """Put policies on offer that follow from something else, such as a topology for every registered family."""
    _SOURCES.append(entries)


def policies() -> dict[str, Entry]:
    """Every policy that has one name, by name."""
    extensions.load("policies")
    following = {name: entry for source in _SOURCES for name, entry in source().items()}
    return {**following, **_ENTRIES}


def policy_entry(name: str) -> Entry:
    """The entry called `name`. Raises UsageError."""
    known = policies()
    if name in known:
        return known[name]
    describe = _DESCRIBED.get(name.partition("(")[0])
    if describe is None:
        raise UsageError(
            f"No policy is called {name!r}; there are {', '.join(sorted(known, key=lambda n: n != 'sea'))}."
        )
    return describe(name)


def make_policy(
    name: str,
    space: Space,
    *,
    seed: int,
    cycles: int,
    settings: Mapping[str, object] | None = None,
    carried: Mapping[str, Estimate] | None = None,
) -> Policy:
    """A fresh policy under the space's budget.

    Args:
        name: as it is registered.
        space: the audit space.
        seed: of the run.
        cycles: of the run's search.
        settings: what an earlier run followed, as JSON types; None for the policy's own.
        carried: units that are on from the start, with what an earlier run's audits said of them; for policies that look at audits.

    Raises:
        UsageError: no such policy.
        BudgetError: none of it fits.
        pydantic.ValidationError: these are not settings of it.
    """
    entry = policy_entry(name)
    own: Any = entry.settings(cycles)
    if own is not None and settings is not None:
        own = TypeAdapter(type(own)).validate_python(dict(settings))
    if carried and hasattr(own, "carried"):
        own = dataclasses.replace(own, carried=dict(carried))
    return entry.make(space, seed, own)
