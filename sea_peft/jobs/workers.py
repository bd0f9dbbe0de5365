"""Predicts cases side by side in several processes of one machine. A process that dies loses its
current case and no other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import logging.handlers
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from sea_peft.artefacts.quality import Network
from sea_peft.atomic import remove_unfinished
from sea_peft.backbones.monai_alone import import_monai_alone
from sea_peft.data.progress import Progress
from sea_peft.errors import DeviceError, SeaPeftError
from sea_peft.jobs.cohort import CaseStatus, Finished, Opening, Work, predict_case
from sea_peft.jobs.model import resolve_device
from sea_peft.jobs.predictor import reason

_LOG = logging.getLogger(__name__)
_READY = "ready"
SECONDS_TO_END = 30.0  # for the windows that are in the network at the moment


@dataclasses.dataclass(eq=False)
class _Worker:
    """One process.

    Attributes:
        number: from 0.
        process: its handle.
        pipe: to it.
        at: its current case.
        part: the share of that case that is done.
        ready: whether it has opened the network.
    """

    number: int
    process: BaseProcess
    pipe: Connection
    at: Work | None = None
    part: float = 0.0
    ready: bool = False

    def give(self, work: Work) -> None:
        self.at, self.part = work, 0.0
        with contextlib.suppress(OSError):  # it has died, as its pipe says next
            self.pipe.send(work)


def side_by_side(
    opening: Opening,
    jobs: int,
    network: Network,
    work: Sequence[Work],
    progress: Progress,
    finished: Finished,
) -> None:
    """Predict the cases, each in one of `jobs` processes.

    Args:
        opening: what each process opens for itself. With several GPUs and none named, each process
            takes the next one.
        jobs: number of processes.
        network: the one that they open.
        work: the cases.
        progress: called with (cases done, of); current cases count by their windows.
        finished: called for each case, in the order in which they are done.

    Raises:
        WeightsError: a process cannot open the adapter.
        DeviceError: no process can be started, or the device is refused.
        UsageError: an option is refused.
    """
    crew = _Crew(opening, jobs, network, deque(work), finished)
    try:
        crew.hire()
        while crew.at_work:
            crew.listen()
            done = crew.done + 0.999 * sum(worker.part for worker in crew.workers)
            if done > 0:  # while the processes start there is nothing to tell
                progress(done, len(work))
    finally:
        crew.dismiss()


class _Crew:
    """The processes, and the work that is left."""

    def __init__(
        self,
        opening: Opening,
        jobs: int,
        network: Network,
        waiting: deque[Work],
        finished: Finished,
    ) -> None:
        self.workers: list[_Worker] = []
        self.done = 0
        self._opening, self._jobs, self._network = opening, jobs, network
        self._waiting, self._finished = waiting, finished

    @property
    def at_work(self) -> bool:
        """Whether there is anything to wait for. Raises DeviceError if there is work left but
        no process.
        """
        if self._waiting and not self.workers:
            raise DeviceError(
                "The processes of --jobs end before they have opened the network: memory may be too"
                " small for them, so use fewer; in a Python script, call predict under `if __name__"
                ' == "__main__":`.'
            )
        return bool(self._waiting) or any(worker.at for worker in self.workers)

    def hire(self) -> None:
        """Start every process."""
        for number in range(self._jobs):
            self._start(number)

    def listen(self) -> None:
        """Wait for a message from any process, and act on it."""
        heard = wait([worker.pipe for worker in self.workers])
        for worker in [worker for worker in self.workers if worker.pipe in heard]:
            try:
                said = worker.pipe.recv()
            except (EOFError, OSError):
                self._mourn(worker)
                continue
            if isinstance(said, SeaPeftError):
                raise said
            if isinstance(said, logging.LogRecord):
                logging.getLogger(said.name).handle(said)
            elif isinstance(said, float):
                worker.part = said
            else:
                if said == _READY:
                    worker.ready = True
                else:
                    worker.at, worker.part = None, 0.0
                    self._finish(*said)
                if self._waiting:
                    worker.give(self._waiting.popleft())

    def dismiss(self) -> None:
        """End every process, even in the middle of a case, and wait until it is gone."""
        for worker in self.workers:
            worker.pipe.close()
            if worker.at is not None or not worker.ready:
                worker.process.terminate()
        for worker in self.workers:
            worker.process.join(SECONDS_TO_END)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            self._tidy(worker)

    def _start(self, number: int) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        threads = (
            None
            if "OMP_NUM_THREADS" in os.environ
            else max(1, torch.get_num_threads() // self._jobs)
        )
        process = context.Process(
            target=_work,
            args=(
                theirs,
                os.getcwd(),
                _on_its_device(self._opening, number),
                threads,
                logging.getLogger().level,
            ),
            daemon=True,
        )
        with no_interrupt():
            process.start()
        theirs.close()
        self.workers.append(_Worker(number, process, ours))

    def _mourn(self, worker: _Worker) -> None:
        """Handle a process that died: its case has failed, and another process takes its place,
        unless that would die at once too.
        """
        self.workers.remove(worker)
        worker.pipe.close()
        worker.process.join()
        self._tidy(worker)
        how = end_of(worker.process)
        _LOG.info("process %d of --jobs %s", worker.number, how)
        if worker.at is not None:
            case, _ = worker.at
            why = (
                f"the process that predicted it {how}; predict it again with --resume, and with"
                " fewer --jobs."
            )
            self._finish(CaseStatus.failed(case, self._network, why), None)
        if worker.ready and self._waiting:
            self._start(worker.number)

    def _finish(self, status: CaseStatus, sidecar: dict[str, object] | None) -> None:
        self.done += 1
        self._finished(status, sidecar)

    def _tidy(self, worker: _Worker) -> None:
        """Remove the unfinished files of a killed process."""
        if worker.at is not None:
            _, files = worker.at
            remove_unfinished(files.mask.parent / files.sidecar.stem)


def end_of(process: BaseProcess) -> str:
    """How a process ended, as the end of a sentence."""
    code = process.exitcode or 0
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return (
        f"was killed ({name}), as happens when memory runs out"
        if name == "SIGKILL"
        else f"died of {name}"
    )


def _on_its_device(opening: Opening, number: int) -> Opening:
    device = resolve_device(opening.device)
    if device.type != "cuda" or device.index is not None:
        return opening
    return dataclasses.replace(opening, device=f"cuda:{number % torch.cuda.device_count()}")


@contextlib.contextmanager
def no_interrupt() -> Iterator[None]:
    """Processes started in here never receive Ctrl-C, which a terminal sends to all of them: this
    process ends the others.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ToParent(logging.handlers.QueueHandler):
    """Passes log records to the parent, which shows them like its own."""

    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue.send(record)  # type: ignore[attr-defined]


def _work(pipe: Connection, folder: str, opening: Opening, threads: int | None, level: int) -> None:
    """The main function of a process: opens the network, then predicts cases until the pipe is
    closed. `folder`: base of relative paths.
    """
    os.chdir(folder)
    logging.basicConfig(level=level, handlers=[ToParent(pipe)])  # type: ignore[arg-type]
    logging.captureWarnings(True)
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        signal.signal(
            signal.SIGTERM, signal.default_int_handler
        )  # so that an unfinished case is tidied up
        try:
            import_monai_alone(opening.typed)
            writer = opening.writer()
        except SeaPeftError as error:
            pipe.send(error)
            return
        except Exception as error:
            pipe.send(
                DeviceError(
                    f"A process of --jobs cannot open the adapter ({reason(error)}); use fewer."
                )
            )
            return
        pipe.send(_READY)

        def told(done: float, of: int) -> None:
            pipe.send(done / of)

        while True:
            case, files = pipe.recv()
            pipe.send(
                predict_case(writer, case, files, functools.partial(writer.ready, case), told)
            )
    except (KeyboardInterrupt, EOFError, ConnectionError):
        return  # nobody waits for it any more
