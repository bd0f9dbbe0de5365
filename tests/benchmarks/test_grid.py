"""Grids: what cells they make, how cells are named and shared, and which files are theirs."""

from __future__ import annotations

import json

import pydantic
import pytest

from benchmarks.cell import code_hash
from benchmarks.grid import Grid, grid_names, read_grid
from benchmarks.store import Store, compact

FIELDS = {
    "store": "s",
    "data": ["phantom:mr-t1"],
    "shots": [5],
    "seeds": [0],
    "budgets": ["0.3%", "1%"],
}


def grid(**fields: object) -> Grid:
    return Grid.model_validate(FIELDS | {"policies": ["lora"]} | fields)


@pytest.mark.parametrize("name", grid_names())
def test_every_grid_of_the_folder_can_be_read_and_names_policies_that_there_are(name):
    import benchmarks.policies  # noqa: F401
    from sea_peft.loop.policies import policy_entry

    cells = read_grid(name).cells()
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        entry = policy_entry(cell.policy_asked_for({"families": {"lora": 5}}))
        assert entry.outside_budget == (cell.budget is None)


def test_seeds_are_outermost_and_the_reference_comes_before_its_mixes():
    cells = grid(seeds=[0, 1], policies=["random_mix-1", "affine", "sea"], unbound=["full"]).cells()
    assert [cell.seed for cell in cells] == [0] * 7 + [1] * 7
    assert [(c.policy, c.budget) for c in cells[:7]] == [
        ("sea", "0.3%"), ("random_mix-1", "0.3%"), ("affine", "0.3%"),
        ("sea", "1%"), ("random_mix-1", "1%"), ("affine", "1%"), ("full", None),
    ]  # fmt: skip
    mix = cells[1]
    assert mix.partner == cells[0]
    assert (
        mix.policy_asked_for({"families": {"lora": 900, "affine": 24}})
        == "random_mix(draw=1,affine=24,lora=900)"
    )
    assert mix.policy_asked_for({"families": {}}) == "head_only", "nothing chosen, nothing to draw"
    assert cells[2].partner is None


def test_a_mix_without_its_reference_and_an_unknown_field_are_refused():
    with pytest.raises(pydantic.ValidationError, match="put it among the policies"):
        grid(policies=["affine", "random_mix-1"])
    with pytest.raises(pydantic.ValidationError, match="polices"):
        grid(polices=["affine"])


def test_a_cell_is_named_after_what_makes_it_and_so_shared_between_grids(tmp_path):
    one, other = (
        grid(policies=policies, options={"backbone": "unet"}).cells()[0]
        for policies in (["lora"], ["lora", "affine"])
    )
    assert one == other
    assert one.name == "mr-t1.5-shot.seed-0.0.3pct.lora"
    assert (
        one.command()
        == "seapeft adapt phantom:mr-t1 --shots 5 --seed 0 --policy lora --budget 0.3% --backbone"
        " unet"
    )
    finer = grid(options={"backbone": "unet", "spacing": [2.5, 2.5, 2.5]}).cells()[0]
    assert finer.name == "mr-t1.5-shot.seed-0.spacing-2.5x2.5x2.5.0.3pct.lora"
    store = Store("s", tmp_path)
    store.write(one, {"cell": json.loads(json.dumps(one.row())), "exit_code": 0})
    assert store.row(other) == {"cell": other.row(), "exit_code": 0}
    assert store.row(finer) is None
    elsewhere = grid(options={"backbone": "segresnet"}).cells()[0]
    with pytest.raises(ValueError, match="give the grid another store"):
        store.row(elsewhere)
    assert not list(tmp_path.rglob("*.partial"))


def test_the_cost_of_a_cell_is_that_of_rows_like_it(tmp_path):
    store = Store("s", tmp_path)
    lora, *others = grid(policies=["lora", "affine", "bias"], seeds=[0, 1, 2]).cells()
    assert store.expected_cpu(lora) is None
    spent = {("lora", 1): 70.0, ("lora", 2): 80.0, ("affine", 0): 40.0, ("affine", 1): 44.0}
    for cell in others:
        if seconds := spent.get((cell.policy, cell.seed)):
            store.write(cell, {"cell": cell.row(), "exit_code": 0, "seconds": {"cpu": seconds}})
    assert store.expected_cpu(lora) == 75.0
    bias = next(cell for cell in others if cell.policy == "bias")
    assert store.expected_cpu(bias) == 57.0
    longer = grid(policies=["lora"], options={"steps": 9}).cells()[0]
    assert store.expected_cpu(longer) is None


def test_a_row_has_one_line_a_list(tmp_path):
    row = {"a": 1, "per_case": {f"case-{i}": [0.1234] * 12 for i in range(3)}, "small": {"x": 1}}
    text = compact(row)
    assert json.loads(text) == row
    assert len(text.splitlines()) == 9


def test_the_code_has_a_name():
    assert len(code_hash()) == 8
