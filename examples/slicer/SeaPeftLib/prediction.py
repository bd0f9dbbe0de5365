"""Runs `seapeft predict` as a program of its own, and puts what it answers into words and numbers.

Nothing of sea_peft and nothing of 3D Slicer is imported. Runs on Python 3.9 and later.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

NOTE = "Research software, not a medical device: a qualified person must check every mask."
_DONE = {
    0: "The mask is done.",
    7: "The mask is done, and should be checked before it is used: see the flags.",
}
_FAILED = {
    1: "seapeft met an error of its own",
    2: "seapeft cannot do this with these settings",
    3: "The scan is refused",
    5: "The adapter or its weights are refused",
    6: "The device, the memory or the disk does not suffice",
    8: "The scan could not be predicted",
    130: "The prediction was interrupted",
}


class CannotStart(Exception):
    """The program cannot be run. The message is one sentence for the user."""


@dataclass(frozen=True)
class Label:
    """One label of the mask.

    `expected`: the Dice to expect and its 95% interval; None for a label that the mask lacks, or
    where none was asked for.
    """

    name: str
    millilitres: float
    expected: tuple[float, float, float] | None

    def cells(self) -> tuple[str, str, str, str]:
        """The row of a table: name, expected Dice, its interval, volume."""
        if self.expected is None:
            return self.name, "–", "–", f"{self.millilitres:.1f} ml"
        dice, low, high = self.expected
        return self.name, f"{dice:.2f}", f"{low:.2f} to {high:.2f}", f"{self.millilitres:.1f} ml"


@dataclass(frozen=True)
class Outcome:
    """What became of a prediction.

    Attributes:
        sentence: for the user.
        segmentation: the `.seg.nrrd`; None where there is no mask.
        labels: in the order of the adapter's.
        flags: reasons to check the mask before it is used.
        warnings: what had to be assumed about the scan.
    """

    sentence: str
    segmentation: Path | None = None
    labels: tuple[Label, ...] = ()
    flags: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def remarks(self) -> list[str]:
        """Flags and warnings, each with what it is in front."""
        return [f"Flag: {flag}" for flag in self.flags] + [
            f"Warning: {warning}" for warning in self.warnings
        ]


def command(
    program: str,
    run: str,
    scan: str,
    out: str,
    *,
    weights: str = "",
    device: str = "auto",
    qc: bool = True,
) -> list[str]:
    """The command line of one prediction.

    Args:
        program: path of `seapeft`.
        run: a run folder, or an adapter folder.
        scan: the file to predict.
        out: the folder for the results.
        weights: a name or a file, where the adapter's are not installed under their name.
        device: as for `seapeft predict`.
        qc: whether to ask for the expected Dice and flags.
    """
    asked = [
        program,
        "predict",
        run,
        scan,
        "--out",
        out,
        "--seg-nrrd",
        "--json",
        "--device",
        device,
    ]
    return asked + (["--weights", weights] if weights else []) + (["--qc"] if qc else [])


def new_folder(parent: str) -> str:
    """Make a folder for one prediction, called by the time. Raises CannotStart."""
    name = time.strftime("prediction-%Y%m%d-%H%M%S")
    number = 1
    while True:
        folder = Path(parent) / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise CannotStart(
                f"No folder for the results can be made in {parent} ({error.strerror}); choose"
                " another."
            ) from error
        else:
            return str(folder)


class Prediction:
    """A prediction that is under way in a process of its own.

    Args:
        asked: of `command`.
        work: an existing folder for what the program prints.
        environment: of the program; None for this process's. Slicer's own would lead an outside
            Python astray.

    Raises:
        CannotStart: the program is missing, or is none.
    """

    def __init__(
        self, asked: Sequence[str], work: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self._out = Path(asked[asked.index("--out") + 1])
        self._printed, self._noted = Path(work, "stdout.json"), Path(work, "stderr.txt")
        self._cancelled = False
        window = getattr(subprocess, "CREATE_NO_WINDOW", 0)
        try:
            # to files, since a pipe that nobody empties stops the program
            with self._printed.open("wb") as printed, self._noted.open("wb") as noted:
                self._process = subprocess.Popen(
                    list(asked), stdin=subprocess.DEVNULL, stdout=printed, stderr=noted,
                    env=None if environment is None else dict(environment), creationflags=window,
                )  # fmt: skip
        except OSError as error:
            raise CannotStart(
                f"{asked[0]} cannot be run ({error.strerror}); give the path of the program"
                " `seapeft`."
            ) from error

    def running(self) -> bool:
        """Whether it is still at work."""
        return self._process.poll() is None

    def progress(self) -> str:
        """The last line that it said; empty at first."""
        return _last_line(_text(self._noted))

    def cancel(self) -> None:
        """Ask the program to end, which takes a moment."""
        self._cancelled = True
        self._process.terminate()

    def outcome(self) -> Outcome:
        """What became of it. Waits until it has ended."""
        code = self._process.wait()
        if self._cancelled and code not in _DONE:
            return Outcome("The prediction was cancelled.")
        return read_outcome(code, _text(self._printed), _text(self._noted), self._out)


def read_outcome(code: int, printed: str, noted: str, out: Path) -> Outcome:
    """What became of a prediction of one scan.

    Args:
        code: the exit code.
        printed: stdout: the JSON document.
        noted: stderr.
        out: the folder for the results.
    """
    try:
        document = json.loads(printed)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {}
    case = (document.get("cases") or [{}])[0]
    if code not in _DONE:
        return Outcome(
            _failure(code, case.get("error") or document.get("error") or _last_line(noted))
        )
    try:
        expected = (case["qc"] or {}).get("expected_dice", {})
        labels = tuple(
            Label(name, float(volume), tuple(expected[name]) if name in expected else None)
            for name, volume in case["volumes"].items()
        )
        flags, warnings = tuple((case["qc"] or {}).get("flags", ())), tuple(case["warnings"])
        segmentation = out / f"{case['case']}.seg.nrrd"
        network = case["network"]
    except (KeyError, TypeError, ValueError):
        return Outcome(
            "What the program answered is not the answer of `seapeft predict`; check its path."
        )
    if not segmentation.is_file():
        return Outcome(f"The mask is done, but {segmentation} is missing.")
    return Outcome(
        f"{_DONE[code]} It is the {network} network's.", segmentation, labels, flags, warnings
    )


def _failure(code: int, reason: str) -> str:
    if code < 0:
        what = f"seapeft was ended from outside (signal {-code}), often for want of memory"
    else:
        what = f"{_FAILED.get(code, 'seapeft ended without an answer')} (exit code {code})"
    return f"{what}: {reason}" if reason else f"{what}."


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def _last_line(text: str) -> str:
    lines = [line for line in text.split(os.linesep) if line.strip()]
    return lines[-1].strip() if lines else ""
