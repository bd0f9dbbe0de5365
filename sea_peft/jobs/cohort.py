"""Predicts case after case in this process. Reads the next case while the network works on the one
before, and reports the status of each.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sea_peft.artefacts.quality import Network
from sea_peft.backbones.typed import Typed
from sea_peft.data.cases import FileCase
from sea_peft.data.progress import Progress, within
from sea_peft.jobs.case_results import CaseFiles, CaseWriter, Ready
from sea_peft.jobs.ensemble import predictor_of
from sea_peft.jobs.predictor import reason
from sea_peft.jobs.quality import Judged
from sea_peft.jobs.statistics import Sidecar

Work = tuple[FileCase, CaseFiles]
"""A case, and where its results go."""


@dataclass(frozen=True, kw_only=True)
class CaseStatus:
    """The status of one case.

    Attributes:
        case: its name.
        status: whether it was predicted or failed.
        mask: file name in the output folder; None if it failed.
        volumes: millilitres of each label.
        seconds: time that it took.
        error: why it failed.
        warnings: assumptions that had to be made about the scan.
        network: "adapted" or "unadapted".
        qc: the judgement of `--qc`; None if not wanted.
        disagreement: label → how far several adapters disagree (`ensemble.Disagreement`); None for
            one adapter.
    """

    case: str
    status: str
    mask: str | None
    volumes: Mapping[str, float]
    seconds: float
    error: str | None
    warnings: tuple[str, ...] = ()
    network: str = "adapted"
    qc: Judged | None = None
    disagreement: Mapping[str, float | None] | None = None

    @property
    def mean_disagreement(self) -> float | None:
        """Mean over the labels that an adapter has found; None if there is none, or one adapter."""
        found = [value for value in (self.disagreement or {}).values() if value is not None]
        return sum(found) / len(found) if found else None

    @classmethod
    def done(
        cls, case: FileCase, sidecar: Sidecar, seconds: float = 0.0, warnings: tuple[str, ...] = ()
    ) -> CaseStatus:
        """The status of a case whose results exist, whether new or from an earlier prediction."""
        return cls(
            case=case.id,
            status="done",
            mask=sidecar["mask"],
            volumes=sidecar["volumes_ml"],
            seconds=round(seconds, 3),
            error=None,
            warnings=warnings,
            network=sidecar["network"],
            qc=Judged.from_json(sidecar.get("qc")),
            disagreement=sidecar.get("disagreement"),
        )

    @classmethod
    def failed(
        cls,
        case: FileCase,
        network: Network,
        why: str,
        seconds: float = 0.0,
        warnings: tuple[str, ...] = (),
    ) -> CaseStatus:
        """The status of a case that left no results."""
        return cls(
            case=case.id,
            status="failed",
            mask=None,
            volumes={},
            seconds=round(seconds, 3),
            error=why,
            warnings=warnings,
            network=network,
        )


Finished = Callable[[CaseStatus, Sidecar | None], None]
"""Called with the status of a case, and its sidecar if it was predicted."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """The arguments that a `CaseWriter` is made from, in this process or another. They are as
    for `predict`.
    """

    adapter: Path
    typed: Typed
    device: str
    use: str | None
    keep: tuple[str, ...]
    statistics: bool
    qc: bool
    ensemble: tuple[Path, ...] = ()

    def writer(self) -> CaseWriter:
        """Load the adapter and its backbone. Raises WeightsError, DeviceError and UsageError as
        `Predictor` and `Ensemble` do, and for `keep` and `qc`.
        """
        predictor = predictor_of(self.adapter, self.ensemble, self.typed, self.device, self.use)
        keeping = predictor.keeping(self.keep)
        return CaseWriter(
            predictor,
            keeping,
            self.statistics,
            predictor.seen(", or leave --qc out") if self.qc else None,
        )


def one_by_one(
    writer: CaseWriter,
    work: Sequence[Work],
    ahead: Collection[str],
    progress: Progress,
    finished: Finished,
) -> None:
    """Predict the cases in order.

    Args:
        writer: predicts and writes.
        work: the cases.
        ahead: ids of the cases that a thread may read and prepare, one at a time, while the network
            works on the one before.
        progress: called with (cases done, of); the current case counts by its windows.
        finished: called for each case.
    """
    with ThreadPoolExecutor(1, "read ahead") as pool:
        reader = _Reader(writer, [case for case, _ in work], ahead, pool)
        for done, (case, files) in enumerate(work):
            read = functools.partial(reader.read, done)
            finished(*predict_case(writer, case, files, read, within(progress, done, len(work))))
            progress(done + 1, len(work))


class _Reader:
    """Reads cases in order, and starts on the next as soon as one has been read."""

    def __init__(
        self,
        writer: CaseWriter,
        cases: Sequence[FileCase],
        ahead: Collection[str],
        pool: ThreadPoolExecutor,
    ) -> None:
        self._writer, self._cases, self._ahead, self._pool = writer, cases, ahead, pool
        self._coming: Future[Ready] | None = None

    def read(self, number: int) -> Ready:
        """The case of this number. Raises the error that reading it caused."""
        try:
            return (
                self._coming.result()
                if self._coming is not None
                else self._writer.ready(self._cases[number])
            )
        finally:
            self._coming = None
            if number + 1 < len(self._cases) and self._cases[number + 1].id in self._ahead:
                self._coming = self._pool.submit(self._writer.ready, self._cases[number + 1])


def predict_case(
    writer: CaseWriter,
    case: FileCase,
    files: CaseFiles,
    read: Callable[[], Ready],
    progress: Progress,
) -> tuple[CaseStatus, Sidecar | None]:
    """The status of the case, and its sidecar if it was predicted. `read` returns the prepared
    case, or raises if it is unfit.
    """
    began = time.monotonic()
    notes: tuple[str, ...] = ()
    try:
        ready = read()
        notes = ready.notes
        sidecar = writer.write(case, ready, files, progress)
    except Exception as error:  # an unforeseen error must not stop the other cases
        why = reason(error)
        return (
            CaseStatus.failed(case, writer.predictor.network, why, time.monotonic() - began, notes),
            None,
        )
    finally:
        case.forget()
    return CaseStatus.done(case, sidecar, time.monotonic() - began, notes), sidecar
