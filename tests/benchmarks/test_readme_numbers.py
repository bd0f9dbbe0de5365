"""The README's table of Dice, against the committed rows: averaged here by hand, from the Dice
of every label and case.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.grid import read_grid
from benchmarks.store import RESULTS, Store

README = Path(__file__).parents[2] / "README.md"
ARMS = {
    "head only": "head_only",
    "affine": "affine",
    "LoRA": "lora",
    "cheapest first": "cheapest",
    "affine + LoRA": "affine_lora",
    "`sea`": "sea",
    "full fine-tuning": "full",
}
ROWS = {
    "seven phantom targets, mean": "targets_unet",
    "hippocampus in T1 MR (MSD)": "hippocampus_unet",
}


def _cells(line: str) -> list[str]:
    return [cell.strip(" *") for cell in line.strip().strip("|").split("|")]


def _mean(per_case) -> float:
    """Over labels, of the mean over the cases that have the label."""
    dice = np.array(
        [[np.nan if value is None else value for value in by] for by in per_case], float
    )
    return float(np.nanmean(dice, axis=0).mean())


def _measured(grid_name: str) -> dict[str, float]:
    grid = read_grid(grid_name)
    store, found = Store(grid.store), {}
    for cell in grid.cells():
        row, baselines = store.row(cell), store.baselines(cell)
        assert row is not None, f"{cell.name} is not committed"
        assert baselines is not None, f"what {cell.name} is compared with is not committed"
        found.setdefault(cell.policy, []).append(_mean(row["per_case"].values()))
        if cell.policy == "sea":
            by_case = baselines["head_only"]["per_case"].values()
            found.setdefault("head_only", []).append(
                _mean([[by.get(label) for label in row["labels"]] for by in by_case])
            )
    return {arm: float(np.mean(values)) for arm, values in found.items()}


@pytest.mark.parametrize(("row", "grid"), ROWS.items())
def test_a_row_of_the_readme_is_what_was_measured(row: str, grid: str):
    lines = README.read_text(encoding="utf-8").splitlines()
    (header,) = (_cells(line) for line in lines if line.startswith("| target |"))
    (said,) = (_cells(line) for line in lines if line.startswith(f"| {row} |"))
    measured = _measured(grid)
    for name, value in zip(header[1:], said[1:], strict=True):
        if re.fullmatch(r"\d\.\d{3}", value):
            assert float(value) == pytest.approx(measured[ARMS[name]], abs=0.00051), name
        else:
            assert value == "–", name


def test_the_differences_in_the_docs_are_those_of_the_committed_table():
    root = README.parent
    table = (root / "benchmarks" / "results" / "targets_unet.md").read_text(encoding="utf-8")
    rows = [_cells(line) for line in table.splitlines() if line.startswith("| 1% |")]
    measured = {row[1].split("*")[0]: (row[3], row[8].split(",")[0] + ")") for row in rows}
    page = (root / "docs" / "how-it-decides.md").read_text(encoding="utf-8").replace("−", "-")
    said = {
        _cells(line)[0]: _cells(line)[2:] for line in page.splitlines() if line.startswith("| ")
    }
    for name, arm in {
        "LoRA, the best single family": "lora",
        "cheapest unit first": "cheapest",
        "affine everywhere, LoRA from the cheapest site up": "affine_lora",
        "`sea` without audits": "sea_no_audits",
        "full fine-tuning": "full",
    }.items():
        difference, worst = measured[arm]
        assert said[name] == [difference, worst.replace("small-lesions", "small lesions")], name


def test_what_a_better_choice_could_bring_is_computed_from_the_rows():
    """At 1%, by hand."""
    grid = read_grid("targets_unet")
    store, runs = Store(grid.store), {}
    for cell in grid.cells():
        if cell.policy != "full":
            dice = _mean(store.row(cell)["per_case"].values())
            runs.setdefault((cell.data, cell.seed), {})[cell.policy] = dice
    gains = {
        ours: [100 * (max(run.values()) - run[ours]) for run in runs.values()]
        for ours in ("sea", "cheapest")
    }
    table = (RESULTS / "headroom.md").read_text(encoding="utf-8").splitlines()
    (said,) = (_cells(line) for line in table if line.startswith("| 1% |"))
    assert int(said[1]) == len(runs) == 21
    for column, ours in ((2, "sea"), (4, "cheapest")):
        assert float(said[column].split(" ± ")[0]) == pytest.approx(np.mean(gains[ours]), abs=0.051)
    assert float(said[3]) == pytest.approx(max(gains["sea"]), abs=0.051)


def test_what_peers_reach_is_what_the_readme_says():
    rows = json.loads((RESULTS / "peers.json").read_text(encoding="utf-8"))["rows"]
    dice = {(row["task"].split()[0], row["arm"]): row["dice"] for row in rows}
    table = (RESULTS / "peers.md").read_text(encoding="utf-8")
    ours = re.findall(r"^\| sea: .*? \| (\d\.\d{3}) \|", table, re.MULTILINE)
    text = README.read_text(encoding="utf-8").partition("In the same CPU time")[2]
    said = re.findall(r"0\.\d{3}", text.partition("##")[0])
    assert said == [
        f"{dice['low-dose', 'MONAI, all weights']:.3f}",
        f"{dice['low-dose', 'PEFT LoRA']:.3f}",
        ours[0],
        f"{dice['hippocampus', 'MONAI, all weights']:.3f}",
        ours[1],
        f"{dice['hippocampus', 'nnU-Net, 4 × the time']:.3f}",
    ]
    assert dice["hippocampus", "PEFT LoRA"] == pytest.approx(float(said[3]), abs=0.0005)


def test_how_far_the_published_form_is_behind_is_what_the_readme_says():
    table = (RESULTS / "topologies_unet.md").read_text(encoding="utf-8")
    (row,) = (_cells(line) for line in table.splitlines() if line.startswith("| 1% | sea_paper |"))
    assert row[3].startswith("+")
    said = f"{row[3].removeprefix('+')} above [SEA-PEFT as published]"
    assert said in README.read_text(encoding="utf-8")
