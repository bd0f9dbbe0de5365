"""Errors a user can act on: one sentence each, with the exit code that `seapeft` ends with."""

import contextlib
from collections.abc import Callable, Iterator


class SeaPeftError(Exception):
    """Base of every expected error. The message is one sentence that says what to do.

    `settings`: the settings to change, by their names in the Python API (fields of `AdaptOptions`
    and the like). The command line adds the flags.
    """

    exit_code = 1

    def __init__(self, message: str = "", *settings: str) -> None:
        super().__init__(message)
        self.settings = settings


class UsageError(SeaPeftError):
    """The command line or an argument makes no sense."""

    exit_code = 2


class DataError(SeaPeftError):
    """The data set, or one case of it, is refused."""

    exit_code = 3


class BudgetError(SeaPeftError):
    """Nothing on offer fits the parameter budget."""

    exit_code = 4


class WeightsError(SeaPeftError):
    """Pretrained weights or an adapter folder are refused."""

    exit_code = 5


class DeviceError(SeaPeftError):
    """The device is missing, or its memory or the machine's ran out."""

    exit_code = 6


class LostProcessError(SeaPeftError):
    """Another process of the same run has ended."""

    exit_code = 6


class DiskError(SeaPeftError):
    """A file or folder cannot be written, or the disk is full."""

    exit_code = 6


class StoreError(SeaPeftError):
    """MLflow's store cannot be written."""

    exit_code = 6


class PortError(SeaPeftError):
    """The UI cannot listen where it was asked to."""

    exit_code = 6


class DivergedError(SeaPeftError):
    """Training led to a loss that is not finite."""

    exit_code = 6


class QualityGateError(SeaPeftError):
    """The measured Dice is below what was asked for."""

    exit_code = 7


class PartialFailure(SeaPeftError):
    """Some cases were predicted and some failed."""

    exit_code = 8


class OutputError(PartialFailure):
    """A network's output for a case is not finite, or too large to be used."""


@contextlib.contextmanager
def refusing(kind: type[SeaPeftError], sentence: Callable[[Exception], str]) -> Iterator[None]:
    """Turn any error in here into one of this kind, except those that already have their sentence.

    Damaged bytes end a parser, and senseless settings a constructor, in ways that no list of
    exception types covers.
    """
    try:
        yield
    except SeaPeftError:
        raise
    except Exception as error:
        raise kind(sentence(error)) from error


def foreseen(error: Exception) -> SeaPeftError:
    """Any error as one that has its sentence and exit code."""
    if isinstance(error, SeaPeftError):
        return error
    if _out_of_memory(error):
        return DeviceError("Memory ran out; use a smaller --patch or a machine with more.")
    said = (str(error).strip().splitlines() or ["no message"])[0]
    return SeaPeftError(
        f"Internal error: {type(error).__name__}: {said} (--debug shows the traceback)"
    )


def _out_of_memory(error: Exception) -> bool:
    """Python's, a device's, or the CPU's by torch, which has no class of its own for it."""
    # errors of verbs that have loaded it pay nothing; the others come here with an internal error
    # alone
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(
        error
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, as part of a sentence; its kind if it has none."""
    return next(iter(str(error).strip().splitlines()), "").rstrip("?.: ") or type(error).__name__
