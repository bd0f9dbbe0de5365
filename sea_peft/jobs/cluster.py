"""Jobs of a cluster, which submitit hands over to SLURM."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sea_peft.errors import LostProcessError, UsageError, first_line, refusing

_MINUTES = 240  # of a job; one that needs more is queued again and continues
CLUSTERS = ("slurm", "local")


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs jobs through submitit.

    Attributes:
        name: `slurm`, or `local`, which runs them here without a scheduler.
        folder: for submitit's own files and the jobs' logs; on a cluster, one that all nodes see.
        jobs: most jobs at a time; None for as many as the cluster allows.
        parameters: of jobs, by submitit's names (`timeout_min`, `mem_gb`, `gpus_per_node`,
            `slurm_partition`, …).
    """

    name: str
    folder: Path
    jobs: int | None = None
    parameters: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in CLUSTERS:
            raise UsageError(
                f"--cluster {self.name} is not known; choose slurm, or local to try it on this"
                " machine."
            )

    def executor(self) -> Any:
        """submitit's executor. Raises UsageError if submitit is not installed, finds no such
        cluster here, or does not know a parameter.
        """
        try:
            import submitit
        except ImportError:
            raise UsageError(
                "--cluster hands jobs over by submitit, which is missing: `pip install submitit`."
            ) from None
        own = {} if self.jobs is None else {"slurm_array_parallelism": self.jobs}
        with refusing(
            UsageError,
            lambda error: f"--cluster {self.name} is refused by submitit: {first_line(error)}.",
        ):
            executor = submitit.AutoExecutor(folder=self.folder / "%j", cluster=self.name)
            executor.update_parameters(
                **{"timeout_min": _MINUTES, "name": "seapeft", **own, **self.parameters}
            )
        return executor

    def results(
        self, work: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
    ) -> Generator[tuple[int, Any], None, None]:
        """Each call `work(*arguments[i])` as a job. Yields `i` and what it returned, or the
        LostProcessError that says how its job ended, in the order in which jobs end. Closing it
        cancels the others.

        `work`: must be safe to repeat. A job that is preempted or runs out of time is queued again.

        Raises:
            UsageError: the jobs cannot be submitted.
        """
        executor = self.executor()
        import submitit

        # jobs are pickles: whoever can write here can run code; submitit may have made the folder
        # already, open to all
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        with (
            refusing(
                UsageError,
                lambda error: f"--cluster {self.name} takes no jobs: {first_line(error)}.",
            ),
            executor.batch(),
        ):
            jobs = [executor.submit(_Repeatable(work), *own) for own in arguments]
        places = {id(job): place for place, job in enumerate(jobs)}
        try:
            for job in submitit.helpers.as_completed(jobs):
                yield places[id(job)], _result(job)
        finally:
            for job in jobs:
                if not job.done():
                    job.cancel()


@dataclass(frozen=True)
class _Repeatable:
    """The function that a job calls; `checkpoint` is what submitit queues again in its place."""

    work: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.work(*arguments)

    def checkpoint(self, *arguments: Any) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self, *arguments)


def _result(job: Any) -> Any:
    try:
        return job.result()
    except Exception as error:  # it was cancelled, killed, or ran out of time too often
        return LostProcessError(
            f"Its job {job.job_id} ended without a word ({first_line(error)}); see"
            f" {job.paths.stderr}."
        )
