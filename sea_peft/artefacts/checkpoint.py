"""The checkpoint of a run in progress: tensors and JSON types in one file, replaced whole, read
without unpickling code.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sea_peft import atomic, documents
from sea_peft.errors import DiskError, WeightsError, first_line

_NAME = "state.pt"


class RunState(BaseModel):
    """The state of a run.

    Attributes:
        fold: number of the leave-one-out fold being fitted, from 0; equal to their number for the
            run itself.
        arm: the arm being trained.
        events: number of events in the trace.
        baseline: hard Dice of each audit patch at the end of the head's own search; None until
            then.
        held_out: arm → case → label → Dice of the scans held out while searching.
        confidence: arm → case → label → the arm's confidence in its masks of these.
        kept: case → kept label → agreement of the adapted network's masks with the unadapted one's.
        parts: case → label → rule for connected parts → Dice that it adds.
        head_only: tensors of the head fitted alone; None until then.
        controller: state of the arm's controller; None before the arm's first checkpoint.
        seconds: spent on `data` and `test`, and on everything `before` this process.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    fold: int = Field(ge=0)
    arm: Literal["head_only", "policy"]
    events: int = Field(ge=0)
    baseline: list[float] | None
    held_out: dict[str, dict[str, dict[str, float]]]
    confidence: dict[str, dict[str, dict[str, float]]]
    kept: dict[str, dict[str, float]] = Field(default_factory=dict)
    parts: dict[str, dict[str, dict[str, float]]] = Field(default_factory=dict)
    head_only: dict[str, Any] | None
    controller: dict[str, object] | None
    seconds: dict[str, float]

    @classmethod
    def at_the_start(cls) -> RunState:
        """The state of a run that has done nothing yet."""
        seconds = {"data": 0.0, "test": 0.0, "before": 0.0}
        return cls(
            fold=0,
            arm="head_only",
            events=0,
            baseline=None,
            held_out={},
            confidence={},
            head_only=None,
            controller=None,
            seconds=seconds,
        )


def save_checkpoint(folder: Path, checkpoint: RunState) -> None:
    """Replace the checkpoint in `folder`. Raises DiskError if it cannot be written; the previous
    one is then kept.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(dict(checkpoint), buffer)
    with atomic.writing(folder):
        folder.mkdir(exist_ok=True)
    atomic.write_bytes(folder / _NAME, buffer.getvalue())


def load_checkpoint(folder: Path) -> RunState | None:
    """The checkpoint in `folder`; None if the run ended before the first one.

    Raises WeightsError if the file is damaged; the rest of the run folder stays unchanged.
    """
    import torch

    path = folder / _NAME
    if not path.exists():
        return None
    with belonging(folder):
        with zipfile.ZipFile(
            path
        ) as archive:  # torch does not check the checksums of its own files
            # torch never compresses; a compressed file could expand to a thousand times its size
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                raise ValueError("it is compressed")
            if archive.testzip() is not None:
                raise ValueError("a checksum is wrong")
        return RunState.model_validate(torch.load(path, map_location="cpu", weights_only=True))


@contextlib.contextmanager
def belonging(folder: Path) -> Iterator[None]:
    """Turn any error from reading the checkpoint in `folder`, or restoring its state, into a
    WeightsError of one sentence.
    """
    try:
        yield
    except Exception as error:  # torch raises a dozen unrelated types for a damaged file
        why = (
            documents.complaint(error) if isinstance(error, ValidationError) else first_line(error)
        )
        raise WeightsError(
            f"The checkpoint {folder / _NAME} is damaged or was made by another sea_peft ({why})"
            " and cannot be resumed from: start a new run (the trace up to there is kept)."
        ) from error


def remove_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a finished run. Raises DiskError if its files cannot be removed."""
    try:
        (folder / _NAME).unlink(missing_ok=True)
        if folder.is_dir():
            atomic.remove_leftovers(folder)
            folder.rmdir()
    except OSError as error:
        raise DiskError(
            f"The checkpoint in {folder} cannot be removed ({error.strerror}); remove it by hand."
        ) from error
