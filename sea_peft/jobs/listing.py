"""`seapeft backbones list | info`, `adapters list` and `policies list`: what is available, counted
on the real networks.
"""

import collections
import dataclasses

from sea_peft import documents
from sea_peft.adapters import Unit, units_for
from sea_peft.artefacts.names import short_names
from sea_peft.artefacts.profile import load_profile
from sea_peft.backbones import KINDS, STAGES, Limits, architecture, architectures
from sea_peft.backbones.field_of_view import FieldOfView, field_of_view
from sea_peft.backbones.typed import NOTHING, Typed, is_code
from sea_peft.backbones.weights import BUNDLED, Card, Pretrained, cards, no_larger, read_card
from sea_peft.errors import SeaPeftError, WeightsError, first_line, refusing
from sea_peft.jobs.model import audit_space, look_at
from sea_peft.loop.budget import parse_budget
from sea_peft.loop.policies import policies
from sea_peft.loop.rows import Candidate
from sea_peft.loop.space import Space

# no published segmentation network has as many
_MOST_PARAMETERS, _MOST_TENSORS = 4 * 10**9, 20_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneRow:
    """Weights, or an architecture (`weights` None) at its default widths.

    `parameters` is None if the card cannot be read or a package is missing.
    """

    architecture: str
    origin: str
    weights: str | None = None
    parameters: int | None = None
    labels: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    spacing: tuple[float, ...] = ()
    dice: float | None = None
    licence: str = ""
    sha256: str | None = None
    problem: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneInfo:
    """A backbone in detail.

    Attributes:
        card: of its weights.
        paper: that describes it.
        network_licence: of its code.
        parameters: number of parameters.
        sha256: of its tensors, as adapters store it; empty if it has no weights.
        trained: whether it has weights.
        limits: on its input.
        sites: (stage, kind) → number of sites.
        view: its field of view.
    """

    card: Card
    paper: str
    network_licence: str
    parameters: int
    sha256: str
    trained: bool
    limits: Limits
    sites: dict[tuple[str, str], int]
    view: FieldOfView


@dataclasses.dataclass(frozen=True, kw_only=True)
class FamilyRow:
    """One family at one level and placement on one backbone.

    Attributes:
        family: its name.
        level: its size.
        placement: at its sites.
        kinds: of its sites.
        units: number of its units.
        cheapest: cost of its cheapest unit.
        dearest: cost of its dearest unit.
        total: cost of all of its units.
        fits: number of units that fit the profile's budget, cheapest first.
        prefix: the beginning of their ids.
    """

    family: str
    level: int
    placement: str
    kinds: tuple[str, ...]
    units: int
    cheapest: int
    dearest: int
    total: int
    fits: int
    prefix: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Offered:
    """What a budget profile offers on a backbone. `costs`: what its budget counts."""

    profile: str
    about: str
    weights: str
    parameters: int
    budget: str
    limit: int
    families: tuple[FamilyRow, ...]
    units: tuple[Candidate, ...]
    fits: int
    costs: str

    @property
    def names(self) -> dict[str, str]:
        """Site → its short name, as a run with this offer calls it."""
        sites = sorted(
            {unit.site: unit for unit in self.units}.values(), key=lambda unit: unit.order
        )
        return short_names((unit.site, unit.stage, unit.kind) for unit in sites)

    def document(self) -> dict[str, object]:
        """Everything as JSON types."""
        return documents.as_json(vars(self))


def list_backbones() -> list[BackboneRow]:
    """All installed weights, then every architecture."""
    rows = []
    for name, path in cards().items():
        origin = "bundled" if path.parent == BUNDLED else "imported"
        try:
            card = read_card(path)
            counted = _parameters(card)
        except SeaPeftError as error:
            rows.append(
                BackboneRow(architecture="?", weights=name, origin=origin, problem=str(error))
            )
            continue
        rows.append(
            BackboneRow(
                architecture=card.architecture,
                weights=name,
                origin=origin,
                parameters=counted,
                labels=tuple(card.labels[1:]),
                channels=tuple(card.channels),
                spacing=card.recipe.spacing,
                dice=card.dice.get("mean"),
                licence=card.licence,
                sha256=card.sha256,
            )
        )
    rows += [
        BackboneRow(
            architecture=arch.name,
            origin="architecture",
            licence=arch.licence,
            parameters=arch.parameters({}) if arch.installed else None,
        )
        for arch in architectures().values()
    ]
    return rows


