"""A split that the user wrote down: JSON with the ids of support, audit and test cases."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from sea_peft.errors import UsageError

_EXAMPLE = '{"support": ["case1", "case2"], "audit": ["case3"], "test": ["case4"]}'


class _Lists(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    support: list[str]
    audit: list[str] = []
    test: list[str] | None = None


class NamedCases(_Lists):
    """Case ids by role. `test`: None where the file leaves it open. `file`: what the file is called."""

    file: str

    @property
    def shots(self) -> int:
        """Labelled scans that are trained on in the end."""
        return len(self.support) + len(self.audit)


def read_split(path: Path) -> NamedCases:
    """Read a split file.

    Raises:
        UsageError: it cannot be read, is no JSON of these lists, names no support case, or one case twice.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"The split file {path} cannot be read ({reason}); check the path.") from error
    try:
        lists = _Lists.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "document"
        raise UsageError(
            f"The split file {path}: {field}: {first['msg']}; write lists of case ids such as {_EXAMPLE}."
        ) from error
    if not lists.support:
        raise UsageError(f"The split file {path} names no support case, so there is nothing to train on; name one.")
    roles = {"support": lists.support, "audit": lists.audit, "test": lists.test or []}
    for role, names in roles.items():
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"The split file {path} names case {name} twice under {role}; name it once.")
    for (a, a_names), (b, b_names) in combinations(roles.items(), 2):
        for name in a_names:
            if name in b_names:
                raise UsageError(
                    f"The split file {path} names case {name} under {a} and under {b}, and a case has one role only; take one of the two out."
                )
    return NamedCases(**lists.model_dump(), file=path.name)
