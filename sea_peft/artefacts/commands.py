"""The commands that a finished run suggests: complete, so that they run as printed, and without
paths where others read them.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it would bring torch
    from sea_peft.backbones.typed import Typed

# option of a run → its flag, in the order in which they are printed
_Options = Mapping[str, Any]  # of the command line, by name


_FLAGS = {
    "backbone": "--backbone",
    "weights": "--weights",
    "labels": "--label",
    "add_labels": "--add-label",
    "max_forget": "--max-forget",
    "channels": "--channel",
    "shots": "--shots",
    "split": "--split",
    "test": "--test",
    "budget": "--budget",
    "profile": "--profile",
    "policy": "--policy",
    "steps": "--steps",
    "cycles": "--cycles",
    "patch": "--patch",
    "spacing": "--spacing",
    "seed": "--seed",
    "time_limit": "--time-limit",
    "device": "--device",
    "runs": "--runs",
    "from_run": "--from",
}
_DEFAULTS = {"profile": "default", "policy": "sea", "seed": 0, "device": "auto", "runs": "runs"}
_SEVERAL = ("labels", "add_labels", "channels")


def to_resume(run: Path, typed: Typed) -> str:
    """The command that resumes a run, with the words that its backbone was typed with."""
    words = ["seapeft", "adapt", "--resume", str(run)]
    for option, word in (("backbone", typed.backbone), ("weights", typed.weights)):
        words += [] if word is None else [_FLAGS[option], word]
    return shlex.join(words)


@dataclasses.dataclass(frozen=True)
class Commands:
    """The commands to continue from a run.

    Attributes:
        options: the run's options that differ from the defaults, as the user typed them; None if
            unknown.
        run: the run folder, quoted.
        built_from: the flag that verbs need to build the backbone again, or nothing.
    """

    options: _Options | None = None
    run: str = "RUN"
    built_from: str = ""

    @classmethod
    def of(cls, typed: _Options, run: str | None = None, code: str | None = None) -> Commands:
        """The commands for a run with these options (`config.json: typed`).

        `run`: its folder, for the user's own terminal; None for a report, which carries no paths.
        `code`: the `module:factory` that was typed in this very command. A factory named only in a
        file is never put into a command to paste.
        """
        options = {k: v for k, v in typed.items() if _is_given(k, v)}
        if ":" in str(options.get("backbone")) and options["backbone"] != code:
            options["backbone"] = "MODULE:FACTORY"
        if run is None:
            options = {key: _named(key, value) for key, value in options.items() if key != "runs"}
        backbone, weights = str(options.get("backbone", "")), str(options.get("weights", ""))
        needed = ["--backbone", backbone] if ":" in backbone else []
        if "/" in weights or PurePath(weights).suffix != "" or weights == "WEIGHTS":
            needed += ["--weights", weights]
        return cls(
            options,
            "RUN" if run is None else shlex.quote(run),
            "".join(f" {shlex.quote(w)}" for w in needed),
        )

    def adapt(self, **changes: Any) -> str:
        """The command for the same run with these options changed."""
        if self.options is None:
            words = ["seapeft", "adapt", "…"]
            options: _Options = {}
        else:
            options = self.options
            words = ["seapeft", "adapt", *([str(options["data"])] if "data" in options else [])]
        for name, flag in _FLAGS.items():
            value = changes.get(name, options.get(name))
            if value is None:
                continue
            parts = [value] if isinstance(value, (str, int, float)) else list(value)
            for text in map(str, parts) if name in _SEVERAL else [",".join(map(_plain, parts))]:
                words += [flag, f"{text}s" if name == "time_limit" else text]
        return " ".join(word if word == "…" else shlex.quote(word) for word in words)

    @property
    def inspect(self) -> str:
        return f"seapeft inspect {self.run}"

    @property
    def report(self) -> str:
        return f"seapeft report {self.run}"

    @property
    def pictures(self) -> str:
        return f"seapeft report {self.run} --images{self.built_from}"

    def predict(self, use: str | None = None) -> str:
        """`use`: the network, if not the recommended one."""
        return f"seapeft predict {self.run} SCANS --out masks{self.built_from}" + (
            f" --use {use}" if use else ""
        )

    @property
    def evaluate(self) -> str:
        return f"seapeft evaluate {self.run} DATA{self.built_from}"


def _is_given(name: str, value: object) -> bool:
    known = name in _FLAGS or name == "data"
    return (
        known and value is not None and value not in ([], (), "") and value != _DEFAULTS.get(name)
    )


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _named(option: str, value: object) -> object:
    """The option's value without any paths in it."""
    if option == "data":
        return value if str(value).startswith("phantom:") else "DATA"
    if option == "split":
        return "FILE"
    if option == "from_run":
        return "EARLIER_RUN"
    if option in ("weights", "profile") and (
        PurePath(str(value)).suffix or "/" in str(value) or "\\" in str(value)
    ):
        return option.upper()
    return value
