"""The shots, prepared for the network once and kept as long as the run needs them."""

from collections.abc import Callable
from pathlib import Path

from sea_peft.data.prepare import prepare
from sea_peft.data.spill import ScanCache
from sea_peft.jobs.setup import Setup
from sea_peft.loop import events
from sea_peft.loop.settings import Shots


def prepared_shots(
    setup: Setup, folder: Path, listen: events.Callback, warn: Callable[[str], None]
) -> Shots:
    """Prepare every shot of a run.

    Args:
        setup: the run.
        folder: for scans that do not fit into memory.
        listen: told how many are done.
        warn: told of a label that no shot holds.

    Raises:
        DataError: a shot cannot be read, or there is one alone and no part of its labels can be
            held out.
    """
    cache, cases = ScanCache(folder=folder), setup.split.shots
    scans = []
    for done, case in enumerate(cases, start=1):
        scans.append(
            cache.keep(prepare(case, setup.recipe, setup.dataset.channels, setup.dataset.labels))
        )
        listen(events.TrainingStep("prepare", done, len(cases), 0.0))
    held = {
        index for scan in scans if scan.label is not None for index in scan.label.unique().tolist()
    }
    for index, (label, codes) in enumerate(setup.dataset.labels.items(), start=1):
        if codes and index not in held:
            warn(
                f"Label {label} is in none of the shots at the voxel size of training, so it cannot"
                " be learnt; choose shots that hold it (another --seed, more --shots) or leave it"
                " out with --label."
            )
    support = len(setup.split.support)
    return Shots.of(scans[:support], scans[support:])
