"""Budget profiles: what a run may choose from, and its usual budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sea_peft import documents
from sea_peft.documents import Name, Record, Text
from sea_peft.errors import UsageError
from sea_peft.loop.cost import PARAMETERS, Cost

if TYPE_CHECKING:
    from sea_peft.adapters import Offer


class FamilyOffer(Record):
    """One `[families.<name>]` table: which levels, placements and kinds of site are on offer; left out, all that the family has."""

    levels: tuple[Annotated[int, Field(ge=0, le=65535)], ...] | None = None
    placements: tuple[str, ...] | None = None
    kinds: tuple[str, ...] | None = None


class Profile(Record):
    """A budget profile, `budgets/*.toml`. `budget`: default budget, as on the command line. `head`: all rows fitted and counted, only the
    rows of labels that are new to the backbone, or none."""

    name: Name
    about: Text = ""
    budget: Name = "1%"
    head: Literal["train", "new", "frozen"] = "train"
    families: dict[Name, FamilyOffer]

    @property
    def cost_kind(self) -> Cost:
        """What its budget counts."""
        return PARAMETERS

    def offers(self) -> dict[str, Offer]:
        """Family name → offer, as the registry takes it."""
        from sea_peft.adapters import Offer  # a run folder is read without torch

        return {name: Offer(f.levels, f.placements, f.kinds) for name, f in self.families.items()}


def profiles_folder() -> Path:
    """Where the shipped profiles lie: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "budgets"
    return inside if inside.is_dir() else package.parent / "budgets"


def load_profile(name: str) -> Profile:
    """The shipped profile called `name`, or the TOML file at that path. Raises UsageError with what is wrong in it."""
    shipped = {path.stem: path for path in sorted(profiles_folder().glob("*.toml"))}
    path = shipped.get(name, Path(name))
    if not path.is_file():
        raise UsageError(
            f"No budget profile {name!r}; there are {', '.join(shipped)}, or give the path of a TOML file."
        )
    try:
        return documents.check(Profile, {"name": path.stem} | documents.load_toml(path))
    except OSError as error:
        raise UsageError(f"Budget profile {path.name} cannot be read: {error.strerror}.", "profile") from error
    except documents.Invalid as error:
        raise UsageError(f"Budget profile {path.name}: {error}.", "profile") from error
