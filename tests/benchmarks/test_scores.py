"""The numbers in the tables, against numbers worked out by hand."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks import gaps, pareto, table
from benchmarks.grid import Grid
from benchmarks.scores import Score, Task, difference, interval, ranks, read_results
from benchmarks.store import Store

FIELDS = {
    "store": "s",
    "data": ["phantom:a", "phantom:b"],
    "shots": [5],
    "seeds": [0, 1, 2],
    "budgets": ["1%"],
    "policies": ["sea", "affine", "cheapest", "random_mix-1", "random_mix-2"],
    "unbound": ["full"],
}


def row_of(cell, dice, used=100, new=("new",)):
    """A row as `run_cell` writes it, with one test case per label set."""
    return {
        "cell": json.loads(json.dumps(cell.row())),
        "policy": cell.policy,
        "code": "0" * 8,
        "exit_code": 0,
        "machine": {
            "system": "Linux",
            "python": "3",
            "torch": "2",
            "cpus": 2,
            "threads": 1,
            "gpu": None,
        },
        "dice": {"unadapted": None, "head_only": 0.3, "adapted": dice},
        "weights": "phantom_unet",
        "labels": ["liver", "new"],
        "new_labels": list(new),
        "per_case": {"case-1": [dice + 0.1, dice - 0.1], "case-2": [dice + 0.1, None]},
        "sensitivity": {"liver": 0.5},
        "specificity": {"liver": 0.9},
        "parameters": {"limit": 200, "used": used, "head": 10, "backbone": 1000},
        "cases": {"support": 4, "audit": 1, "test": 2},
        "crops": 40,
        "seconds": {
            "wall": 9.0,
            "cpu": 8.0,
            "cpu_train": 4.0,
            "cpu_test": 3.0,
            "baselines": "reused",
        },
        "peak_memory_bytes": 2**30,
        "families": {"affine": 90},
        "units": [],
    }


def results_of(tmp_path, dice, **fields):
    """A grid whose cells scored `dice(cell)`; None leaves the cell out, a text makes it fail."""
    grid = Grid.model_validate(FIELDS | fields)
    store = Store("s", tmp_path)
    for cell in grid.cells():
        scored = dice(cell)
        if isinstance(scored, str):
            store.write(
                cell,
                {
                    "cell": json.loads(json.dumps(cell.row())),
                    "exit_code": 4,
                    "error": scored,
                    "seconds": {},
                },
            )
        elif scored is not None:
            store.write(
                cell, row_of(cell, scored, used={"affine": 50, "full": 1000}.get(cell.policy, 100))
            )
            per_case = {"case-1": {"liver": 0.2, "new": 0.1}, "case-2": {"liver": 0.2}}
            store.write_baselines(
                cell,
                {
                    "unadapted": {"dice": None, "per_label": {}, "per_case": {}},
                    "head_only": {
                        "dice": 0.15,
                        "per_label": {"liver": 0.2, "new": 0.1},
                        "per_case": per_case,
                    },
                },
            )
    return read_results(grid, store)


def test_the_interval_is_students():
    # mean 2, standard deviation 1, t(0.975, 2) = 4.3027
    assert interval([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / math.sqrt(3))
    assert interval([1.0]) is None


def test_wilcoxon_by_hand():
    """Six differences of which the smallest is negative: W⁻ = 1. Two of 2⁶ sign patterns give
    W⁻ ≤ 1, two-sided 4/64.
    """
    found = difference([-0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert (found.pairs, found.above) == (6, 5)
    assert found.mean == pytest.approx(1.9 / 6)
    assert found.p == pytest.approx(4 / 64)
    assert difference([0.1] * 5).p is None, "five pairs cannot be significant"
    assert difference([0.0] * 6).p == 1.0


def test_ranks_are_shared_where_dice_is_equal():
    def scores(*dice):
        return {seed: Score(d, None, {}, ()) for seed, d in enumerate(dice)}

    assert ranks({"a": scores(0.9, 0.5), "b": scores(0.8, 0.6), "c": scores(0.8, 0.4)}) == {
        "a": 1.5,
        "b": 1.75,
        "c": 2.75,
    }


def dice_of(cell):
    base = {
        "sea": 0.8,
        "affine": 0.7,
        "cheapest": 0.75,
        "full": 0.9,
        "random_mix-1": 0.6,
        "random_mix-2": 0.7,
    }
    return base[cell.policy] + 0.01 * cell.seed + (0.02 if cell.data.endswith("b") else 0.0)


def test_comparisons(tmp_path):
    results = results_of(tmp_path, dice_of)
    a = Task("phantom:a", 5)
    complete = results.complete(a, "1%")
    assert set(complete) == {"sea", "affine", "cheapest", "full", "random_mix", "head_only"}
    sea = complete["sea"][0, None]
    # labels: mean over cases, then mean over labels; cases: mean over what the case has
    assert sea.dice == 0.8
    assert sea.new == pytest.approx(0.7)
    assert sea.cases == pytest.approx({"case-1": 0.8, "case-2": 0.9})
    assert complete["random_mix"][0, None].dice == pytest.approx(0.65)
    assert len(results.pairs("sea", "random_mix", ["1%"])) == 6
    assert results.strongest_fixed(["1%"]) == "cheapest"
    text = table.document("g", results)
    assert "| 1% | **cheapest** (strongest fixed) | 6 | +5.0 ± 0.0 | 6 of 6 |" in text
    assert "| 1% | random_mix | 6 | +15.0 ± 0.0 |" in text
    # draws of 0.60 and 0.70 beside 0.80
    assert "| a, 5 shots | 1% | 2 | 0.650 | 7.1 | +5.0 | +15.0 | +10.0 |" in text
    assert "| head_only | 0.150 ± 0.000 | 0.100 ± 0.000 |" in text
    assert (
        "| sea | 0.810 ± 0.025 | 0.710 ± 0.025 | 0.500 | 0.9000 | 2.0 | 100 | 0.100 | 0 | 1.50 | 8"
        " | 1,024 MB |" in text
    )


def test_what_is_not_whole_is_shown_as_such_and_counted_nowhere(tmp_path):
    def partly(cell):
        if cell.policy == "cheapest" and cell.data.endswith("b"):
            return None if cell.seed else "fits no unit"
        return None if cell.policy == "random_mix-2" and cell.seed == 2 else dice_of(cell)

    results = results_of(tmp_path, partly)
    assert results.strongest_fixed(["1%"]) == "affine", "what failed somewhere is no candidate"
    assert "random_mix" not in results.complete(Task("phantom:a", 5), "1%")
    text = table.document("g", results)
    assert "| random_mix | (0.655 ± 0.064, 2 of 3) |" in text
    assert "4 cells have not been run." in text
    assert "b.5-shot.seed-0.1pct.cheapest: fits no unit" in text
    points, whole, of = pareto.points(results)
    assert (whole, of) == (2, 6), "seeds 0 and 1 of target a"
    assert {p.arm for p in points} == {"sea", "affine", "cheapest", "random_mix", "full"}


def test_the_pareto_score_by_hand(tmp_path):
    points, whole, of = pareto.points(results_of(tmp_path, dice_of))
    assert (whole, of) == (6, 6)
    by_arm = {p.arm: p for p in points}
    assert [p.arm for p in points] == ["affine", "sea", "cheapest", "random_mix", "full"]
    # parameters 50 to 1000, Dice 0.67 to 0.92 (each mean is the base + 0.02)
    assert by_arm["sea"].score == pytest.approx(0.5 * (0.15 / 0.25) + 0.5 * (1 - 50 / 950))
    assert by_arm["full"].score == pytest.approx(0.5)
    assert [p.arm for p in points if p.front] == ["affine", "sea", "full"]
    assert by_arm["full"].name == "full"
    assert by_arm["sea"].name == "sea 1%"


def test_targets_and_their_source(tmp_path):
    lines = gaps.gaps(results_of(tmp_path, dice_of))
    # the card's Dice of the liver, the only label of the target that the weights know
    assert any(
        line.startswith("| a, 5 shots | 1% | 0.9")
        and "| cannot |" in line
        and line.endswith("| cheapest |")
        for line in lines
    )
    assert (
        "- Best fixed topology within 1%: the same on every target (cheapest: a, 5 shots and b, 5"
        " shots). The head alone is ahead of it on no target." in lines
    )


def test_an_empty_grid_says_so(tmp_path):
    assert "Nothing has been run yet." in table.document(
        "g", results_of(tmp_path, lambda cell: None)
    )
