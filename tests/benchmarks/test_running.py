"""A small grid from its first cell to its tables, killed cells and clusters included."""

from __future__ import annotations

import os
import signal

import pytest

from benchmarks import pareto, table
from benchmarks.cell import run_cell
from benchmarks.grid import read_grid
from benchmarks.runner import here, on_cluster, run_grid
from benchmarks.scores import read_results
from benchmarks.store import Store


def in_this_process(cell, policy, baselines):
    return run_cell(cell, policy, baselines)


def run(path, store, launch=in_this_process, **asked):
    """Cell name → (row, whether it was run now)."""
    return {
        cell.name: (row, now)
        for cell, row, now in run_grid(read_grid(path), store, launch, **asked)
    }


def test_a_grid_from_its_first_cell_to_its_tables(write_grid, tmp_path):
    path = write_grid(
        policies=["affine_lora", "sea", "random_mix-1", "lora_linear"], unbound=["full"]
    )
    store = Store("toy", tmp_path)
    rows = run(path, store)
    by_policy = {row["cell"]["policy"]: row for row, _ in rows.values()}
    assert all(now for _, now in rows.values())
    assert len(rows) == 5

    sea, mix, full = by_policy["sea"], by_policy["random_mix-1"], by_policy["full"]
    assert sea["seconds"]["baselines"] == "made"
    assert (
        mix["policy"]
        == "random_mix(draw=1,"
        + ",".join(f"{f}={n}" for f, n in sorted(sea["families"].items()))
        + ")"
    )
    assert set(mix["families"]) <= set(sea["families"])
    for row in (sea, mix, by_policy["affine_lora"]):
        assert row["parameters"]["used"] <= row["parameters"]["limit"]
    assert full["parameters"]["used"] > full["parameters"]["limit"]
    assert sea["labels"] == ["organ", "spot"]
    assert sea["new_labels"] == ["spot"]
    assert len(sea["per_case"]) == sea["cases"]["test"] == 2
    assert set(sea["sensitivity"]) <= {"organ", "spot"}
    assert sea["crops"] == 20
    assert sea["seconds"]["cpu_train"] > 0

    failed = by_policy["lora_linear"]
    assert failed["exit_code"] == 4
    assert "no place on this backbone" in failed["error"]

    assert not any(now for _, now in run(path, store).values()), "nothing is run twice"
    anew = run(path, store, again=lambda cell, row: row["exit_code"] != 0)
    assert {name for name, (_, now) in anew.items() if now} == {
        name for name in rows if "lora_linear" in name
    }

    written = table.write(path, tmp_path)
    text = written[0].read_text()
    assert "| 20% | **affine_lora** (strongest fixed) | 1 |" in text
    assert "lora_linear" in text.split("Failed:")[1]
    assert all(p.stat().st_size > 0 for p in (*written, *pareto.write(path, tmp_path)))


@pytest.mark.parametrize("policy", ["affine_lora", "sea"])
def test_baselines_taken_over_change_nothing(policy, write_grid, tmp_path):
    (cell,) = read_grid(write_grid(policies=[policy])).cells()
    alone, made = run_cell(cell, cell.policy, None)
    after, none = run_cell(cell, cell.policy, made)
    assert none is None
    assert (alone["seconds"]["baselines"], after["seconds"]["baselines"]) == ("made", "reused")
    own = ("dice", "per_case", "units", "sensitivity", "specificity")
    assert {key: alone[key] for key in own} == {key: after[key] for key in own}


def test_leave_one_out_tests_every_case_once_and_trains_on_the_others(write_grid, tmp_path):
    path = write_grid(policies=["affine_lora"], shots=[3], leave_one_out=4)
    store = Store("toy", tmp_path)
    rows = run(path, store, only="fold-0") | run(path, store, only="fold-3")
    assert [
        (row["cases"]["test"], row["cases"]["support"], row["cases"]["audit"])
        for row, _ in rows.values()
    ] == [(1, 2, 1)] * 2
    assert len({case for row, _ in rows.values() for case in row["per_case"]}) == 2
    assert "grid" not in " ".join(
        str(row["per_case"]) + str(row["units"]) for row, _ in rows.values()
    )
    results = read_results(read_grid(path), store)
    assert results.replicates == 4
    assert not results.complete(*next(iter(results.tables)))
    assert "2 of 4" in table.document("toys", results)


def test_cases_that_are_left_out_are_neither_shots_nor_test_cases(write_grid, tmp_path, toys):
    ids = sorted(file.name.removesuffix("_0000.nii.gz") for file in toys[0].rglob("*_0000.nii.gz"))
    path = write_grid(policies=["affine_lora"], without=[ids[0]])
    ((row, _),) = run(path, Store("toy", tmp_path)).values()
    assert row["cell"]["without"] == (ids[0],)
    cases = row["cases"]
    assert (cases["support"] + cases["audit"], cases["test"]) == (2, 1)
    everyone = write_grid(policies=["affine_lora"])
    ((whole, _),) = run(everyone, Store("all", tmp_path)).values()
    assert "without" not in whole["cell"]
    assert whole["cases"]["test"] == 2
    path = write_grid(policies=["affine_lora"], without=["nobody"])
    ((row, _),) = run(path, Store("none", tmp_path)).values()
    assert "no case nobody to leave out" in row["error"]


def test_a_partner_that_failed_fails_its_mixes(write_grid, tmp_path):
    path = write_grid(policies=["sea", "random_mix-1"], budgets=["1"])
    rows = run(path, Store("toy", tmp_path))
    assert [(row["exit_code"], row["error"][:12]) for row, _ in rows.values()] == [
        (2, "A budget of "),
        (1, "its sea cell"),
    ]


def _killed(send, cell, policy, baselines):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_cell_in_its_own_process_and_one_that_is_killed_in_it(write_grid, tmp_path, monkeypatch):
    path = write_grid(policies=["affine_lora"])
    (cell,) = read_grid(path).cells()
    store = Store("toy", tmp_path)
    rows = run(path, store, here(), jobs=2)
    there, _ = run_cell(cell, cell.policy, None)
    (row,) = (row for row, _ in rows.values())
    assert (row["dice"], row["units"]) == (there["dice"], there["units"])
    monkeypatch.setattr("benchmarks.runner._child", _killed)
    row, baselines = here()(cell, cell.policy, None)
    assert (row["exit_code"], row["error"], baselines) == (
        -9,
        "its process ended with SIGKILL",
        None,
    )


# submitit leaves the log files of its debug jobs open
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
@pytest.mark.parametrize("cluster", ["debug", pytest.param("local", marks=pytest.mark.slow)])
def test_cells_as_jobs_of_submitit(cluster, write_grid, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    rows = run(
        write_grid(policies=["affine_lora"]), Store("toy", tmp_path), on_cluster(cluster, minutes=5)
    )
    assert [row["exit_code"] for row, _ in rows.values()] == [0]
