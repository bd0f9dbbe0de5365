"""Budget profiles: the units that a run may choose from, and its default budget."""

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
    """One `[families.<name>]` table: the levels, placements and kinds of site on offer. By default,
    all that the family has.
    """

    levels: tuple[Annotated[int, Field(ge=0, le=65535)], ...] | None = None
    placements: tuple[str, ...] | None = None
    kinds: tuple[str, ...] | None = None


class Profile(Record):
    """A budget profile, `budgets/*.toml`.

    Attributes:
        name: of the profile.
        about: in a sentence.
        budget: the default budget, as on the command line.
        head: which rows are fitted and counted: all (train), those of labels that are new to the
            backbone (new), or none (frozen).
        families: family → its offer.
    """

    name: Name
    about: Text = ""
    budget: Name = "1%"
    head: Literal["train", "new", "frozen"] = "train"
    families: dict[Name, FamilyOffer]

    @property
    def cost_kind(self) -> Cost:
        """The kind of cost that its budget counts."""
        return PARAMETERS

    def offers(self) -> dict[str, Offer]:
        """Family name → offer, for the registry."""
        from sea_peft.adapters import Offer  # a run folder is read without torch

        return {name: Offer(f.levels, f.placements, f.kinds) for name, f in self.families.items()}


def profiles_folder() -> Path:
    """The folder of the shipped profiles: inside the installed package, or at the top of a
    checkout.
    """
    package = Path(__file__).resolve().parent.parent
    inside = package / "budgets"
    return inside if inside.is_dir() else package.parent / "budgets"


def load_profile(name: str) -> Profile:
    """The shipped profile called `name`, or the TOML file at that path. Raises UsageError saying
    what is wrong in it.
    """
    shipped = {path.stem: path for path in sorted(profiles_folder().glob("*.toml"))}
    path = shipped.get(name, Path(name))
    if not path.is_file():
        raise UsageError(
            f"No budget profile {name!r}; there are {', '.join(shipped)}, or give the path of a"
            " TOML file."
        )
    try:
        return documents.check(Profile, {"name": path.stem} | documents.load_toml(path))
    except OSError as error:
        raise UsageError(
            f"Budget profile {path.name} cannot be read: {error.strerror}.", "profile"
        ) from error
    except documents.Invalid as error:
        raise UsageError(f"Budget profile {path.name}: {error}.", "profile") from error
