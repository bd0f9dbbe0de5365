"""The verbs that apply an adapter to scans: their masks, and how good those are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from sea_peft.console import options
from sea_peft.console import runs as shown
from sea_peft.console.output import Output
from sea_peft.console.tables import cell
from sea_peft.console.verb import Interrupted, verb
from sea_peft.data.wording import count
from sea_peft.errors import PartialFailure, QualityGateError, UsageError


@verb
def predict(
    output: Output,
    adapter: options.Adapter,
    inputs: Annotated[
        list[Path], Argument(metavar="INPUT…", help="Scans, folders of scans, or data sets.")
    ],
    out: Annotated[Path, Option(metavar="DIR", help="Where masks go.")],
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    overwrite: Annotated[bool, Option("--overwrite", help="Replace earlier results.")] = False,
    probabilities: Annotated[
        bool, Option("--probabilities", help="Also one float32 volume for each label.")
    ] = False,
    preview: Annotated[
        bool, Option("--preview", help="Also a picture of three planes for each case.")
    ] = False,
    dicom_seg: Annotated[
        bool,
        Option("--dicom-seg", help="Also a DICOM-SEG for each DICOM series; it names the patient."),
    ] = False,
    rtstruct: Annotated[
        bool,
        Option(
            "--rtstruct",
            help="Also an RTSTRUCT (contours) for each DICOM series; it names the patient.",
        ),
    ] = False,
    seg_nrrd: Annotated[
        bool,
        Option("--seg-nrrd", help="Also a segmentation for 3D Slicer, with names and colours."),
    ] = False,
    statistics: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help=(
                "One CSV for all scans: volumes, grey values, parts; cases that are in it are not"
                " predicted again."
            ),
        ),
    ] = None,
    keep: options.Keep = None,
    qc: Annotated[
        bool,
        Option(
            "--qc",
            help=(
                "Also qc.csv and qc.html: the Dice to expect, and flags; exit code 7 where there"
                " are any."
            ),
        ),
    ] = False,
    use: options.Use = None,
    channel: options.Channels = None,
    jobs: Annotated[
        int,
        Option(
            metavar="N",
            help="Processes side by side, each with its share of the cores, or of the GPUs.",
        ),
    ] = 1,
    cluster: Annotated[
        str | None,
        Option(
            metavar="slurm|local",
            help="Jobs of a cluster by submitit, --jobs of them, instead of processes.",
        ),
    ] = None,
    submitit: Annotated[
        list[str] | None,
        Option(
            metavar="KEY=VALUE",
            help="What a job needs, such as slurm_partition=gpu. Several allowed.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        Option(
            "--resume",
            help=(
                "Keep what was predicted before by the same adapter and options; predict the rest."
            ),
        ),
    ] = False,
    others: options.With = None,
    ensemble: options.Ensemble = None,
) -> None:
    """Write masks on each input's own grid and header geometry.

    A mask holds the data set's own codes if every label has exactly one, else 1, 2, …; <case>.json
    beside it names them. With several adapters, <case>_disagreement shows where they differ.

    [dim]seapeft predict runs/a scans/ --out masks
    seapeft predict runs/a scans/ --with runs/b --with runs/c --ensemble mean --out masks[/dim]
    """
    from sea_peft.backbones.monai_alone import import_monai_alone
    from sea_peft.backbones.typed import Typed
    from sea_peft.jobs.cluster import Cluster
    from sea_peft.jobs.predict import predict as job

    there = (
        None
        if cluster is None
        else Cluster(cluster, out / ".jobs", parameters=_parameters(submitit or ()))
    )
    if submitit and cluster is None:
        raise UsageError("--submitit is for jobs of a cluster; name it: --cluster slurm.")
    options.require_mean(ensemble, others)
    typed = Typed(backbone, weights)
    import_monai_alone(typed)
    try:
        with output.progress("predict") as progress:
            statuses = job(
                adapter,
                inputs,
                out,
                typed=typed,
                device=device,
                overwrite=overwrite,
                probabilities=probabilities,
                preview=preview,
                dicom_seg=dicom_seg,
                rtstruct=rtstruct,
                seg_nrrd=seg_nrrd,
                use=use,
                channels=tuple(channel or ()),
                statistics=statistics,
                keep=tuple(keep or ()),
                qc=qc,
                jobs=jobs,
                cluster=there,
                resume=resume,
                ensemble=tuple(others or ()),
                say=output.say,
                progress=progress,
            )
    except KeyboardInterrupt:
        raise Interrupted(
            "Interrupted; what is done is kept, and the same command with --resume goes on."
        ) from None
    failed = [status for status in statuses if status.error is not None]
    for status in statuses:
        for sentence in (
            *status.warnings,
            *([f"{status.case}: {status.error}"] if status.error else []),
        ):
            output.warn(sentence)
    document = {
        "out": str(out),
        "done": len(statuses) - len(failed),
        "failed": len(failed),
        "cases": [
            {**vars(status), "qc": status.qc.as_json() if status.qc else None}
            for status in statuses
        ],
    }
    flagged = [status.case for status in statuses if status.qc is not None and status.qc.flags]
    output.result(document, shown.prediction_table(statuses), cell(f"Masks are in {out}."))
    if failed:
        raise PartialFailure(
            f"{len(failed)} of {count(len(statuses), 'case')} could not be predicted; the reasons"
            " are above."
        )
    if flagged:
        raise QualityGateError(
            f"{len(flagged)} of {count(len(statuses), 'mask')} should be checked before they are"
            f" used; {out / 'qc.html'} says why."
        )


def _parameters(given: Sequence[str]) -> dict[str, object]:
    """submitit's parameters. Raises UsageError for one without a value."""
    read: dict[str, object] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise UsageError(f"--submitit {pair} is not KEY=VALUE, such as mem_gb=16.")
        read[key] = int(value) if value.isdigit() else value
    return read


