"""Weights and their card are both there or neither is, whatever the disk does."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
from disks import FILLER, Disk
from foreign import network

from sea_peft.backbones import architecture
from sea_peft.backbones.typed import Typed
from sea_peft.backbones.weights import load_typed
from sea_peft.errors import DiskError
from sea_peft.jobs.weights_file import save_weights

KWARGS = dict(architecture("segresnet").small)
CARD = {
    "name": "toy",
    "architecture": "segresnet",
    "kwargs": KWARGS,
    "labels": ["background", "a", "b"],
    "channels": ["CT"],
    "recipe": {},
    "patch": [16, 16, 16],
    "licence": "CC0-1.0",
}


def test_tensors_that_do_not_fit_are_one_sentence_and_leave_nothing(tmp_path: Path) -> None:
    of = network("segresnet", **KWARGS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(
            DiskError,
            match=(
                r"Cannot write .*toy\.safetensors: the file would be larger .*, or have it written"
                r" elsewhere\.$"
            ),
        ):
            save_weights(tmp_path / "new", of, CARD, half=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "new").iterdir())
    assert (
        load_typed(
            Typed(weights=str(save_weights(tmp_path / "new", of, CARD, half=False)))
        ).card.name
        == "toy"
    )


def test_the_card_goes_where_its_tensors_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def full(source: str | Path, target: str | Path) -> None:
        if Path(target).suffix == ".safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        DiskError, match=r"Cannot write .*toy\.safetensors: the disk is full: free some space there"
    ):
        save_weights(tmp_path, network("segresnet", **KWARGS), CARD, half=False)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_really_full_keeps_neither(disk: Disk) -> None:
    disk.resize("1m")
    disk.fill(but=8192)
    with pytest.raises(DiskError, match=r"toy\.safetensors: the disk is full"):
        save_weights(disk.path, network("segresnet", **KWARGS), CARD, half=False)
    assert [path.name for path in disk.path.iterdir()] == [FILLER]
    disk.free()
    assert save_weights(disk.path, network("segresnet", **KWARGS), CARD, half=False).is_file()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        DiskError, match="a part of that path is a file, not a folder: have it written elsewhere"
    ):
        save_weights(
            tmp_path / "file" / "weights", network("segresnet", **KWARGS), CARD, half=False
        )
