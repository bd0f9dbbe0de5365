from __future__ import annotations

import datetime
import errno
import json
import os

import pytest
from example_run import make_config, make_result

from sea_peft import atomic
from sea_peft.artefacts.result import Result
from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.errors import DiskError, UsageError

DAY = datetime.date(2026, 11, 21)


def test_names_count_up_and_no_folder_is_used_twice(tmp_path):
    made = [
        RunFolder.create(tmp_path / "runs", "low-dose ct/ü", today=DAY).path.name for _ in range(3)
    ]
    assert made == [f"2026-11-21-low-dose-ct-{n}" for n in (1, 2, 3)]


def test_create_at_takes_an_empty_folder_and_nothing_else(tmp_path):
    folder = RunFolder.create_at(tmp_path / "a" / "b")
    assert RunFolder.create_at(folder.path).path == folder.path
    folder.write_config(make_config())
    with pytest.raises(UsageError, match="not an empty folder"):
        RunFolder.create_at(folder.path)
    with pytest.raises(UsageError, match="not an empty folder"):
        RunFolder.create_at(folder.config)


def test_open_refuses_what_is_not_a_run(tmp_path):
    with pytest.raises(UsageError, match="There is no run folder"):
        RunFolder.open(tmp_path / "none")
    with pytest.raises(UsageError, match=r"neither config\.json nor trace\.jsonl"):
        RunFolder.open(tmp_path)


def test_an_unwritable_place_is_a_device_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"Cannot write .*file"):
        RunFolder.create(tmp_path / "file", "phantom")


def test_config_and_result_come_back_as_written(tmp_path, events):
    folder = RunFolder.create(tmp_path, "phantom")
    result = make_result(events, mlflow_run_id="0" * 32)
    config = make_config(labels={"Milz ü": [1]})
    folder.write_config(config)
    folder.write_result(result)
    assert RunFolder.open(folder.path).read_config() == config
    assert (
        json.loads(folder.result.read_text())["run"] == "."
    )  # a folder that was moved says nothing wrong
    assert folder.read_result() == result.model_copy(update={"run": str(folder.path)})
    assert folder.config.stat().st_mode & 0o077 == 0


def test_result_has_exactly_the_keys_of_the_command_line_page(events):
    document = json.loads(make_result(events).model_dump_json())
    assert list(document) == [
        *(
            "status",
            "shots",
            "support_cases",
            "audit_cases",
            "test_cases",
            "budget",
            "units",
            "dice",
        ),
        *(
            "test",
            "held_out",
            "recommended",
            "keep",
            "known",
            "sensitivity",
            "specificity",
            "seconds",
            "audit",
            "peak_memory_bytes",
        ),
        *("device", "seed", "policy", "run", "mlflow_run_id"),
    ]
    assert set(document["budget"]) == {"limit", "used", "head", "fraction", "backbone_parameters"}
    assert set(document["units"]) == {"offered", "active"}
    assert set(document["dice"]) == {"unadapted", "head_only", "adapted", "per_label", "per_case"}
    assert set(document["seconds"]) == {"total", "train", "audit", "allocate", "data", "test"}
    assert set(document["audit"]) == {"patches", "naive_patches"}


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("shots", "5", "shots"),
        ("surprise", 1, "surprise"),
        ("budget", {"limit": 1}, r"budget\.used"),
    ],
)
def test_result_is_read_strictly(tmp_path, events, field, value, sentence):
    folder = RunFolder.create(tmp_path, "phantom")
    folder.result.write_text(json.dumps({**make_result(events).model_dump(), field: value}))
    with pytest.raises(UsageError, match=sentence):
        folder.read_result()


def test_an_unfinished_run_says_how_to_go_on(tmp_path):
    with pytest.raises(UsageError, match="resume it"):
        RunFolder.create(tmp_path, "phantom").read_result()


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_config_is_one_sentence(tmp_path, text):
    folder = RunFolder.create(tmp_path, "phantom")
    folder.config.write_text(text)
    with pytest.raises(UsageError, match="damaged"):
        folder.read_config()


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "report.md"
    atomic.write_text(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with pytest.raises(DiskError, match=r"Cannot write .*report\.md: the disk is full"):
            atomic.write_text(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["report.md"]
    assert path.read_text() == "old"


def test_a_page_that_cannot_be_written_advises_no_option_that_report_lacks(tmp_path, monkeypatch):
    def closed(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", closed)
    folder = RunFolder(tmp_path)
    for write in (lambda: folder.write_page("<html>"), lambda: folder.write_explanation({})):
        with pytest.raises(DiskError, match="read-only: have it written elsewhere") as raised:
            write()
        assert "--out" not in str(raised.value)


def test_negative_counts_are_no_result(events):
    with pytest.raises(ValueError, match="shots"):
        Result.model_validate({**make_result(events).model_dump(), "shots": -1})
