"""`seapeft backbones`: architectures and pretrained weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from sea_peft.console import parse
from sea_peft.console.output import Output
from sea_peft.console.tables import cell, facts, table, times
from sea_peft.console.verb import verb

if TYPE_CHECKING:
    from sea_peft.backbones import Limits

backbones = typer.Typer(help="Architectures and pretrained weights.", no_args_is_help=True)


@backbones.command("list")
@verb
def backbones_list(output: Output) -> None:
    """Weights with their architecture, parameters, hash and licence."""
    from sea_peft.jobs.listing import list_backbones

    rows = list_backbones()
    for row in rows:
        if row.problem:
            output.warn(row.problem)
    columns = ("backbone", "parameters", "labels", "mm", "Dice", "hash")
    cells = [
        (
            _named(row.weights, row.architecture, *row.channels, row.licence)
            if row.weights
            else _named(row.architecture, "no weights", row.licence),
            row.parameters,
            len(row.labels) or None,
            times(row.spacing or None),
            row.dice,
            row.sha256 and row.sha256[:8],
        )
        for row in rows
    ]
    output.result([vars(row) for row in rows], table("", columns, cells, right=columns[1:]))


@backbones.command("info")
@verb
def backbones_info(output: Output, name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """One backbone in detail: source, licence, recipe, sites."""
    from sea_peft.jobs.listing import backbone_info

    info = backbone_info(name)
    card, recipe = info.card, info.card.recipe
    described = {
        "weights": card.name,
        "architecture": card.architecture,
        "parameters": info.parameters,
        "licence of network": info.network_licence,
        "paper": card.paper or info.paper,
        "patch": _sizes(card.patch, info.limits),
    }
    if info.trained:
        intensity = recipe.get("intensity", {})
        described |= {
            "hash of tensors": info.sha256,
            "hash of file": card.sha256,
            "licence of weights": card.licence,
            "source": card.source or card.training.get("data"),
            "origin": card.origin,
            "labels": card.labels[1:],
            "channels": card.channels,
            "voxels": f"{times(recipe.get('spacing', ()))} mm, {recipe.get('orientation')}",
            "grey values": " ".join(f"{key} {value}" for key, value in intensity.items()),
            "Dice": card.dice.get("mean"),
            "settings": ", ".join(f"{key}={value}" for key, value in card.kwargs.items()),
            "untrained": card.new,
        }
    document = {
        "card": card.model_dump(mode="json") if info.trained else None,
        "parameters": info.parameters,
        "tensor_sha256": info.sha256,
        "divisor": info.limits.divisor,
        "minimum": info.limits.minimum,
        "sites": [{"stage": stage, "kind": kind, "sites": n} for (stage, kind), n in info.sites.items()],
    }
    sites = [(stage, kind, n) for (stage, kind), n in info.sites.items()]
    output.result(
        document,
        facts(described.items()),
        table("Sites", ("stage", "kind", "sites"), sites, right=("sites",)),
    )


@backbones.command("import")
@verb
def backbones_import(
    output: Output,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A safetensors file, or a torch file of plain tensors.")],
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="What the weights will be called.")],
    backbone: Annotated[str, typer.Option(metavar="ARCH", help="Architecture; its widths are read off the tensors.")],
    origin: Annotated[
        str, typer.Option(metavar="NAME", help="Whose checkpoint it is; auto goes by its keys.")
    ] = "auto",
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|A,B,C",
            help="The classes in the order of the outputs, without the background. Nobody says: a new classifier.",
        ),
    ] = None,
    channel: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A channel, in the order of the inputs.")
    ] = None,
    orientation: Annotated[
        Any, typer.Option(parser=parse.orientation, metavar="CODES", help="Where D, H, W run to; nobody says: RAS.")
    ] = None,
    spacing: Annotated[
        Any, typer.Option(parser=parse.millimetres, metavar="MM,MM,MM", help="Voxel size trained on.")
    ] = None,
    intensity: Annotated[
        Any,
        typer.Option(
            parser=parse.intensity,
            metavar="SCALING",
            help="window:LOW,HIGH, percentile:LOW,HIGH, minmax, zscore or none; nobody says: zscore.",
        ),
    ] = None,
    patch: Annotated[Any, typer.Option(parser=parse.size, metavar="D,H,W", help="Training crop in voxels.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of the architecture, where the tensors do not tell.")
    ] = None,
    licence: Annotated[str, typer.Option(metavar="TEXT", help="Under which the weights may be used.")] = "not stated",
) -> None:
    """Take a foreign checkpoint in as weights, if its tensors are those of the architecture.

    Labels, channels, orientation, voxel size, grey values and patch are those of the checkpoint's origin where you do not give them; what
    nobody says is assumed, and said to be. Origins: suprem, clip-driven, fseft, swin-ssl, btcv, mednext, monai-mednext, nnunet, obelisk,
    brainchop, deepbet, monai-bundle, plain.
    """
    from sea_peft.jobs.importing import Given, import_weights

    given = Given(
        _label_names(labels), channel, orientation, spacing, _scaling(intensity), patch, parse.settings(setting or ()), licence
    )  # fmt: skip
    imported = import_weights(file, name, backbone, given, origin)
    for sentence in imported.said:
        output.say(sentence)
    keys = imported.keys
    found = [
        ("weights", imported.name),
        ("file", str(imported.file)),
        ("origin", imported.origin),
        ("settings", ", ".join(f"{key}={value}" for key, value in imported.settings.items())),
        ("parameters", imported.parameters),
        ("matched", f"{len(keys.matched)} of {keys.wanted} tensors"),
        ("no part of it", list(imported.left_out)),
        ("new", list(imported.new)),
    ]
    document = {
        "name": imported.name,
        "file": str(imported.file),
        "origin": imported.origin,
        "settings": dict(imported.settings),
        "parameters": imported.parameters,
        "matched": len(keys.matched),
        "missing": list(keys.missing),
        "misshaped": {key: [list(shape) for shape in shapes] for key, shapes in keys.misshaped.items()},
        "unexpected": list(keys.unexpected),
        "left_out": list(imported.left_out),
        "new": list(imported.new),
        "expects": [vars(expected) for expected in imported.expects],
    }
    expects = [(expected.what, expected.value, _BY[expected.by]) for expected in imported.expects]
    expected_table = table("Scans will be turned into", ("", "", "who says so"), expects)
    output.result(document, facts(found), expected_table, cell(f"Use them with --weights {imported.name}."))


_BY = {"you": "you", "origin": "the checkpoint's origin", "assumed": "nobody: assumed"}


def _label_names(labels: str | None) -> list[str] | None:
    """Names of a file, or those written there."""
    from sea_peft.backbones.label_names import read_label_names

    if labels is None:
        return None
    if Path(labels).is_file():
        return list(read_label_names(Path(labels)))
    names = [name.strip() for name in labels.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise typer.BadParameter(f"--labels {labels!r} is neither a file nor different names such as liver,spleen.")
    return names


def _scaling(intensity: tuple[str, tuple[float, float] | None] | None) -> Any:
    """What `--intensity` asks for."""
    from sea_peft.data.recipe import Percentile, Window, ZScore
    from sea_peft.jobs.importing import Unscaled

    if intensity is None:
        return None
    kind, ends = intensity
    if kind == "none":
        return Unscaled(ends)
    if ends is None:
        return Percentile(low=0, high=100) if kind == "minmax" else ZScore()
    return Window(low=ends[0], high=ends[1]) if kind == "window" else Percentile(low=ends[0], high=ends[1])


def _sizes(patch: tuple[int, ...], limits: Limits) -> str:
    """The patch trained on, and what others the network takes."""
    if limits.exact is not None:
        return f"{times(limits.exact)} voxels and no other"
    return f"{times(patch)} voxels; sides are {limits.sides}"


def _named(name: str, *about: str) -> Text:
    return Text.assemble((name, "bold"), ("\n  " + ", ".join(word for word in about if word), "dim"))
