"""Reads what the parent names, one after another, and says how each ended: a process of its own,
because a reader may die.

Started as a program it takes one folder a line and answers each with a line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

_BLOCKED_S = 200  # of the wall clock: then it waits for what never comes
_READY = b"ready\n"
_MOST_MEMORY = (
    3 << 30
)  # of addresses; what a reader takes beyond ends in MemoryError, and that in a refusal


class Reader:
    """A child that lives as long as it can: it is started again when it died or was stopped."""

    def __init__(self, limit_s: float) -> None:
        self._limit = limit_s
        self._child: subprocess.Popen[bytes] | None = None

    def read(self, folder: Path) -> dict[str, object]:
        """How reading a folder ended: `end` is `read`, `refused`, `error`, `died` or `hung`;
        the sentence; seconds, peak memory.
        """
        child = self._child or self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(os.fsencode(folder) + b"\n")
        child.stdin.flush()
        ready = self._answered(child)
        line = child.stdout.readline() if ready else b""
        if line:
            return json.loads(line)
        end = "died" if ready else "hung"
        self.close()
        return {"end": end, "sentence": "", "seconds": self._limit, "peak": 0}

    def _answered(self, child: subprocess.Popen[bytes]) -> bool:
        """Whether the child says something before its time is up: in seconds of its own,
        because others may be busy on the machine.
        """
        began = _cpu_seconds(child.pid)
        for _ in range(_BLOCKED_S):
            if select.select([child.stdout], [], [], 1.0)[0]:
                return True
            if _cpu_seconds(child.pid) - began > self._limit:
                return False
        return False

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _start(self) -> subprocess.Popen[bytes]:
        self._child = subprocess.Popen(
            [sys.executable, "-W", "error::RuntimeWarning", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._child.stdout is not None
        assert self._child.stdout.readline() == _READY, "the child cannot start"
        return self._child


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _ended(folder: Path) -> tuple[str, str]:
    from sea_peft.data.checks import check
    from sea_peft.data.layouts import open_dataset
    from sea_peft.data.select import select
    from sea_peft.data.volumes import header_grid, read_volume, volume_suffix
    from sea_peft.errors import DataError

    volumes = [path for path in sorted(folder.iterdir()) if volume_suffix(path)]
    try:
        if volumes:
            with contextlib.suppress(DataError):
                header_grid(volumes[0])
            volume = read_volume(volumes[0])
            assert volume.array.ndim == 3
            return (
                "read",
                f"{volume.array.dtype} {volume.shape} {float(volume.array.astype('f8').sum())}",
            )
        checked = check(select(open_dataset(folder)))
        assert all("\n" not in finding.sentence for finding in checked.findings)
        return ("refused" if checked.errors else "read"), " ".join(
            finding.sentence for finding in checked.errors[:1]
        )
    except DataError as error:
        sentence = str(error)
        return ("refused" if sentence and "\n" not in sentence else "error"), sentence
    except BaseException as error:
        return "error", f"{type(error).__name__}: {error}"


def _peak() -> int:
    """Bytes of memory that this program has held at most; 0 where the system does not say.
    (`ru_maxrss` counts the parent's too.)
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next(
        (int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0
    )


def main() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    with contextlib.suppress(
        ImportError
    ):  # what is loaded first does not count as time that a volume takes
        import highdicom  # noqa: F401
    import nibabel  # noqa: F401
    import SimpleITK  # noqa: F401

    import sea_peft.data.checks
    import sea_peft.data.layouts  # noqa: F401

    answers.write(_READY)
    for line in sys.stdin.buffer:
        began = time.monotonic()
        end, sentence = _ended(Path(os.fsdecode(line[:-1])))
        about = {
            "end": end,
            "sentence": sentence,
            "seconds": time.monotonic() - began,
            "peak": _peak(),
        }
        answers.write(json.dumps(about).encode() + b"\n")


if __name__ == "__main__":
    main()
