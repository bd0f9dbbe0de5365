"""What a GPU is asked for runs on a CPU at a small size, and makes its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


@pytest.mark.slow
@pytest.mark.parametrize("part", ["runs", "large", "peers", "forms"])
def test_every_part_runs_at_a_small_size_and_has_its_table(part, tmp_path, monkeypatch):
    if part == "peers":
        pytest.importorskip("peft")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    found, page = gpu.measure(torch.device("cpu"), gpu.SMALL, [part], tmp_path / "results")
    assert found.name == "gpu-cpu.json"
    rows = json.loads(found.read_text(encoding="utf-8"))[part]
    rows = rows["rows"] if part == "peers" else rows
    assert rows
    assert not any("fails" in row for row in rows)
    table = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(rows)


def test_numbers_of_a_cpu_are_never_written_among_the_results(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--small"])
    assert "give --out" in capsys.readouterr().err
    assert not list((Path(gpu.__file__).parent / "results").glob("gpu-cpu*"))


def test_what_a_compiler_cannot_do_is_a_row_of_the_page():
    rows = [
        {"backbone": "unet", "form": "as it is", "step": {"first": 1.0, "median": 0.1}, "audit": {"first": 1.0, "median": 0.2}, "dice": 0.5},
        {"backbone": "unet", "form": "torch.compile", "fails": "Unsupported: hooks"},
    ]  # fmt: skip
    page = gpu._page({"card": "X", "machine": {}, "bfloat16": True, "rounds": 2, "forms": rows})
    assert "| unet | as it is | 100.0 | 200.0 | 1.0 | 0.5000 |" in page
    assert "| unet | torch.compile | fails: Unsupported: hooks | | | |" in page
