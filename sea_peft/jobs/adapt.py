"""`seapeft adapt`: search, audit, allocate, refit; then score three arms, recommend one network,
and leave a run folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sea_peft.artefacts import store
from sea_peft.artefacts.checkpoint import remove_checkpoint
from sea_peft.artefacts.result import Result
from sea_peft.artefacts.run_folder import RunFolder, dated
from sea_peft.artefacts.trace import read_trace
from sea_peft.artefacts.tracker import rebuild
from sea_peft.backbones.typed import NOTHING, Typed
from sea_peft.errors import UsageError
from sea_peft.jobs.memory import needed
from sea_peft.jobs.options import AdaptOptions
from sea_peft.jobs.pictures import images_for_mlflow
from sea_peft.jobs.records import options_of, run_config, run_started, write_case_names
from sea_peft.jobs.run import Run, Say
from sea_peft.jobs.setup import Setup, prepare_run
from sea_peft.loop import events
from sea_peft.loop.processes import ALONE, Processes


def _silent(_sentence: str) -> None:
    """Nobody listens."""


def _unwatched(_folder: RunFolder) -> None:
    """Ignore where the run lies."""


def adapt(
    options: AdaptOptions,
    listen: events.Callback = events.ignore,
    say: Say = _silent,
    warn: Say = _silent,
    progress: Callable[[int, int], None] | None = None,
    baselines: Mapping[str, events.Scored] | None = None,
    begun: Callable[[RunFolder], None] = _unwatched,
    processes: Processes = ALONE,
    mixed_precision: bool | None = None,
) -> Result:
    """Run one adaptation from start to end.

    Args:
        options: what the user asked for.
        listen: receives every event as it happens, training steps included.
        say: receives sentences for the user.
        warn: receives warnings for the user.
        progress: called with (done, of) while the data set is checked.
        baselines: scores of `unadapted` and `head_only` from a run that differs in policy and
            budget alone, to be used instead of scoring these arms again. For grids; the caller must
            make sure that they apply.
        begun: called with the run folder as soon as the run can be resumed.
        processes: the processes of the run, each of which calls this. The first one writes.
        mixed_precision: whether to train in bfloat16; None: where the device computes in it
            (`Trainer`). Not recorded, so `resume` takes what the device gives. For benchmarks.

    Raises:
        SeaPeftError: one sentence, with its exit code. If the request itself is refused, nothing
            has been written.
    """
    began = time.monotonic()
    if options.mlflow:
        store.require()
    setup = prepare_run(
        options, say, progress, processes=processes, mixed_precision=mixed_precision
    )
    folder = processes.of_first(lambda: _new_folder(setup))
    say(needed(f"The run in {folder.path}", setup.need(), processes.size))
    begun(folder)
    return Run(setup, folder, listen, warn, began, baselines or {}).run()


def _new_folder(setup: Setup) -> RunFolder:
    """Make a folder from which the run can be resumed."""
    options = setup.options
    name = options.name or setup.neutral_name
    # a path given as --out may name a patient
    config = run_config(setup, dated(name) if options.out else None)
    folder = (
        RunFolder.create_at(Path(options.out))
        if options.out
        else RunFolder.create(Path(options.runs), name)
    )
    write_case_names(folder, setup)
    if setup.earlier is not None:
        setup.earlier.keep(folder.begun_from)
    folder.write_config(
        config if config.name else config.model_copy(update={"name": folder.name})
    )  # last: a folder with it can be resumed
    return folder


def resume(
    path: str | Path,
    listen: events.Callback = events.ignore,
    say: Say = _silent,
    warn: Say = _silent,
    progress: Callable[[int, int], None] | None = None,
    typed: Typed = NOTHING,
    processes: Processes = ALONE,
) -> Result:
    """Continue a run that has ended early. Its trace and adapter become those of an uninterrupted
    run.

    Args:
        path: the run folder.
        listen: receives every event as it happens, training steps included.
        say: receives sentences for the user.
        warn: receives warnings for the user.
        progress: called with (done, of) while the data set is checked.
        typed: the backbone or its weights, if they are not installed under the name in the run.
        processes: as in `adapt`; there need not be as many as began the run.

    Raises:
        SeaPeftError: one sentence, with its exit code. The folder is no run, or a finished one; its
            config, trace or checkpoint is damaged; the data have changed; or another process is
            working on it. Only trace lines later than the checkpoint are lost then.
    """
    began = time.monotonic()
    folder = RunFolder.open(Path(path))
    config = folder.read_config()
    finished, shipped = processes.of_first(
        lambda: (folder.result.is_file(), not folder.checkpoint.exists())
    )
    if finished:
        if shipped:
            raise UsageError(
                f"{path} is finished: there is nothing to resume; look at it with `seapeft inspect"
                f" {path}`."
            )
        if processes.first:
            if (
                config.mlflow
            ):  # it may have been killed after it wrote its result and before it told MLflow
                rebuild(folder, images=images_for_mlflow(folder, warn, typed, config.device))
            remove_checkpoint(folder.checkpoint)
        return folder.read_result()
    options, begun = options_of(config, folder, typed)
    setup = prepare_run(options, say, progress, begun, processes)
    if setup.public_digest != config.data_digest:
        raise UsageError(
            f"The data have changed since {path} was started, so it cannot be resumed; start a new"
            " run."
        )
    _refuse_another_split(folder, setup)
    return Run(setup, folder, listen, warn, began, {}).run()


def _refuse_another_split(folder: RunFolder, setup: Setup) -> None:
    """Raise if the split file has changed since, which would bring other cases into the run."""
    begun = read_trace(folder.trace)[:1] if folder.trace.is_file() else []
    if (
        begun
        and isinstance(begun[0], events.RunStarted)
        and begun[0].split != run_started(setup).split
    ):
        raise UsageError(
            f"The split of the cases is not the one that {folder.path} was started with, so it"
            " cannot be resumed; start a new run."
        )
