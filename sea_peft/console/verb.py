"""The shared parts of all verbs: the flags about output, before or after the verb, and the
handling of errors.
"""

import errno
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer import Option

from sea_peft.console import torchrun
from sea_peft.console.output import Output
from sea_peft.errors import DiskError, SeaPeftError, foreseen

_PANEL = "Output"
_FLAGS: dict[str, object] = {
    "json": Option("--json", help="Exactly one JSON document on stdout.", rich_help_panel=_PANEL),
    "quiet": Option(
        "--quiet", "-q", help="Only warnings and errors beside the result.", rich_help_panel=_PANEL
    ),
    "verbose": Option(
        "--verbose", "-v", help="Also what the libraries have to say.", rich_help_panel=_PANEL
    ),
    "debug": Option("--debug", help="Show the traceback of an error.", rich_help_panel=_PANEL),
}
# the flag for a setting of the library, if it has another name
_TO_TYPE = {
    "labels": "--label",
    "channels": "--channel",
    "rebuild": "`seapeft report RUN --mlflow`",
}
FLAGS = [
    inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option]
    )
    for name, option in _FLAGS.items()
]


class Interrupted(SeaPeftError):
    """Ctrl-C. The message says how to continue."""

    exit_code = 130


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """Make a verb of `function`, whose first parameter is the `Output` that the flags ask for.

    The flags may also stand before the verb: the callback of the root command leaves them in
    `context.obj`.
    """
    signature = inspect.signature(function, eval_str=True)
    context_parameter = inspect.Parameter(
        "context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context
    )

    @functools.wraps(function)
    def wrapper(*, context: typer.Context, **given: Any) -> None:
        flags = {name: given.pop(name) or (context.obj or {}).get(name, False) for name in _FLAGS}
        flags.pop("debug")  # used where the error is caught
        output = Output(**flags)
        try:
            torchrun.refuse_unless(context.command_path == "seapeft adapt", context.command_path)
            with torchrun.silence(), output.at_work():
                function(output, **given)
        except (KeyboardInterrupt, Exception) as error:
            told = Interrupted("Interrupted.") if isinstance(error, KeyboardInterrupt) else error
            if output.json and not output.answered and torchrun.speaks():
                output.result(error_document(told))
            if told is not error:
                raise told from None
            raise

    own = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for p in list(signature.parameters.values())[1:]
    ]
    wrapper.__signature__ = signature.replace(parameters=[*own, context_parameter, *FLAGS])  # type: ignore[attr-defined]
    return wrapper


def outcome(error: Exception) -> tuple[str, int]:
    """The sentence and the exit code of an error."""
    if isinstance(error, typer.TyperException):
        return error.format_message(), error.exit_code
    if (
        isinstance(error, OSError)
        and error.filename is None
        and error.errno in (errno.ENOSPC, errno.EPIPE, errno.EIO)
    ):
        return (
            f"The output cannot be written ({error.strerror}); send it somewhere else.",
            DiskError.exit_code,
        )
    told = foreseen(error)
    typed = [_TO_TYPE.get(name, f"--{name}") for name in told.settings]
    return str(told) + (f" ({', '.join(typed)})" if typed else ""), told.exit_code


def error_document(error: Exception) -> dict[str, object]:
    """The output of --json when there is no result."""
    sentence, code = outcome(error)
    status = "interrupted" if isinstance(error, Interrupted) else "error"
    return {"status": status, "error": sentence, "exit_code": code}
