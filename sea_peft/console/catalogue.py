"""The verbs in groups: adapters, policies, data."""

from pathlib import Path
from typing import Annotated

from rich.text import Text
from typer import Argument, Option

from sea_peft.artefacts.names import in_short
from sea_peft.artefacts.words import visible
from sea_peft.console import options
from sea_peft.console.output import Output
from sea_peft.console.tables import cell, facts, state, table, times
from sea_peft.console.verb import verb
from sea_peft.console.verbs import Verbs
from sea_peft.data.wording import count
from sea_peft.errors import DataError

adapters = Verbs(help="Adapter families and the units they make.", no_args_is_help=True)
policies = Verbs(
    help="What can choose the adapters: sea, and fixed topologies.", no_args_is_help=True
)
data = Verbs(help="Check, describe and make data sets.", no_args_is_help=True)


@adapters.command("list")
@verb
def adapters_list(
    output: Output,
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    profile: options.Profile = "default",
    units: Annotated[bool, Option("--units", help="Every unit with its cost.")] = False,
    full: options.Full = False,
) -> None:
    """Families, levels and placements on offer, and the units they make on a backbone, with
    costs.
    """
    from sea_peft.backbones.monai_alone import import_monai_alone
    from sea_peft.backbones.typed import Typed

    typed = Typed(backbone, weights)
    import_monai_alone(typed)
    from sea_peft.jobs.listing import list_adapters

    offered = list_adapters(typed, profile)
    columns = ("units", "sites", "number", "cheapest", "dearest", "all", "fit")
    narrow = output.results.width < 100
    rows = [
        (
            _folded(row.prefix) if narrow else row.prefix,
            row.kinds,
            row.units,
            row.cheapest,
            row.dearest,
            row.total,
            row.fits,
        )
        for row in offered.families
    ]
    made = [table("", columns, rows, right=columns[2:])]
    if units:
        names = {} if full else offered.names
        every = [(in_short(u.unit, names), u.stage, u.kind, u.cost) for u in offered.units]
        made.append(table("Units", ("unit", "stage", "kind", "cost"), every, right=("cost",)))
    summary = (
        f"{count(len(offered.units), 'unit')} on {offered.weights} ({offered.parameters:,}"
        f" parameters), costs in {offered.costs}. A budget of {offered.budget} is"
        f" {offered.limit:,}: at most {count(offered.fits, 'unit')}, the cheapest first, less"
        " what the head takes."
    )
    output.result(
        offered.document(),
        cell(f"Profile {offered.profile}. {offered.about}"),
        *made,
        cell(summary),
    )


def _folded(prefix: str) -> Text:
    """`conv_adapter.parallel-16` on two lines."""
    return Text(visible(prefix).replace(".", ".\n  "))


@policies.command("list")
@verb
def policies_list(output: Output) -> None:
    """List what --policy takes, one line each."""
    from sea_peft.jobs.listing import list_policies

    rows = list_policies()
    output.result(
        {"policies": rows},
        table("", ("--policy", "places"), [(row.name, row.about) for row in rows]),
    )


@data.command("check")
@verb
def data_check(
    output: Output,
    dataset: Annotated[str, Argument(metavar="DATA", help="A data set, or phantom:NAME.")],
    label: options.Labels = None,
    channel: options.Channels = None,
    shots: Annotated[
        int | None,
        Option(metavar="N", help="Also whether there are enough cases for as many shots."),
    ] = None,
    weights: options.Weights = None,
) -> None:
    """Check a data set and list everything that is wrong with it."""
    from sea_peft.jobs.datajobs import check_data

    with output.progress("check") as progress:
        report = check_data(
            dataset, tuple(label or ()), tuple(channel or ()), shots, progress, weights
        )
    if report.unknown:
        output.warn(report.unknown)
    found, checked = report.dataset, report.checked
    about = facts(
        [
            ("data", f"{found.name} ({found.layout})"),
            (
                "labels",
                ", ".join(
                    f"{name}={','.join(map(str, codes))}" for name, codes in found.labels.items()
                ),
            ),
            ("channels", ", ".join(found.channels)),
            (
                "cases",
                (
                    f"{len(found.cases)} labelled, {len(found.test_cases)} test,"
                    f" {len(found.unlabelled)} unlabelled"
                ),
            ),
        ]
    )
    rows = []
    for entry in checked.cases:
        labelled = sum(entry.voxels.values()) or None
        rows.append(
            (entry.case, times(entry.shape), times(entry.spacing), labelled, _worst(entry.findings))
        )
    columns = ("case", "voxels", "mm", "labelled voxels", "state")
    cases = table("", columns, rows, right=("voxels", "mm", "labelled voxels"))
    held = [
        (name, f"{holding} of {len(checked.cases)}", voxels)
        for name, (holding, voxels) in report.counts.items()
    ]
    labels = table("", ("label", "in cases", "voxels"), held, right=("in cases", "voxels"))
    styles = {"error": "problem", "skip": "warning", "warning": "warning"}
    findings = [(state(styles[finding.severity]), finding.sentence) for finding in checked.findings]
    tables = [about, cases, labels, *([table("Findings", ("", ""), findings)] if findings else [])]
    usable = len(checked.usable.cases) + len(checked.usable.test_cases)
    verdict = f"{usable} of {count(len(checked.cases), 'labelled case')} can be used."
    output.result(report.document(), *tables, cell(verdict))
    if checked.errors:
        first = checked.errors[0].sentence
        more = f" (and {len(checked.errors) - 1} more)" if len(checked.errors) > 1 else ""
        raise DataError(f"{found.name} would be refused: {first}{more}")


@data.command("init")
@verb
def data_init(
    output: Output, folder: Annotated[Path, Argument(metavar="DIR", help="A folder of scans.")]
) -> None:
    """Write a datalist for a folder of scans, to be corrected by hand."""
    from sea_peft.jobs.datajobs import init_data

    file, found = init_data(folder)
    labels = {name: list(codes) for name, codes in found.labels.items()}
    document = {
        "file": str(file),
        "cases": len(found.cases),
        "channels": list(found.channels),
        "labels": labels,
    }
    said = (
        f"Wrote {file}: {count(len(found.cases), 'labelled case')}, channels"
        f" {', '.join(found.channels)}, labels {', '.join(labels)}."
    )
    output.result(document, cell(said + " Correct names there, then run `seapeft data check`."))


@data.command("phantom")
@verb
def data_phantom(
    output: Output,
    name: Annotated[
        str,
        Argument(
            metavar="NAME",
            help="A target, for instance low-dose-ct, or source; NAME@1.5 for finer voxels.",
        ),
    ],
    out: Annotated[Path, Option(metavar="DIR", help="The folder to make.")],
    cases: Annotated[int, Option(metavar="N", help="Labelled cases to write.")] = 8,
    skip: Annotated[
        int,
        Option(
            metavar="N", help="Patients to pass over, for a folder of others than an earlier one's."
        ),
    ] = 0,
) -> None:
    """Write embedded phantoms as NIfTI, in nnU-Net's folder layout."""
    from sea_peft.jobs.datajobs import make_phantoms

    with output.progress("render") as progress:
        made = make_phantoms(name, out, cases, progress, skip)
    document = {
        "out": str(out),
        "cases": len(made.cases),
        "channels": list(made.channels),
        "labels": list(made.labels),
    }
    output.result(document, cell(f"Wrote {count(len(made.cases), 'case')} of {name} to {out}."))


def _worst(findings: tuple) -> object:
    severities = {finding.severity for finding in findings}
    return state("problem" if "error" in severities else "warning" if severities else "ok")
