"""`seapeft backbones`: architectures and pretrained weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from rich.console import Group
from rich.padding import Padding
from rich.text import Text
from typer import Argument

from sea_peft.artefacts.words import visible
from sea_peft.console import options
from sea_peft.console.output import Output
from sea_peft.console.tables import facts, table, times
from sea_peft.console.verb import verb
from sea_peft.console.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sea_peft.backbones import Limits
    from sea_peft.backbones.field_of_view import FieldOfView

backbones = Verbs(help="Architectures and pretrained weights.", no_args_is_help=True)


@backbones.command("list")
@verb
def backbones_list(output: Output) -> None:
    """Weights and architectures, with parameters and licence."""
    from sea_peft.jobs.listing import list_backbones

    rows = list_backbones()
    for row in rows:
        if row.problem:
            output.warn(row.problem)
    of_weights = [
        (
            _named(row.weights, row.architecture, *row.channels, row.licence),
            row.parameters,
            len(row.labels) or None,
            times(row.spacing or None),
            row.dice,
            row.sha256 and row.sha256[:8],
        )
        for row in rows
        if row.weights
    ]
    of_architectures = [
        (row.architecture, row.parameters, row.licence) for row in rows if not row.weights
    ]
    columns, networks = (
        ("--weights", "parameters", "labels", "mm", "Dice", "hash"),
        ("--backbone", "parameters"),
    )
    output.result(
        rows,
        table("Weights: pretrained networks", columns, of_weights, right=columns[1:]),
        table(
            "Architectures at their default widths, untrained",
            (*networks, "licence"),
            of_architectures,
            right=networks[1:],
        ),
    )


@backbones.command("info")
@verb
def backbones_info(
    output: Output,
    name: Annotated[str, Argument(metavar="NAME")],
    backbone: options.Backbone = None,
    weights: options.Weights = None,
) -> None:
    """One backbone in detail: source, licence, recipe, sites."""
    from sea_peft.backbones.typed import Typed
    from sea_peft.jobs.listing import backbone_info

    info = backbone_info(name, Typed(backbone, weights))
    card, recipe = info.card, info.card.recipe
    described = {
        "weights": card.name,
        "architecture": card.architecture,
        "parameters": info.parameters,
        "licence of network": info.network_licence,
        "paper": card.paper or info.paper,
        "patch": _sizes(card.patch, info.limits),
        "field of view": _looks(info.view),
    }
    if info.trained:
        intensity = recipe.intensity.model_dump(mode="json")
        described |= {
            "hash of tensors": info.sha256,
            "hash of file": card.sha256,
            "licence of weights": card.licence,
            "source": card.source or card.training.get("data"),
            "origin": card.origin,
            "labels": card.labels[1:],
            "channels": card.channels,
            "voxels": f"{times(recipe.spacing)} mm, {recipe.orientation}",
            "grey values": " ".join(f"{key} {value}" for key, value in intensity.items()),
            "Dice": card.dice.get("mean"),
            "settings": in_short(card.kwargs),
            "untrained": card.new,
            "assumed": card.assumed,
        }
    document = {
        "card": card.model_dump(mode="json") if info.trained else None,
        "parameters": info.parameters,
        "tensor_sha256": info.sha256 or None,
        "divisor": info.limits.divisor,
        "minimum": info.limits.minimum,
        "field_of_view": vars(info.view),
        "sites": [
            {"stage": stage, "kind": kind, "sites": n} for (stage, kind), n in info.sites.items()
        ],
    }
    sites = [(stage, kind, n) for (stage, kind), n in info.sites.items()]
    output.result(
        document,
        facts(described.items()),
        table("Sites", ("stage", "kind", "sites"), sites, right=("sites",)),
    )


def in_short(settings: Mapping[str, object]) -> str:
    """A network's settings on one line, numbers to four digits; --json has all digits."""
    shown = (
        f"{value:.4g}" if isinstance(value, float) else f"{value}" for value in settings.values()
    )
    return ", ".join(f"{key}={value}" for key, value in zip(settings, shown, strict=True))


def _sizes(patch: tuple[int, ...], limits: Limits) -> str:
    """The patch trained on, and the other sizes that the network takes."""
    if limits.exact is not None:
        return f"{times(limits.exact)} voxels and no other"
    return f"{times(patch)} voxels; sides are {limits.sides}"


def _looks(view: FieldOfView) -> str:
    """The extent of the input that one voxel of the output sees."""
    seen = (
        f"{times(view.extent)} voxels" if view.bounded else f"{times(view.extent)} voxels or more"
    )
    return f"{seen}, and its norms see the whole patch" if view.statistics else seen


def _named(name: str, *about: str) -> Group:
    """A name, with its description below."""
    said = Text(visible(", ".join(word for word in about if word)), style="dim")
    return Group(Text(visible(name), style="bold"), Padding(said, (0, 0, 0, 2)))
