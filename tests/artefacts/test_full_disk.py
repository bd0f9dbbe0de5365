"""Files on a disk that is really full: one sentence, what lay there is whole, and nothing
half-written is left.
"""

from __future__ import annotations

import resource

import pytest
import torch
from disks import FILLER, Disk
from example_run import make_config

from sea_peft.artefacts.checkpoint import RunState, load_checkpoint, save_checkpoint
from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.artefacts.trace import TraceWriter, read_trace
from sea_peft.data.planes import Planes
from sea_peft.errors import DiskError
from sea_peft.loop.events import RunFinished


def big(events):
    """An event of many kilobytes."""
    return RunFinished("done", [events[0].units[0].unit] * 600, 0, "")


FULL = "the disk is full: free some space"


def test_a_trace_takes_back_what_did_not_fit_and_goes_on(disk: Disk, events):
    path = disk.path / "trace.jsonl"
    with TraceWriter(path) as trace:
        trace(events[0])
        disk.fill(but=8192)
        with pytest.raises(DiskError, match=FULL):
            trace(big(events))
        assert read_trace(path) == events[:1]
        assert path.read_bytes().endswith(b"\n"), "no half line is left"
        disk.free()
        trace(big(events))
    assert read_trace(path) == [events[0], big(events)]


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(disk: Disk):
    folder = disk.path / "checkpoint"
    first = RunState.at_the_start()
    save_checkpoint(folder, first)
    disk.fill(but=8192)
    with pytest.raises(DiskError, match=rf"state\.pt: {FULL}"):
        save_checkpoint(
            folder, first.model_copy(update={"head_only": {"weight": torch.zeros(5000)}})
        )
    assert load_checkpoint(folder) == first
    assert [path.name for path in folder.iterdir()] == ["state.pt"]


def test_a_config_that_does_not_fit_is_not_half_there(disk: Disk):
    folder = RunFolder.create_at(disk.path / "run")
    disk.fill()
    with pytest.raises(DiskError, match=rf"config\.json: {FULL}"):
        folder.write_config(make_config())
    assert not list(folder.path.iterdir())
    assert [path.name for path in disk.path.iterdir() if path.name != FILLER] == ["run"]


def test_outputs_that_do_not_fit_are_one_sentence(disk: Disk):
    disk.fill(but=4096)
    planes = Planes((2, 8, 20, 20), limit=0, folder=disk.path)
    with pytest.raises(
        DiskError, match=r"cannot be kept on disk \(No space left on device\); free disk space"
    ):
        planes.append(torch.zeros(2, 8, 20, 20))
    with pytest.raises(DiskError, match=r"cannot be kept on disk \(No such file or directory\)"):
        Planes((2, 8, 20, 20), limit=0, folder=disk.path / "none")


def test_a_limit_on_the_size_of_files_is_said_as_such(tmp_path, events):
    """Needs no mount: the same path through the code as a full disk, on every machine."""
    path = tmp_path / "trace.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with TraceWriter(path) as trace:
        trace(events[0])
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, hard))
        try:
            with pytest.raises(DiskError, match=r"larger than is allowed here: raise the limit"):
                trace(big(events))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes().endswith(b"\n")
        trace(big(events))
    assert read_trace(path) == [events[0], big(events)]
