"""A split given by the user: JSON with the ids of support, audit and test cases."""

from itertools import combinations
from pathlib import Path

from pydantic import Field

from sea_peft import documents
from sea_peft.errors import UsageError

_EXAMPLE = '{"support": ["case1", "case2"], "audit": ["case3"], "test": ["case4"]}'


class _Lists(documents.Record):
    support: list[str]
    audit: list[str] = Field(default_factory=list)
    test: list[str] | None = None


class NamedCases(_Lists):
    """Case ids by role. `test`: None if the file leaves it open. `file`: the file's name."""

    file: str

    @property
    def shots(self) -> int:
        """Number of labelled scans that the refit trains on."""
        return len(self.support) + len(self.audit)


def read_split(path: Path) -> NamedCases:
    """Read a split file.

    Raises:
        UsageError: it cannot be read, is no JSON with these lists, names no support case, or names
            one case twice.
    """
    try:
        lists = documents.check_json(_Lists, documents.read_bytes(path))
    except OSError as error:
        raise UsageError(
            f"The split file {path} cannot be read ({error.strerror}); check the path."
        ) from error
    except documents.Invalid as error:
        raise UsageError(
            f"The split file {path}: {error}; write lists of case ids such as {_EXAMPLE}."
        ) from error
    if not lists.support:
        raise UsageError(
            f"The split file {path} names no support case, so there is nothing to train on; name"
            " one."
        )
    roles = {"support": lists.support, "audit": lists.audit, "test": lists.test or []}
    for role, names in roles.items():
        for name in names:
            if names.count(name) > 1:
                raise UsageError(
                    f"The split file {path} names case {name} twice under {role}; name it once."
                )
    for (a, a_names), (b, b_names) in combinations(roles.items(), 2):
        for name in a_names:
            if name in b_names:
                raise UsageError(
                    f"The split file {path} names case {name} under {a} and under {b}, and a case"
                    " has one role only; take one of the two out."
                )
    return NamedCases(**lists.model_dump(), file=path.name)
