"""The command line: parses, calls a job, and shows its result. Nothing heavy is imported before a verb runs."""

import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from typer import Argument, Option

from sea_peft import __version__
from sea_peft.console import afterwards, backbones, catalogue, options, parse, torchrun
from sea_peft.console import many as several
from sea_peft.console import runs as shown
from sea_peft.console.output import Output, abandon, prepare_streams
from sea_peft.console.progress import RunProgress
from sea_peft.console.tables import cell
from sea_peft.console.verb import Interrupted, error_document, outcome, verb
from sea_peft.console.verbs import Verbs
from sea_peft.data.wording import count
from sea_peft.errors import LostProcessError, PartialFailure, QualityGateError, UsageError

app = Verbs(
    name="seapeft",
    help="Adapt a frozen pretrained 3D segmentation network to a few labelled scans, under a parameter budget.\n\n"
    "Research software, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(backbones.backbones, name="backbones")
app.add_typer(catalogue.adapters, name="adapters")
app.add_typer(catalogue.policies, name="policies")
app.add_typer(catalogue.data, name="data")


def _version(asked: bool) -> None:
    if asked:
        print(f"seapeft {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[bool, Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    json: Annotated[bool, Option("--json", hidden=True)] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", hidden=True)] = False,
    verbose: Annotated[bool, Option("--verbose", "-v", hidden=True)] = False,
    debug: Annotated[bool, Option("--debug", hidden=True)] = False,
) -> None:
    context.obj = {"json": json, "quiet": quiet, "verbose": verbose, "debug": debug}