def backbone_info(name: str, typed: Typed = NOTHING) -> BackboneInfo:
    """Weights by name or file, an architecture or a `package.module:factory`, loaded and probed.

    Args:
        name: what the user typed.
        typed: what the user typed besides: the architecture of these weights, or the weights of
            this architecture.

    Raises:
        WeightsError, UsageError: as `load_typed`.
    """
    of_weights = name in cards() or not (name in architectures() or is_code(name))
    backbone = look_at(
        dataclasses.replace(typed, weights=name)
        if of_weights
        else dataclasses.replace(typed, backbone=name)
    )
    pretrained = backbone.pretrained
    counted = collections.Counter((site.stage, site.kind) for site in backbone.sites)
    arch = pretrained.architecture
    return BackboneInfo(
        card=pretrained.card,
        paper=arch.paper,
        network_licence=arch.licence,
        parameters=pretrained.parameters,
        sha256=pretrained.sha256,
        trained=_trained(pretrained),
        limits=pretrained.limits,
        sites={
            (stage, kind): counted[stage, kind]
            for stage in STAGES
            for kind in KINDS
            if counted[stage, kind]
        },
        view=field_of_view(pretrained.network, len(pretrained.card.channels), pretrained.limits),
    )


def list_adapters(typed: Typed, profile: str) -> Offered:
    """Families, levels and placements of a budget profile, and their units on a backbone. Raises
    UsageError, WeightsError.
    """
    offers = load_profile(profile)
    opened = look_at(typed)
    network = opened.pretrained.network
    # without weights the probe of the sites must do: trying every unit takes minutes on the largest
    # networks
    units = (
        audit_space(opened, offers.offers())
        if _trained(opened.pretrained)
        else units_for(network, opened.sites, offers.offers())
    )
    kind = offers.cost_kind
    limit = parse_budget(offers.budget, kind.of_backbone(network, opened.example), kind)
    space = Space(
        units, limit, head=0, kind=kind, costs=kind.of_units(units, network, opened.example)
    )
    groups: dict[tuple[str, int, str], list[Unit]] = {}
    for unit in units:
        groups.setdefault((unit.family, unit.level, unit.placement), []).append(unit)
    rows = [
        FamilyRow(
            family=family,
            level=level,
            placement=placement,
            kinds=tuple(sorted({u.site.kind for u in made})),
            units=len(made),
            cheapest=min(map(space.cost, made)),
            dearest=max(map(space.cost, made)),
            total=space.total(made),
            fits=fitting(dataclasses.replace(space, units=tuple(made))),
            prefix=made[0].id.partition("@")[0],
        )
        for (family, level, placement), made in sorted(groups.items())
    ]
    return Offered(
        profile=offers.name,
        about=offers.about,
        weights=_called(opened.pretrained),
        parameters=opened.pretrained.parameters,
        budget=offers.budget,
        limit=space.limit,
        families=tuple(rows),
        units=tuple(Candidate.of(unit, space.cost(unit)) for unit in units),
        fits=fitting(space),
        costs=kind.many,
    )


@dataclasses.dataclass(frozen=True)
class PolicyRow:
    """One policy. `within_budget`: false for comparisons that ignore the budget."""

    name: str
    about: str
    within_budget: bool


def list_policies() -> list[PolicyRow]:
    """`sea` and every fixed topology, including those of installed packages. Raises UsageError if
    such a package is broken.
    """
    rows = [
        PolicyRow(entry.name, entry.about, not entry.outside_budget)
        for entry in policies().values()
    ]
    return sorted(rows, key=lambda row: (row.name != "sea", not row.within_budget, row.name))


def _trained(pretrained: Pretrained) -> bool:
    return bool(pretrained.card.sha256)


def _called(pretrained: Pretrained) -> str:
    return (
        pretrained.card.name
        if _trained(pretrained)
        else f"{pretrained.architecture.name}, untrained,"
    )


def _parameters(card: Card) -> int | None:
    """Number of parameters; None if the network needs code that runs only when the user types
    it.
    """
    if is_code(card.architecture):
        return None
    channels = {"in_channels": len(card.channels), "out_channels": len(card.labels)}
    with (
        refusing(
            WeightsError,
            lambda e: (
                f"The card of weights {card.name} does not fit {card.architecture}:"
                f" {first_line(e)}."
            ),
        ),
        no_larger(_MOST_PARAMETERS, _MOST_TENSORS),
    ):
        return architecture(card.architecture).parameters({**channels, **card.kwargs})


def fitting(space: Space) -> int:
    """How many units fit, cheapest first, at most one per site and family."""
    return len(space.room().fill(space.cheapest_first()))
