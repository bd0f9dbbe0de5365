"""Predicts cases as jobs of a cluster, each with its share of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from sea_peft.artefacts.quality import Network
from sea_peft.backbones.monai_alone import import_monai_alone
from sea_peft.data.progress import Progress, unwatched
from sea_peft.errors import LostProcessError, SeaPeftError
from sea_peft.jobs.cluster import Cluster
from sea_peft.jobs.cohort import CaseStatus, Finished, Opening, Work, one_by_one
from sea_peft.jobs.memory import read_ahead
from sea_peft.jobs.statistics import Sidecar

Ended = list[tuple[CaseStatus, Sidecar | None]]


def on_cluster(
    opening: Opening,
    cluster: Cluster,
    jobs: int,
    network: Network,
    work: Sequence[Work],
    progress: Progress,
    finished: Finished,
) -> None:
    """Predict the cases in `jobs` jobs. A job that is queued again begins its share anew.

    Args:
        opening: what each job opens for itself.
        cluster: takes the jobs.
        jobs: number of jobs; no more than there are cases.
        network: the one that they open.
        work: the cases.
        progress: called with (cases done, of), when a job ends.
        finished: called for each case, when its job ends.

    Raises:
        UsageError: the jobs cannot be submitted.
        WeightsError, DeviceError: a job cannot open the adapter.
    """
    shares = [work[i::jobs] for i in range(jobs)]
    done = 0
    with contextlib.closing(
        cluster.results(predict_share, [(os.getcwd(), opening, share) for share in shares])
    ) as results:
        for place, ended in results:
            if isinstance(ended, LostProcessError):
                why = f"{str(ended).rstrip('.')}; predict it again with --resume."
                ended = [(CaseStatus.failed(case, network, why), None) for case, _ in shares[place]]
            elif isinstance(ended, SeaPeftError):
                raise ended
            for status, sidecar in ended:
                finished(status, sidecar)
            done += len(shares[place])
            progress(done, len(work))


def predict_share(folder: str, opening: Opening, work: Sequence[Work]) -> Ended | SeaPeftError:
    """What a job does: the cases of its share, or why it cannot begin. `folder`: base of
    relative paths.
    """
    os.chdir(folder)
    try:
        import_monai_alone(opening.typed)
        writer = opening.writer()
    except SeaPeftError as error:
        return error
    ended: Ended = []
    cases = [case for case, _ in work]
    ahead = read_ahead(cases[1:], writer.predictor.recipe, len(writer.predictor.channels))
    one_by_one(writer, work, {case.id for case in ahead}, unwatched, lambda *one: ended.append(one))
    return ended
