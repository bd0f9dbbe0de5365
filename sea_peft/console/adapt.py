"""The verb `adapt`: one run, several, one that goes on, or a plan."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from sea_peft.console import many as several
from sea_peft.console import options, parse, torchrun
from sea_peft.console import runs as shown
from sea_peft.console.output import Output
from sea_peft.console.progress import RunProgress
from sea_peft.console.verb import Interrupted, verb
from sea_peft.errors import LostProcessError, QualityGateError, UsageError


@verb
def adapt(
    output: Output,
    data: Annotated[
        str | None,
        Argument(
            metavar="DATA",
            help="A data set, or phantom:NAME. Left out: the embedded default target.",
        ),
    ] = None,
    shots: Annotated[
        int | None,
        Option(
            metavar="N", help="Labelled scans to train on and to audit on, together; by default 5."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        Option(
            metavar="1%|0.01|47k",
            help="Most parameters that may be trained. Left out: the profile's.",
        ),
    ] = None,
    profile: options.Profile = "default",
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    label: options.Labels = None,
    add_label: Annotated[
        list[str] | None,
        Option(
            metavar="NAME[=CODES]",
            help="Add this label to all that the network knows; only it need be drawn.",
        ),
    ] = None,
    max_forget: Annotated[
        float | None,
        Option(
            metavar="POINTS",
            help="With --add-label: exit code 7 where a known label has lost more Dice points.",
        ),
    ] = None,
    channel: options.Channels = None,
    policy: Annotated[
        str,
        Option(
            metavar="NAME",
            help="How units are chosen: by sea, or by a fixed topology to compare with.",
        ),
    ] = "sea",
    steps: Annotated[
        int | None,
        Option(
            metavar="N",
            help="Optimizer steps in all; by default 480, and 120 on an embedded phantom.",
        ),
    ] = None,
    cycles: Annotated[
        int | None, Option(metavar="N", help="Search cycles: train, audit, allocate; by default 3.")
    ] = None,
    patch: Annotated[
        Any, Option(parser=parse.size, metavar="D,H,W", help="Training crop in voxels.")
    ] = None,
    spacing: Annotated[
        Any, Option(parser=parse.millimetres, metavar="MM,MM,MM", help="Voxel size to resample to.")
    ] = None,
    seed: Annotated[
        int,
        Option(metavar="N", help="Seed of the choice of shots, the initial values and the crops."),
    ] = 0,
    device: options.Device = "auto",
    time_limit: Annotated[
        Any,
        Option(
            parser=parse.duration,
            metavar="20m|90s|2h",
            help="Most time for training and audits; scoring comes on top.",
        ),
    ] = None,
    test: Annotated[
        Any,
        Option(
            parser=parse.tests,
            metavar="N|none|cv",
            help="Score on at most N test cases, on none, or on every shot by an adapter that "
            "never saw it; by default on all labelled scans that are no shots.",
        ),
    ] = None,
    split: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="JSON that names the cases: lists of ids under support, audit and test.",
        ),
    ] = None,
    augment: Annotated[
        str,
        Option(
            metavar="NAME|FILE",
            help="Random changes of training crops: full, none, grey (gain and shift alone), or a "
            "file; the default is grey on phantoms, else full.",
        ),
    ] = "default",
    out: Annotated[Path | None, Option(metavar="DIR", help="The run folder to make.")] = None,
    name: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="What the run is called. Left out: the date and a few digits.",
        ),
    ] = None,
    runs: options.Runs = Path("runs"),
    resume: Annotated[
        Path | None, Option(metavar="RUN", help="Continue an interrupted run.")
    ] = None,
    from_run: Annotated[
        Path | None,
        Option(
            "--from",
            metavar="RUN",
            help="Begin with a finished run; --shots counts its shots and those labelled since.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Resolve and check everything; train nothing.")
    ] = False,
    log_images: Annotated[
        bool,
        Option(
            "--log-images", help="Log pictures of the best, median and worst test case into MLflow."
        ),
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
    jobs: Annotated[
        int | None, Option(metavar="N", help="With --for: runs side by side; by default 1.")
    ] = None,
    cluster: Annotated[
        str | None,
        Option(metavar="slurm", help="With --for: runs as jobs of SLURM, through submitit."),
    ] = None,
) -> None:
    """Place adapters with a few labelled scans; leaves a run folder.

    Searches, audits and allocates in cycles, then refits on all shots and scores on cases never
    seen.

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
        data=data,
        shots=shots,
        budget=budget,
        profile=profile,
        backbone=backbone,
        weights=weights,
        labels=tuple(label or ()),
        channels=tuple(channel or ()),
        policy=policy,
        steps=steps,
        cycles=cycles,
        patch=patch,
        spacing=spacing,
        seed=seed,
        device=device,
        time_limit=time_limit,
        augment=augment,
        out=out,
        runs=runs,
        log_images=log_images,
        mlflow=mlflow,
        test=test,
        split=split,
        name=name,
        from_run=from_run,
        add_labels=tuple(add_label or ()),
        max_forget=max_forget,
    )
    if runs_file is not None:
        if resume is not None:
            raise UsageError("--for goes on with its runs by itself; leave --resume out.")
        several.many(output, runs_file, given, jobs, cluster, dry_run)
        return
    if jobs is not None or cluster is not None:
        raise UsageError(
            "--jobs and --cluster are for several runs; name them in a file, and give it as --for."
        )
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
                    given,
                    listen,
                    output.say,
                    output.warn,
                    listen.checked,
                    begun=begun,
                    processes=processes,
                )
            elif given != AdaptOptions(backbone=backbone, weights=weights):
                raise UsageError(
                    "A resumed run keeps its options; give --resume alone, or with the --backbone "
                    "and --weights that it was begun with."
                )
            else:
                result = job.resume(
                    resume,
                    listen,
                    output.say,
                    output.warn,
                    listen.checked,
                    given.typed,
                    processes=processes,
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
    if most is not None and (
        said := forgotten(known_labels(history.scored, history.held_out), most)
    ):
        raise QualityGateError(said)
