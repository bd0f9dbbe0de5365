"""`seapeft backbones import` and `try`: a network from elsewhere comes in, and shows what it makes
of a scan.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from sea_peft.console import options, parse
from sea_peft.console.backbones import in_short
from sea_peft.console.output import Output
from sea_peft.console.tables import cell, facts, table
from sea_peft.console.verb import verb
from sea_peft.errors import PartialFailure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sea_peft.jobs.expected import Scaling
    from sea_peft.jobs.importing_parts import ImportedPart

_BY = {"you": "you", "origin": "the checkpoint's origin", "assumed": "nobody: assumed"}


@verb
def import_network(
    output: Output,
    file: Annotated[
        Path,
        Argument(
            metavar="FILE",
            help=(
                "A safetensors file, a torch file of plain tensors, or a folder of them as nnU-Net,"
                " MONAI and hubs make it."
            ),
        ),
    ],
    name: Annotated[str, Option("--as", metavar="NAME", help="What the weights will be called.")],
    backbone: Annotated[
        str, Option(metavar="ARCH", help="Architecture; its widths are read off the tensors.")
    ],
    origin: Annotated[
        str, Option(metavar="NAME", help="Whose checkpoint it is; auto goes by its keys.")
    ] = "auto",
    labels: Annotated[
        str | None,
        Option(
            metavar="FILE|A,B,C",
            help=(
                "The classes in the order of the outputs, without the background. By default a new"
                " classifier."
            ),
        ),
    ] = None,
    channel: Annotated[
        list[str] | None, Option(metavar="NAME", help="A channel, in the order of the inputs.")
    ] = None,
    orientation: Annotated[
        Any,
        Option(
            parser=parse.orientation, metavar="CODES", help="Directions of D, H, W; by default RAS."
        ),
    ] = None,
    spacing: Annotated[
        Any, Option(parser=parse.millimetres, metavar="MM,MM,MM", help="Voxel size trained on.")
    ] = None,
    intensity: Annotated[
        Any,
        Option(
            parser=parse.intensity,
            metavar="SCALING",
            help="window:LOW,HIGH, percentile:LOW,HIGH, minmax, zscore or none; by default zscore.",
        ),
    ] = None,
    patch: Annotated[
        Any, Option(parser=parse.size, metavar="D,H,W", help="Training crop in voxels.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        Option(
            metavar="KEY=VALUE", help="A setting of the architecture that the tensors do not tell."
        ),
    ] = None,
    licence: Annotated[
        str, Option(metavar="TEXT", help="The licence of the weights.")
    ] = "not stated",
) -> None:
    """Import a checkpoint from elsewhere as weights, if its tensors fit the architecture.

    Labels, channels, orientation, voxel size, grey values and patch are those of the checkpoint's
    origin unless you give them; anything that nobody states is assumed, and reported. Origins:
    suprem, clip-driven, fseft, swin-ssl, btcv, mednext, monai-mednext, nnunet, obelisk, brainchop,
    deepbet, hippodeep, monai-bundle, plain. From nnU-Net's results folder every network is
    imported, under NAME and its data set's number.
    """
    from sea_peft.backbones.typed import Typed
    from sea_peft.jobs.expected import Given
    from sea_peft.jobs.importing import import_weights
    from sea_peft.jobs.importing_parts import import_parts, parts_in

    given = Given(
        labels=_label_names(labels),
        channels=channel,
        orientation=orientation,
        spacing=spacing,
        intensity=_scaling(intensity),
        patch=patch,
        settings=parse.settings(setting or ()),
        licence=licence,
    )
    if parts_in(file):
        _show_parts(output, import_parts(file, name, Typed(backbone), given, origin))
        return
    imported = import_weights(file, name, Typed(backbone), given, origin)
    for sentence in imported.said:
        output.say(sentence)
    keys = imported.keys
    found = [
        ("weights", imported.name),
        ("file", str(imported.file)),
        ("origin", imported.origin),
        ("settings", in_short(imported.settings)),
        ("parameters", imported.parameters),
        ("matched", f"{len(keys.matched)} of {keys.wanted} tensors"),
        ("no part of it", list(imported.left_out)),
        ("new", list(imported.new)),
    ]
    document = {**vars(imported), **vars(keys), "matched": len(keys.matched)}
    del document["keys"]
    expects = [(expected.what, expected.value, _BY[expected.by]) for expected in imported.expects]
    expected_table = table("Scans will be turned into", ("", "", "who says so"), expects)
    output.result(
        document, facts(found), expected_table, cell(f"Use them with --weights {imported.name}.")
    )


@verb
def try_network(
    output: Output,
    name: Annotated[
        str, Argument(metavar="NAME", help="Weights: a name of `backbones list`, or a file.")
    ],
    scan: Annotated[Path, Argument(metavar="SCAN", help="A scan: a file, or a DICOM folder.")],
    label: Annotated[
        Path | None, Option(metavar="MASK", help="A label map on the scan's grid.")
    ] = None,
    named: Annotated[
        list[str] | None,
        Option(
            "--class",
            metavar="NAME=CODES",
            help="A label of the network and its codes in the mask.",
        ),
    ] = None,
    out: Annotated[Path, Option(metavar="DIR", help="Where the mask and its picture go.")] = Path(
        "tried"
    ),
    device: options.Device = "auto",
    overwrite: Annotated[
        bool, Option("--overwrite", help="Replace an earlier mask and picture.")
    ] = False,
    search: Annotated[
        bool,
        Option(
            "--search/--no-search",
            help="Look for the orientation and grey values that fit a mask best.",
        ),
    ] = True,
) -> None:
    """Show a network's result on one scan before any training: mask, picture and volumes.

    With a mask it also shows Dice, and searches for the orientation and scaling of grey values that
    fit best (up to 3 minutes). Weights imported with wrong ones load without an error and segment
    wrongly.
    """
    from sea_peft.backbones.typed import Typed, is_code
    from sea_peft.jobs.trying import FOUND, SECONDS, try_backbone

    typed = Typed(backbone=name) if is_code(name) else Typed(weights=name)
    codes = {key: value for text in named or () for key, value in [parse.codes(text)]}
    with output.progress("look for the best reading") as progress:
        tried = try_backbone(
            typed, scan, label, codes=codes or None, out=out, device=device, overwrite=overwrite,
            seconds=SECONDS if search else 0.0, say=output.say, progress=progress,
        )  # fmt: skip
    rows = [
        (
            label_name,
            millilitres,
            tried.dice.get(label_name),
            ", ".join(map(str, tried.codes.get(label_name, ()))),
        )
        for label_name, millilitres in tried.volumes.items()
    ]
    shown = table(
        "Unadapted", ("label", "ml", "Dice", "codes in the mask"), rows, right=("ml", "Dice")
    )
    sentences = []
    if tried.own is not None and not tried.named:
        sentences.append(
            "Each code of the mask counts for the class that it overlaps most, which can confuse"
            " left and right. Name them with --class NAME=CODES."
        )
    if tried.better:
        best = tried.better[0]
        sentences.append(
            f"Read with orientation {best.orientation} and grey values {best.intensity} the network"
            f" reaches Dice {best.dice:.3f} on this scan, against"
            f" {tried.own.dice if tried.own else 0.0:.3f} as imported. To import it that way:"
            f" seapeft backbones import … --orientation {best.orientation} --intensity"
            f" {best.intensity}"
        )
    elif tried.own is not None and search:
        hardly = (
            ", and the network hardly finds these labels as imported"
            if tried.own.dice < FOUND
            else ""
        )
        sentences.append(
            f"None of {tried.looked_at} other ways to orient and scale the scan fits clearly"
            f" better{hardly}."
        )
    if tried.looked_at < tried.ways:
        sentences.append(
            f"The time was over after {tried.looked_at} of {tried.ways} ways to orient and scale"
            " the scan."
        )
    document = {
        "weights": tried.weights,
        "case": tried.case,
        "mask": str(tried.mask),
        "picture": str(tried.picture),
        "volumes_ml": dict(tried.volumes),
        "dice": dict(tried.dice),
        "codes": {key: list(value) for key, value in tried.codes.items()},
        "read_as": vars(tried.own) if tried.own else None,
        "better": [vars(reading) for reading in tried.better],
        "looked_at": tried.looked_at,
        "ways": tried.ways,
        "seconds": round(tried.seconds, 1),
    }
    places = facts([("mask", str(tried.mask)), ("picture", str(tried.picture))])
    output.result(document, shown, places, *(cell(sentence) for sentence in sentences))


def _show_parts(output: Output, parts: Sequence[ImportedPart]) -> None:
    """Show which network holds which label. Raises PartialFailure if some could not be imported."""
    taken = [(part, part.imported) for part in parts if part.imported is not None]
    refused = [part for part in parts if part.imported is None]
    for sentence in dict.fromkeys(sentence for _, imported in taken for sentence in imported.said):
        output.say(sentence)
    for part in refused:
        output.warn(f"{part.folder}: {part.refused}")
    rows = [
        (part.name, part.folder.parts[0], ", ".join(imported.labels)) for part, imported in taken
    ]
    document = {
        "networks": [
            {"name": p.name, "folder": str(p.folder), "labels": list(i.labels)} for p, i in taken
        ],
        "refused": [{"folder": str(p.folder), "why": p.refused} for p in refused],
    }
    shown = table("Networks", ("weights", "data set", "labels"), rows)
    output.result(
        document,
        shown,
        cell("Use the one that holds your label, or the nearest to it: --weights NAME."),
    )
    if refused:
        raise PartialFailure(
            f"{len(refused)} of {len(parts)} networks were not imported; the reasons are above."
        )


def _label_names(labels: str | None) -> list[str] | None:
    """Names from a file, or those in the text itself."""
    from sea_peft.backbones.label_names import read_label_names

    if labels is None:
        return None
    if Path(labels).is_file():
        return list(read_label_names(Path(labels)))
    names = [name.strip() for name in labels.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise typer.BadParameter(
            f"--labels {labels!r} is neither a file nor different names such as liver,spleen."
        )
    return names


def _scaling(intensity: tuple[str, tuple[float, float] | None] | None) -> Scaling | None:
    """The scaling that `--intensity` asks for."""
    from sea_peft.data.recipe import Percentile, Window, ZScore
    from sea_peft.jobs.expected import Unscaled

    if intensity is None:
        return None
    kind, ends = intensity
    if kind == "none":
        return Unscaled(ends)
    if ends is None:
        return Percentile(low=0, high=100) if kind == "minmax" else ZScore()
    return (
        Window(low=ends[0], high=ends[1])
        if kind == "window"
        else Percentile(low=ends[0], high=ends[1])
    )