@app.command()
@verb
def adapt(
    output: Output,
    data: Annotated[
        str | None, Argument(metavar="DATA", help="A data set, or phantom:NAME. Left out: the embedded default target.")
    ] = None,
    shots: Annotated[
        int | None,
        Option(metavar="N", help="Labelled scans to train on, including those that audits measure on; by default 5."),
    ] = None,
    budget: Annotated[
        str | None, Option(metavar="1%|0.01|47k", help="Most parameters that may be trained. Left out: the profile's.")
    ] = None,
    profile: options.Profile = "default",
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    label: options.Labels = None,
    add_label: Annotated[
        list[str] | None,
        Option(
            metavar="NAME[=CODES]",
            help="Add this structure to all that the network knows; only it need be drawn. Several allowed.",
        ),
    ] = None,
    max_forget: Annotated[
        float | None,
        Option(
            metavar="POINTS",
            help="With --add-label: exit code 7 where a label that the network knew has lost more Dice points.",
        ),
    ] = None,
    channel: options.Channels = None,
    policy: Annotated[
        str, Option(metavar="NAME", help="How units are chosen: by sea, or by a fixed topology to compare with.")
    ] = "sea",
    steps: Annotated[
        int | None, Option(metavar="N", help="Optimizer steps in all; by default 480, and 120 on an embedded phantom.")
    ] = None,
    cycles: Annotated[
        int | None, Option(metavar="N", help="Search cycles: train, audit, allocate; by default 3.")
    ] = None,
    patch: Annotated[Any, Option(parser=parse.size, metavar="D,H,W", help="Training crop in voxels.")] = None,
    spacing: Annotated[
        Any, Option(parser=parse.millimetres, metavar="MM,MM,MM", help="Voxel size to resample to.")
    ] = None,
    seed: Annotated[
        int, Option(metavar="N", help="Seed of the choice of shots, the initial values and the crops.")
    ] = 0,
    device: options.Device = "auto",
    time_limit: Annotated[
        Any,
        Option(
            parser=parse.duration, metavar="20m|90s|2h", help="Most time for training and audits; scoring comes on top."
        ),
    ] = None,
    test: Annotated[
        Any,
        Option(
            parser=parse.tests,
            metavar="N|none|cv",
            help="Score on at most N test cases, on none, or on every shot by an adapter that never saw it; by default on all "
            "labelled scans that are no shots.",
        ),
    ] = None,
    split: Annotated[
        Path | None,
        Option(metavar="FILE", help="JSON that names the cases: lists of ids under support, audit and test."),
    ] = None,
    augment: Annotated[
        str,
        Option(
            metavar="NAME|FILE",
            help="Random changes of training crops: full, none, grey (gain and shift alone), or a file; the default is grey on "
            "phantoms, else full.",
        ),
    ] = "default",
    out: Annotated[Path | None, Option(metavar="DIR", help="The run folder to make.")] = None,
    name: Annotated[
        str | None,
        Option(
            metavar="NAME", help="What the run is called. Left out: the date and a few digits, nothing of the data."
        ),
    ] = None,
    runs: options.Runs = Path("runs"),
    resume: Annotated[Path | None, Option(metavar="RUN", help="Continue an interrupted run.")] = None,
    from_run: Annotated[
        Path | None,
        Option(
            "--from",
            metavar="RUN",
            help="Begin with the units and the head of a finished run; --shots counts its shots and those labelled since.",
        ),
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Resolve and check everything; train nothing.")] = False,
    log_images: Annotated[
        bool, Option("--log-images", help="Log pictures of the best, median and worst test case into MLflow.")
    ] = False,
    mlflow: Annotated[bool, Option("--mlflow/--no-mlflow", help="Log the run into MLflow.")] = True,
    runs_file: Annotated[
        Path | None,
        Option(
            "--for",
            metavar="FILE",
            help="Several runs: a TOML file of what each has of its own; the same command goes on.",
        ),
    ] = None,
    jobs: Annotated[int | None, Option(metavar="N", help="With --for: runs side by side; by default 1.")] = None,
    cluster: Annotated[
        str | None, Option(metavar="slurm", help="With --for: runs as jobs of SLURM, through submitit.")
    ] = None,
) -> None:
    """Place adapters with a few labelled scans; leaves a run folder.

    Searches, audits and allocates in cycles, then refits on all shots and scores on cases never seen.

    [dim]seapeft adapt --shots 5 --budget 1%
    seapeft adapt scans/ --label liver --shots 5 --budget 1%
    seapeft adapt scans/ --shots 5 --budget 1% --for labels.toml --jobs 2[/dim]
    """
    from sea_peft.artefacts.commands import Commands, to_resume
    from sea_peft.artefacts.findings import findings
    from sea_peft.artefacts.history import History
    from sea_peft.artefacts.known_labels import forgotten, known_labels
    from sea_peft.artefacts.run_folder import RunFolder
    from sea_peft.artefacts.trace import read_trace
    from sea_peft.jobs import adapt as job
    from sea_peft.jobs.options import AdaptOptions
    from sea_peft.jobs.plan import plan

    given = AdaptOptions(
        data=data, shots=shots, budget=budget, profile=profile, backbone=backbone, weights=weights, labels=tuple(label or ()),
        channels=tuple(channel or ()), policy=policy, steps=steps, cycles=cycles, patch=patch, spacing=spacing, seed=seed, device=device,
        time_limit=time_limit, augment=augment, out=out, runs=runs, log_images=log_images, mlflow=mlflow, test=test, split=split,
        name=name, from_run=from_run, add_labels=tuple(add_label or ()), max_forget=max_forget,
    )  # fmt: skip
    if runs_file is not None:
        if resume is not None:
            raise UsageError("--for goes on with its runs by itself; leave --resume out.")
        several.many(output, runs_file, given, jobs, cluster, dry_run)
        return
    if jobs is not None or cluster is not None:
        raise UsageError("--jobs and --cluster are for several runs; name them in a file, and give it as --for.")
    if dry_run:
        torchrun.refuse_unless(False, "adapt --dry-run")
        with output.progress("check the data") as progress:
            planned = plan(given, output.say, progress)
        for sentence in planned["warnings"]:
            output.warn(sentence)
        output.result(planned, shown.plan_facts(planned))
        return
    folder = resume

    def begun(made: RunFolder) -> None:
        nonlocal folder
        folder = made.path

    try:
        with torchrun.processes() as processes, RunProgress(output) as listen:
            if resume is None:
                result = job.adapt(
                    given, listen, output.say, output.warn, listen.checked, begun=begun, processes=processes
                )
            elif given != AdaptOptions(backbone=backbone, weights=weights):
                raise UsageError(
                    "A resumed run keeps its options; give --resume alone, or with the --backbone and --weights that it was begun with."
                )
            else:
                result = job.resume(
                    resume, listen, output.say, output.warn, listen.checked, given.typed, processes=processes
                )
    except (KeyboardInterrupt, LostProcessError) as error:
        kind, what = (
            (LostProcessError, "Another process of this run has ended")
            if isinstance(error, LostProcessError)
            else (Interrupted, "Interrupted")
        )
        if folder is None:
            raise kind(f"{what} before the run began.") from error
        raise kind(f"{what}; go on with `{to_resume(folder, given.typed)}`.") from error
    if not processes.first:
        return  # what the first has written may not be there yet
    done = RunFolder(Path(result.run))
    commands = Commands.of(done.read_config().typed, result.run, given.backbone)
    history = History(read_trace(done.trace))
    found = findings(history, commands)
    output.result(
        result.model_dump(mode="json"),
        shown.headline(found),
        *([shown.dice_table(found)] if found.dice.rows else []),
        *([shown.known_table(found)] if found.known.rows else []),
        shown.run_facts(result),
        shown.advice(found),
        shown.next_steps(commands),
    )
    asked = done.read_config().options
    most = None if asked is None else asked.max_forget
    if most is not None and (said := forgotten(known_labels(history.scored, history.held_out), most)):
        raise QualityGateError(said)


@app.command()
@verb
def predict(
    output: Output,
    adapter: options.Adapter,
    inputs: Annotated[list[Path], Argument(metavar="INPUT…", help="Scans, folders of scans, or data sets.")],
    out: Annotated[Path, Option(metavar="DIR", help="Where masks go.")],
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    overwrite: Annotated[bool, Option("--overwrite", help="Replace earlier results.")] = False,
    probabilities: Annotated[bool, Option("--probabilities", help="Also one float32 volume for each label.")] = False,
    preview: Annotated[bool, Option("--preview", help="Also a picture of three planes for each case.")] = False,
    dicom_seg: Annotated[
        bool, Option("--dicom-seg", help="Also a DICOM-SEG for each DICOM series; it names the patient.")
    ] = False,
    rtstruct: Annotated[
        bool, Option("--rtstruct", help="Also an RTSTRUCT (contours) for each DICOM series; it names the patient.")
    ] = False,
    seg_nrrd: Annotated[
        bool, Option("--seg-nrrd", help="Also a segmentation for 3D Slicer, with names and colours.")
    ] = False,
    statistics: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="One CSV for all scans: volumes, grey values, parts; cases that are in it are not predicted again.",
        ),
    ] = None,
    keep: options.Keep = None,
    qc: Annotated[
        bool,
        Option("--qc", help="Also qc.csv and qc.html: the Dice to expect, and flags; exit code 7 where there are any."),
    ] = False,
    use: options.Use = None,
    channel: options.Channels = None,
    jobs: Annotated[
        int, Option(metavar="N", help="Processes side by side, each with its share of the cores, or of the GPUs.")
    ] = 1,
    resume: Annotated[
        bool,
        Option("--resume", help="Keep what was predicted before by the same adapter and options; predict the rest."),
    ] = False,
    others: Annotated[
        list[Path] | None,
        Option("--with", metavar="ADAPTER", help="Another adapter, averaged with the first. Several allowed."),
    ] = None,
    ensemble: Annotated[
        str | None,
        Option(metavar="mean", help="With --with: the mean of the adapters' probabilities (default)."),
    ] = None,
) -> None:
    """Write masks on each input's own grid and header geometry.

    A mask holds the data set's own codes if every label has exactly one, else 1, 2, …; <case>.json
    beside it names them. With several adapters, <case>_disagreement shows where they differ.

    [dim]seapeft predict runs/a scans/ --out masks
    seapeft predict runs/a scans/ --with runs/b --with runs/c --ensemble mean --out masks[/dim]
    """
    from sea_peft.backbones.monai_alone import import_monai_alone
    from sea_peft.backbones.typed import Typed
    from sea_peft.jobs.predict import predict as job

    if ensemble is not None and ensemble != "mean":
        raise UsageError(f"--ensemble {ensemble} is not known; there is mean.")
    if ensemble is not None and not others:
        raise UsageError("--ensemble takes several adapters; name the others, each by --with ADAPTER.")
    typed = Typed(backbone, weights)
    import_monai_alone(typed)
    try:
        with output.progress("predict") as progress:
            statuses = job(
                adapter, inputs, out, typed=typed, device=device, overwrite=overwrite, probabilities=probabilities, preview=preview,
                dicom_seg=dicom_seg, rtstruct=rtstruct, seg_nrrd=seg_nrrd, use=use, channels=tuple(channel or ()), statistics=statistics,
                keep=tuple(keep or ()), qc=qc, jobs=jobs, resume=resume, ensemble=tuple(others or ()), say=output.say, progress=progress,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise Interrupted("Interrupted; what is done is kept, and the same command with --resume goes on.") from None
    failed = [status for status in statuses if status.error is not None]
    for status in statuses:
        for sentence in (*status.warnings, *([f"{status.case}: {status.error}"] if status.error else [])):
            output.warn(sentence)
    document = {
        "out": str(out),
        "done": len(statuses) - len(failed),
        "failed": len(failed),
        "cases": [{**vars(status), "qc": status.qc.as_json() if status.qc else None} for status in statuses],
    }
    flagged = [status.case for status in statuses if status.qc is not None and status.qc.flags]
    output.result(document, shown.prediction_table(statuses), cell(f"Masks are in {out}."))
    if failed:
        raise PartialFailure(
            f"{len(failed)} of {count(len(statuses), 'case')} could not be predicted; the reasons are above."
        )
    if flagged:
        raise QualityGateError(
            f"{len(flagged)} of {count(len(statuses), 'mask')} should be checked before they are used; {out / 'qc.html'} says why."
        )


@app.command()
@verb
def evaluate(
    output: Output,
    adapter: options.Adapter,
    data: Annotated[str, Argument(metavar="DATA", help="A data set with labels, or phantom:NAME.")],
    out: Annotated[Path | None, Option(metavar="DIR", help="Also write scores.csv, .json and a box plot .png.")] = None,
    min_dice: Annotated[float | None, Option(metavar="DICE", help="Fail with exit code 7 below this mean.")] = None,
    cases: Annotated[str, Option(metavar="all|test", help="All labelled cases, or the test cases only.")] = "all",
    label: options.Labels = None,
    channel: options.Channels = None,
    tolerance: Annotated[float, Option(metavar="MM", help="Tolerance of the surface Dice NSD.")] = 2.0,
    keep: options.Keep = None,
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    use: options.Use = None,
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
    typed = Typed(backbone, weights)
    import_monai_alone(typed)
    with output.progress("evaluate") as progress:
        scores = job(
            adapter, data, typed=typed, device=device, labels=tuple(label or ()), channels=tuple(channel or ()),
            cases=cases, tolerance=tolerance, use=use, keep=tuple(keep or ()), progress=progress,
        )  # fmt: skip
    output.say(scores.choice)
    for sentence in scores.warnings:
        output.warn(sentence)
    for case, why in scores.failed.items():
        output.warn(f"{case}: {why}")
    if scores.shots and cases == "all":
        output.warn(
            f"Of {count(len(scores.cases), 'case')}, {len(scores.shots)} served as shots of this run, so the Dice on them is no measure of "
            "what to expect; --cases test leaves them out."
        )
    document = scores.document()
    if out is not None:
        written = write_evaluation(scores, out)
        output.say(f"Wrote {', '.join(map(str, written))}.")
    output.result(document, *shown.evaluation_tables(scores))
    if scores.failed:
        raise PartialFailure(f"{count(len(scores.failed), 'case')} could not be scored; the reasons are above.")
    dice = scores.overall("dice")
    if min_dice is not None and not dice >= min_dice:
        raise QualityGateError(f"The mean Dice of {dice:.4f} is below --min-dice {min_dice:g}.")


for command in (
    afterwards.inspect,
    afterwards.report,
    afterwards.merge,
    afterwards.export,
    afterwards.suggest,
    afterwards.ui,
    afterwards.doctor,
):
    app.command()(command)


def run(arguments: Sequence[str]) -> int:
    """Run one command. Returns its exit code; prints an error as one sentence on stderr."""
    command = typer.main.get_command(app)
    prepare_streams()
    try:
        # typer returns the code of an Exit, Ctrl-C included, and else what the verb returned: nothing
        code = int(command.main(list(arguments), prog_name="seapeft", standalone_mode=False) or 0)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return Interrupted.exit_code
    except Exception as error:
        sentence, code = outcome(error)
        if not torchrun.speaks():
            return code
        output = Output(json="--json" in arguments)
        if "--debug" in arguments:
            output.notes.print(Text("".join(traceback.format_exception(error))), soft_wrap=True)
        if not sentence:
            return code  # no verb was given, and typer has shown the help
        usage = getattr(error, "ctx", None)
        if usage is not None:
            sentence += f" Try `{usage.command_path} --help`."
            if output.json:
                output.result(error_document(error))
        try:
            output.fail(sentence)
        except OSError:
            abandon(sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            abandon(sys.stdout)
        return code


def main() -> None:
    """The command `seapeft`."""
    # a queue or a shutdown should end a run like Ctrl-C: files whole, MLflow up to date, and the run resumable
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = run(sys.argv[1:])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # all is said; torchrun asks once more while the interpreter ends
    sys.exit(code)