@verb
def evaluate(
    output: Output,
    adapter: options.Adapter,
    data: Annotated[str, Argument(metavar="DATA", help="A data set with labels, or phantom:NAME.")],
    out: Annotated[
        Path | None, Option(metavar="DIR", help="Also write scores.csv, .json and a box plot .png.")
    ] = None,
    min_dice: Annotated[
        float | None, Option(metavar="DICE", help="Fail with exit code 7 below this mean.")
    ] = None,
    cases: Annotated[
        str, Option(metavar="all|test", help="All labelled cases, or the test cases only.")
    ] = "all",
    label: options.Labels = None,
    channel: options.Channels = None,
    tolerance: Annotated[
        float, Option(metavar="MM", help="Tolerance of the surface Dice NSD.")
    ] = 2.0,
    keep: options.Keep = None,
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    use: options.Use = None,
    others: options.With = None,
    ensemble: options.Ensemble = None,
) -> None:
    """Score an adapter on labelled scans, per case and label.

    If both mask and label are empty, a score is undefined and left out of means; if only one of
    them is, Dice and NSD are 0.
    """
    from sea_peft.backbones.monai_alone import import_monai_alone
    from sea_peft.backbones.typed import Typed
    from sea_peft.jobs.evaluate import evaluate as job
    from sea_peft.jobs.evaluate import write_evaluation

    if min_dice is not None and not 0 <= min_dice <= 1:
        raise UsageError(f"--min-dice {min_dice:g} is not a Dice; choose one from 0 to 1.")
    options.require_mean(ensemble, others)
    typed = Typed(backbone, weights)
    import_monai_alone(typed)
    with output.progress("evaluate") as progress:
        scores = job(
            adapter,
            data,
            typed=typed,
            device=device,
            labels=tuple(label or ()),
            channels=tuple(channel or ()),
            cases=cases,
            tolerance=tolerance,
            use=use,
            keep=tuple(keep or ()),
            ensemble=tuple(others or ()),
            progress=progress,
        )
    output.say(scores.choice)
    for sentence in scores.warnings:
        output.warn(sentence)
    for case, why in scores.failed.items():
        output.warn(f"{case}: {why}")
    if scores.shots and cases == "all":
        output.warn(
            f"Of {count(len(scores.cases), 'case')}, {len(scores.shots)} served as shots of"
            f" {'these runs' if others else 'this run'}, so the Dice on them is no measure of what"
            " to expect; --cases test leaves them out."
        )
    document = scores.document()
    if out is not None:
        written = write_evaluation(scores, out)
        output.say(f"Wrote {', '.join(map(str, written))}.")
    output.result(document, *shown.evaluation_tables(scores))
    if scores.failed:
        raise PartialFailure(
            f"{count(len(scores.failed), 'case')} could not be scored; the reasons are above."
        )
    dice = scores.overall("dice")
    if min_dice is not None and not dice >= min_dice:
        raise QualityGateError(f"The mean Dice of {dice:.4f} is below --min-dice {min_dice:g}.")
