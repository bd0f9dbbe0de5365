"""Reports the progress of a job."""

from collections.abc import Callable

Progress = Callable[[float, int], None]
"""Told (done, of): cases or looks; a case at hand counts by its windows."""


def unwatched(done: float, of: int) -> None:
    """Nobody watches."""


def within(progress: Progress, done: int, of: int) -> Progress:
    """A callback that reports to `progress` how far the current case is, after `done` of `of`
    cases.
    """
    return lambda windows, all_windows: progress(done + 0.999 * windows / all_windows, of)
