"""What a GPU is asked for runs on a CPU at a small size, and makes its page."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest
import torch

from benchmarks import gpu


@pytest.mark.slow
@pytest.mark.parametrize("part", ["runs", "large", "peers", "forms"])
def test_every_part_runs_at_a_small_size_and_has_its_table(part, tmp_path, monkeypatch):
    if part == "peers":
        pytest.importorskip("peft")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    found, failed = gpu.measure(torch.device("cpu"), gpu.SMALL, [part], tmp_path / "results")
    assert found.name == "gpu-cpu.json"
    assert not failed
    rows = json.loads(found.read_text(encoding="utf-8"))[part]
    assert rows
    assert not any("fails" in row for row in rows)
    page = found.with_suffix(".md").read_text(encoding="utf-8")
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len(table) == 2 + (
        sum(len(row["arms"]) for row in rows) if part == "peers" else len(rows)
    )


@pytest.mark.parametrize("out", [[], ["--out", str(gpu.RESULTS)]])
@pytest.mark.parametrize("size", [[], ["--small"]])
def test_numbers_of_a_cpu_are_never_written_among_the_results(out, size, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", *size, *out])
    assert "give another folder to --out" in capsys.readouterr().err
    assert not list(gpu.RESULTS.glob("gpu-cpu*"))


def test_what_fails_is_a_row_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def rows(*_):
        yield {"backbone": "segresnet", "form": "torch.compile", "compiled": True}, _raises
        yield {"backbone": "segresnet", "form": "as it is"}, _raises
        measured = {
            "step": {"first": 1.0, "median": 0.1},
            "audit": {"first": 1.0, "median": 0.2},
            "dice": 0.5,
        }
        yield {"backbone": "unet", "form": "as it is"}, lambda: measured
        yield {"backbone": "unet", "form": "channels_last_3d"}, lambda: time.sleep(10)

    monkeypatch.setitem(gpu._PARTS, "forms", rows)
    size = dataclasses.replace(gpu.SMALL, limit=0.2)
    found, failed = gpu.measure(torch.device("cpu"), size, ["forms"], tmp_path)
    assert failed == ["forms, segresnet, as it is", "forms, unet, channels_last_3d"]
    page = found.with_suffix(".md").read_text(encoding="utf-8")
    assert "| segresnet | torch.compile | fails: Unsupported: hooks \\| more | | | |\n" in page
    assert "| unet | as it is | 100.0 | 200.0 | 1.0 | 0.5000 |\n" in page
    assert "| unet | channels_last_3d | fails: TimeoutError: not done after 0 s | | | |\n" in page


class Unsupported(Exception):
    pass


def _raises():
    raise Unsupported("hooks | more")
