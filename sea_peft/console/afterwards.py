"""The verbs for existing things: a run, an adapter, the store, the installation."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from sea_peft.console import options, parse
from sea_peft.console import runs as shown
from sea_peft.console.output import Output
from sea_peft.console.tables import cell, facts, state, table
from sea_peft.console.verb import verb
from sea_peft.data.wording import count
from sea_peft.errors import PartialFailure, QualityGateError, UsageError


@verb
def inspect(
    output: Output,
    run: Annotated[
        Path, Argument(metavar="RUN|ADAPTER", help="A run folder or an adapter folder.")
    ],
    cycle: Annotated[int | None, Option(metavar="N", help="As it was after this cycle.")] = None,
    unit: Annotated[
        str | None,
        Option(
            metavar="GLOB",
            help="Only these units, such as 'lora-*@dec*'; '*' for every one on offer.",
        ),
    ] = None,
    full: options.Full = False,
    replay: Annotated[
        bool,
        Option(
            "--replay", help="Decide every allocation again from the trace, without the network."
        ),
    ] = False,
) -> None:
    """Show what was placed where and why, and what was refused.

    With --replay, ranking and knapsack run again on the measurements in the trace; exit code 7 if
    they choose something else.
    """
    from sea_peft.artefacts.findings import findings
    from sea_peft.artefacts.history import History
    from sea_peft.artefacts.trace import read_trace
    from sea_peft.artefacts.view import summarise

    trace = run / "trace.jsonl"
    if run.is_dir() and not trace.is_file():
        raise UsageError(
            f"{run} has no trace.jsonl; give a run folder, or the adapter folder that `seapeft"
            " adapt` wrote."
        )
    events = read_trace(trace)
    if replay:
        if cycle is not None or unit is not None:
            raise UsageError(
                "--replay decides every allocation of every unit again; give it without --cycle and"
                " --unit."
            )
        from sea_peft.jobs.replay import replay as decide_again

        replayed = decide_again(events)
        document = {
            "same": all(r.same for r in replayed),
            "allocations": [{**vars(r), "same": r.same} for r in replayed],
        }
        output.result(document, shown.replay_table(replayed))
        if not document["same"]:
            raise QualityGateError(
                f"{sum(not r.same for r in replayed)} of {count(len(replayed), 'allocation')} did"
                " not come out the same: the trace was changed, or written by another version of"
                " sea_peft."
            )
        return
    history = History(events)
    rows = summarise(history, cycle, unit or "*")
    found = findings(history)
    names = {} if full else history.names
    document = {
        "headline": found.headline,
        "helps": found.helps,
        "cycle": cycle,
        "units": [vars(row) for row in rows],
    }
    costs = history.started.cost_kind.many
    output.result(
        document,
        shown.headline(found),
        *shown.unit_lists(rows, names, costs, everything=unit is not None),
    )


@verb
def report(
    output: Output,
    run: options.Run,
    images: Annotated[
        bool,
        Option(
            "--images",
            help="With pictures of the best, median and worst test case, and of labels that lost.",
        ),
    ] = False,
    explain: Annotated[
        bool,
        Option(
            "--explain",
            help="With ProtoSeg and Grad-CAM: what the layers see, with and without adapters.",
        ),
    ] = False,
    mlflow: Annotated[
        bool, Option("--mlflow", help="Also log the run into MLflow again, from its trace.")
    ] = False,
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    use: options.Use = None,
) -> None:
    """Write one self-contained HTML page of a run."""
    from sea_peft.artefacts.history import History
    from sea_peft.artefacts.report import report_html
    from sea_peft.artefacts.run_folder import RunFolder
    from sea_peft.artefacts.trace import read_trace
    from sea_peft.backbones.typed import Typed

    folder, typed = RunFolder.open(run), Typed(backbone, weights)
    document: dict[str, str | None] = {"page": str(folder.page)}
    pictures, explanation = [], []
    if images or explain:
        from sea_peft.jobs.pictures import case_pictures, revisit

        revisited = revisit(folder, typed, use=use)
        document["network"] = revisited.network
        output.say(revisited.predictor.choice(revisited.network))
        if not revisited.shown:
            output.warn("The run was scored on no test case, so there is none to show.")
        if images:
            with output.progress("predict test cases") as progress:
                pictures = case_pictures(revisited, progress)
        if explain and revisited.shown:
            from sea_peft.jobs.explain import explain as look_inside

            with output.progress("look inside the network") as progress:
                seen = look_inside(revisited, progress)
            folder.write_explanation(seen.document())
            explanation = seen.pictures(History(read_trace(folder.trace)))
            document["explanation"] = str(folder.explanation)
        output.warn(
            "The page holds pictures of patients' scans; share it only with whoever may see those."
        )
    folder.write_page(report_html(folder, pictures, explanation))
    if mlflow:
        from sea_peft.artefacts.tracker import rebuild

        logged = {}
        if folder.result.is_file():
            from sea_peft.jobs.pictures import images_for_mlflow

            logged = images_for_mlflow(folder, output.warn, typed)
        document["mlflow_run_id"] = rebuild(folder, images=logged)
        output.say(
            f"MLflow run {document['mlflow_run_id']} is complete; `seapeft ui --runs {folder.root}`"
            " shows it."
        )
    output.result(document, cell(str(folder.page)))


@verb
def merge(
    output: Output,
    adapter: options.Adapter,
    out: Annotated[
        Path, Option(metavar="FILE", help="The .safetensors file to make; its card goes beside it.")
    ],
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    use: options.Use = None,
    others: Annotated[
        list[Path] | None,
        Option(
            "--with",
            metavar="ADAPTER",
            help="Another adapter of the same backbone and labels. Several allowed.",
        ),
    ] = None,
    shares: Annotated[
        str | None,
        Option(
            metavar="S,S",
            help=(
                "With --with: how much of each adapter is added, the first included; by default"
                " equal."
            ),
        ),
    ] = None,
) -> None:
    """Fold an adapter into the backbone, checked numerically; or several, each with its share.

    The head is folded in too, with one more output per new label. A unit that cannot be folded
    exactly (such as ConvAdapter) is refused by name.

    [dim]seapeft merge runs/a --out a.safetensors
    seapeft merge runs/a --with runs/b --shares 0.5,0.5 --out both.safetensors[/dim]
    """
    from sea_peft.backbones.typed import Typed
    from sea_peft.jobs.merge import merge as job

    given = parse.numbers(shares) if shares is not None else ()
    merged = job(adapter, out, Typed(backbone, weights), use, tuple(others or ()), given)
    same = f"{merged.agreement:.4%} of voxels get the same label"
    if merged.difference is None:
        check = [
            (
                "check",
                (
                    f"{same} as by the adapters' probabilities, weighed alike (in noise, not in a"
                    " scan)"
                ),
            )
        ]
    else:
        apart = (
            f"logits differ by at most {merged.difference:.2g} (largest logit {merged.largest:.3g})"
        )
        check = [("check", apart), ("", same)]
    found = [
        ("file", str(merged.file)),
        (
            "folded",
            (
                f"{count(merged.units, 'unit')} and the head into"
                f" {count(merged.tensors_changed, 'tensor')}"
            ),
        ),
        ("outputs", list(merged.labels)),
        *check,
    ]
    output.result(vars(merged), facts(found))


@verb
def export(
    output: Output,
    adapter: options.Adapter,
    to: Annotated[
        str,
        Option(
            metavar="bundle|nnunet|onnx|peft|torch",
            help=(
                "For MONAI, nnU-Net, ONNX runtimes, Hugging Face PEFT (LoRA alone), or"
                " torch.export."
            ),
        ),
    ],
    out: Annotated[Path, Option(metavar="DIR", help="The folder to make.")],
    source: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="The checkpoint that an nnU-Net was imported from; its plans go along.",
        ),
    ] = None,
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    use: options.Use = None,
) -> None:
    """Write the adapted network for other tools.

    The receiving tool first predicts a synthetic scan with it; if its mask differs from that of
    predict, nothing is written.
    """
    from sea_peft.backbones.typed import Typed
    from sea_peft.jobs.export import export as job

    made = job(
        adapter, to, out, typed=Typed(backbone, weights), use=use, source=source, say=output.say
    )
    found = [
        ("folder", str(made.folder)),
        ("files", list(made.files)),
        ("network", made.network),
        ("check", f"{made.agreement:.4%} of voxels of a trial scan as predict labels them"),
    ]
    output.result(vars(made), facts(found))


@verb
def suggest(
    output: Output,
    run: Annotated[Path, Argument(metavar="RUN", help="A run folder, or an adapter folder.")],
    scans: Annotated[
        list[Path],
        Argument(
            metavar="UNLABELLED…", help="Scans, folders of scans, or data sets' unlabelled part."
        ),
    ],
    n: Annotated[int, Option("-n", metavar="N", help="How many to suggest.")] = 3,
    out: Annotated[
        Path | None, Option(metavar="DIR", help="A folder to make: a picture of each, and a page.")
    ] = None,
    backbone: options.Backbone = None,
    weights: options.Weights = None,
    device: options.Device = "auto",
    use: options.Use = None,
    channel: options.Channels = None,
) -> None:
    """Rank unlabelled scans: which to label next.

    First come scans that the network doubts most and that differ most from the run's shots and the
    scans above: doubt times distance.
    """
    from sea_peft.backbones.typed import Typed
    from sea_peft.jobs.suggest import suggest as job

    with output.progress("look at scans") as progress:
        found = job(
            run,
            scans,
            n,
            out=out,
            typed=Typed(backbone, weights),
            device=device,
            use=use,
            channels=tuple(channel or ()),
            say=output.say,
            progress=progress,
        )
    for sentence in (*found.warnings, *(f"{scan}: {why}" for scan, why in found.failed.items())):
        output.warn(sentence)
    if found.page is not None:
        output.warn(
            "The page holds pictures of patients' scans; share it only with whoever may see those."
        )
    last = [] if found.page is None else [cell(f"Pictures are in {found.page}.")]
    output.result(found.document(), shown.suggestion_table(found), *last)
    if found.failed:
        looked = len(found.suggested) + len(found.others)
        raise PartialFailure(
            f"{len(found.failed)} of {count(looked + len(found.failed), 'scan')} could not be"
            " examined; the reasons are above."
        )


@verb
def ui(
    output: Output,
    runs: options.Runs = Path("runs"),
    port: Annotated[int, Option(min=1, max=65535, metavar="N", help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Open the stock MLflow UI over the run store, on 127.0.0.1.

    Only whoever has the printed link can read and change the store while it runs. MLflow's
    assistant and gateways, which contact external services, are off.
    """
    from sea_peft.artefacts.ui import open_ui

    def opened(link: str) -> None:
        output.rest()
        output.say(f"MLflow UI over {runs}: {link}")
        output.say(
            "Whoever has this link can read and change the store while it runs: pass it on to"
            " nobody. Ctrl-C ends it."
        )

    open_ui(runs, port, opened)


@verb
def doctor(output: Output, runs: options.Runs = Path("runs")) -> None:
    """Check versions, device, memory, disk, store, network, weights."""
    from sea_peft.jobs.doctor import doctor as job

    checks = job(runs)
    document = {"checks": [{"name": c.name, "state": c.state, "found": c.found} for c in checks]}
    output.result(
        document,
        table("", ("", "state", "found"), [(c.name, state(c.state), c.found) for c in checks]),
    )
    problem = next((check for check in checks if check.state == "problem"), None)
    if problem is not None:
        raise problem.error(f"{problem.name}: {problem.found}")
