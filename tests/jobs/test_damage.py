"""Disks that fill up and files that were damaged: one sentence with its exit code, nothing lost
that was written, and a run that goes on.
"""

from __future__ import annotations

import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from disks import Disk
from toys import install
from traces import without_times

from sea_peft.artefacts.trace import read_trace
from sea_peft.errors import DiskError, SeaPeftError, UsageError
from sea_peft.jobs.adapt import adapt, resume
from sea_peft.jobs.options import AdaptOptions
from sea_peft.loop import events

AT_A_DISK = (
    r"Cannot write .*{}: the disk is full: .*; what the run has written is kept, and `seapeft adapt"
    r" --resume .*` goes on"
)


@pytest.fixture(autouse=True)
def installed(weights: Path, own_home: None) -> None:
    """The weights are known by the name that a run has for them, so that it is resumed without
    them being typed again.
    """
    install(weights)


def options(toy: Path, weights: Path, out: Path) -> AdaptOptions:
    """The cheapest run that has two arms, audits and a refit."""
    return AdaptOptions(
        data=str(toy),
        weights=str(weights),
        shots=3,
        budget="4%",
        policy="affine",
        steps=6,
        cycles=1,
        mlflow=False,
        out=out,
    )


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def ends_like(folder: Path, whole: Path) -> bool:
    names = ("adapter_config.json", "adapter_model.safetensors")
    traces = [without_times(read_trace(f / "trace.jsonl")) for f in (folder, whole)]
    return traces[0] == traces[1] and all(
        (folder / "adapter" / n).read_bytes() == (whole / "adapter" / n).read_bytes() for n in names
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, toy: Path, weights: Path) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    adapt(options(toy, weights, folder))
    return folder


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory, toy: Path, weights: Path) -> Path:
    """A run that was ended while it scored the test cases."""
    folder = tmp_path_factory.mktemp("runs") / "broken-off"

    def stop(event: events.Event) -> None:
        if isinstance(event, events.Scored):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(options(toy, weights, folder), stop)
    return folder


def test_a_disk_that_fills_up_at_every_turn_loses_nothing(
    disk: Disk, toy: Path, weights: Path, whole: Path
) -> None:
    folder = disk.path / "run"
    disk.resize("4k")
    with pytest.raises(
        DiskError, match=r"Cannot write .*config\.json: the disk is full: free some space"
    ):
        adapt(options(toy, weights, folder))
    shutil.rmtree(folder)
    disk.resize("8k")
    with pytest.raises(DiskError, match=AT_A_DISK.format(r"trace\.jsonl")):
        adapt(options(toy, weights, folder))
    disk.resize("48k")
    with pytest.raises(DiskError, match=AT_A_DISK.format(r"state\.pt")):
        resume(folder)
    disk.resize("8m")
    for free, lacking in ((0, r"adapter_config\.json"), (8192, r"adapter_model\.safetensors")):

        def fill_up(event: events.Event, but: int = free) -> None:
            if (
                isinstance(event, events.TrainingStep)
                and event.phase == "test"
                and event.step == event.of
            ):
                disk.fill(but)

        with pytest.raises(DiskError, match=AT_A_DISK.format(lacking)):
            resume(folder, fill_up)
        assert not (folder / "adapter").exists()
        disk.free()
    resume(folder)
    assert ends_like(folder, whole)
    assert {p.name for p in folder.rglob("*")} == {p.name for p in whole.rglob("*")}, (
        "nothing half-written is left"
    )


