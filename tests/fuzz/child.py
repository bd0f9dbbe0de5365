"""A process that lives through many jobs, so that what one hostile file does to it (a death, a
hang, all memory, a command) is seen and counted.

`Child` starts this file as a program and hands it jobs, one JSON line each: the name of an action
and its arguments. It is started again when a job kills it or takes too long. New kinds of jobs go
into `ACTIONS`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

# seconds; the machine may be shared, so those of the process are counted where it can say so
LONGEST = 20.0
MOST_MEMORY = 1500 << 20  # bytes beyond what the process had before the job


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one job. `code`: exit code, None where the process died or hung. `memory`:
    bytes at most beyond those before. `commands`: programs that were started and connections that
    were tried.
    """

    code: int | None
    said: str
    seconds: float
    memory: int
    commands: tuple[str, ...] = ()
    end: str = ""

    @property
    def problem(self) -> str | None:
        """What no job may do, in a word; None where it did none of it."""
        if self.code is None:
            return self.end
        if self.code == 1 or "Internal error" in self.said or "Traceback" in self.said:
            return "internal error"
        if self.commands:
            return "command"
        if self.seconds > LONGEST:
            return "hang"
        return "memory" if self.memory > MOST_MEMORY else None


class Child:
    """Runs jobs in a process of its own, one after the other.

    Args:
        folder: the working folder of the jobs.
        patience: seconds to wait for a job, after which the process is ended; much more than
            `LONGEST`, for a machine that is busy.
        environment: variables to set.
    """

    def __init__(self, folder: Path, patience: float = 15 * LONGEST, **environment: str) -> None:
        self._folder, self._patience = folder, patience
        self._environment = os.environ | {"OMP_NUM_THREADS": "1", **environment}
        self._process: subprocess.Popen[bytes] | None = None
        self.deaths = 0

    def __call__(self, action: str, *arguments: object) -> Outcome:
        """Run one job."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([action, *map(str, arguments)]).encode() + b"\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], self._patience)
        line = process.stdout.readline() if ready else b""
        if line:
            answer = json.loads(line)
            return Outcome(**{**answer, "commands": tuple(answer["commands"])})
        self.deaths += 1
        self._process = None
        if not ready:
            process.kill()
        code = process.wait()
        process.stdin.close()
        process.stdout.close()
        return Outcome(
            None,
            "",
            self._patience,
            0,
            end="death" if ready else "hang",
            commands=(f"ended with {code}",),
        )

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            self._process.wait(60)
            self._process.stdout.close()
            self._process = None


# -- in the child ----------------------------------------------------------------------------------

_STARTED: list[str] = []
_WATCHED = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
)


# what Python's own platform module and font lookups ask the system, whatever the file
_HARMLESS = ("uname", "/sbin/ldconfig", "fc-list")


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _WATCHED and not (event == "subprocess.Popen" and arguments[0] in _HARMLESS):
        _STARTED.append(f"{event} {str(arguments)[:200]}")


def command_line(*arguments: str) -> int:
    """A verb, as it is typed."""
    from sea_peft import cli

    return cli.run(arguments)


ACTIONS: dict[str, Callable[..., int]] = {"seapeft": command_line}


def _peak() -> int:
    """Bytes of the largest resident set since `_forget_peak`, or since the start where the
    system does not tell.
    """
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _serve(jobs: IO[str], answers: IO[str]) -> None:
    for line in jobs:
        action, *arguments = json.loads(line)
        said = io.StringIO()
        _STARTED.clear()
        _forget_peak()
        before, began = _peak(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            try:
                code = ACTIONS[action](*arguments)
            except Exception as error:  # what escapes is what a user would see as a traceback
                code, _ = 1, said.write(f"Traceback: {type(error).__name__}: {error}")
        outcome = {
            "code": code,
            "said": said.getvalue()[-2000:],
            "seconds": time.process_time() - began,
            "memory": _peak() - before,
            "commands": list(_STARTED),
            "end": "",
        }
        answers.write(json.dumps(outcome) + "\n")
        answers.flush()


def main(arguments: Sequence[str]) -> None:
    """Answer jobs until there are no more. What libraries print goes to stderr."""
    import torch

    torch.set_num_threads(1)
    from sea_peft import cli  # noqa: F401  what every job needs

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.addaudithook(_watch)
    _serve(sys.stdin, answers)


if __name__ == "__main__":
    main(sys.argv[1:])