def test_a_folder_that_may_not_be_written_is_one_sentence(
    tmp_path: Path, toy: Path, weights: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    if os.access(closed, os.W_OK):
        pytest.skip("permissions do not bind this user")
    with pytest.raises(DiskError, match=r"permission is denied: make the folder writable"):
        adapt(options(toy, weights, closed / "run"))


def flipped(path: Path) -> None:
    """One bit in the middle of the largest tensor; between tensors the file is padded, where a
    bit says nothing.
    """
    with zipfile.ZipFile(path) as stored:
        largest = max(stored.infolist(), key=lambda record: record.file_size)
    data = bytearray(path.read_bytes())
    name, extra = struct.unpack_from("<HH", data, largest.header_offset + 26)
    data[largest.header_offset + 30 + name + extra + largest.file_size // 2] ^= 1
    path.write_bytes(data)


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)

    return damage


def reshape(tensors: dict[str, Any]) -> None:
    tensors[min(tensors)] = torch.zeros(3, 3, 3)


CHECKPOINT = (
    r"The checkpoint .*state\.pt is damaged or was made by another sea_peft \(.+\) and cannot be"
    r" resumed from: start a new run"
)


@pytest.mark.parametrize(
    ("name", "damage", "code", "sentence"),
    [
        ("checkpoint/state.pt", lambda p: os.truncate(p, p.stat().st_size // 2), 5, CHECKPOINT),
        ("checkpoint/state.pt", lambda p: os.truncate(p, 0), 5, CHECKPOINT),
        ("checkpoint/state.pt", lambda p: p.write_bytes(bytes(range(256))), 5, CHECKPOINT),
        ("checkpoint/state.pt", flipped, 5, CHECKPOINT),
        ("checkpoint/state.pt", changed(lambda state: state.pop("events")), 5, CHECKPOINT),
        (
            "checkpoint/state.pt",
            changed(lambda state: state["controller"].pop("optimizer")),
            5,
            CHECKPOINT,
        ),
        (
            "checkpoint/state.pt",
            changed(lambda state: reshape(state["controller"]["adapters"])),
            5,
            CHECKPOINT,
        ),
        (
            "checkpoint/state.pt",
            changed(
                lambda state: state["controller"]["optimizer"].update(
                    {"nobody/up": {"exp_avg": torch.zeros(3)}}
                )
            ),
            5,
            CHECKPOINT,
        ),
        (
            "trace.jsonl",
            lambda p: p.write_bytes(p.read_bytes().replace(b'{"event": "searched"', b"{", 1)),
            2,
            "line 2: it is not JSON",
        ),
        (
            "trace.jsonl",
            lambda p: p.write_bytes(p.read_bytes().splitlines(keepends=True)[0]),
            2,
            "the trace was shortened",
        ),
        ("config.json", lambda p: os.truncate(p, 100), 2, r"config\.json: it is not JSON"),
        (
            "config.json",
            lambda p: p.write_text("{}"),
            2,
            r"config\.json: it is not as an older sea_peft wrote it .*; the run folder is damaged",
        ),
    ],
    ids=[
        "half",
        "empty",
        "garbage",
        "flipped bit",
        "lacks a field",
        "lacks the optimizer",
        "unit's shape",
        "nobody's moment",
        "trace line",
        "trace end",
        "config half",
        "config empty",
    ],
)
def test_what_is_damaged_is_refused_and_left_as_it_is(
    tmp_path: Path,
    broken_off: Path,
    name: str,
    damage: Callable[[Path], object],
    code: int,
    sentence: str,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(broken_off, folder)
    damage(folder / name)
    before = bytes_of(folder)
    with pytest.raises(SeaPeftError, match=sentence) as raised:
        resume(folder)
    assert raised.value.exit_code == code
    after = bytes_of(folder)
    kept = after.pop("trace.jsonl"), before.pop("trace.jsonl")
    assert after == before
    assert kept[1].startswith(kept[0]), "at most what the checkpoint did not know of is gone"
    assert (
        len(read_trace(folder / "trace.jsonl")) >= 1
        if name != "trace.jsonl"
        else kept[0] == kept[1]
    )


def test_a_trace_that_ends_in_half_a_line_is_gone_on_with(
    tmp_path: Path, broken_off: Path, whole: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(broken_off, folder)
    with (folder / "trace.jsonl").open("ab") as file:
        file.write(b'{"event": "sco')
    resume(folder)
    assert ends_like(folder, whole)


def test_two_processes_are_not_at_one_run(tmp_path: Path, broken_off: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(broken_off, folder)

    def once_more(event: events.Event) -> None:
        with pytest.raises(
            UsageError, match=r"Another process is writing .*trace\.jsonl: let it end"
        ):
            resume(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resume(folder, once_more)


def test_what_is_no_run_cannot_be_resumed(tmp_path: Path, whole: Path) -> None:
    for folder, sentence in (
        (tmp_path / "none", "There is no run folder"),
        (tmp_path, r"neither config\.json nor trace\.jsonl"),
        (whole, "is finished: there is nothing to resume"),
    ):
        with pytest.raises(UsageError, match=sentence):
            resume(folder)
