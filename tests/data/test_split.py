import pytest
from synthetic_scans import MemoryCase

from sea_peft.data.cases import Dataset
from sea_peft.data.split import split
from sea_peft.errors import DataError


def dataset(count, tests=0):
    cases = tuple(MemoryCase(f"c{i:02d}", {}, None) for i in range(count))
    return Dataset(
        "toy",
        "folders",
        ("CT",),
        {"a": (1,)},
        cases,
        tuple(MemoryCase(f"t{i}", {}, None) for i in range(tests)),
    )


@pytest.mark.parametrize(("shots", "audit"), [(1, 0), (2, 1), (3, 1), (5, 1), (9, 1), (10, 2), (16, 3)])
def test_shots_count_every_labelled_scan_used(shots, audit):
    parts = split(dataset(20), shots, seed=3)
    assert (len(parts.support), len(parts.audit), len(parts.test)) == (shots - audit, audit, 20 - shots)
    ids = [case.id for part in (parts.support, parts.audit, parts.test) for case in part]
    assert len(set(ids)) == 20


def test_the_draw_depends_on_names_and_seed_only():
    data = dataset(20)
    shuffled = data.with_cases(reversed(data.cases))
    assert [c.id for c in split(data, 5, 1).support] == [c.id for c in split(shuffled, 5, 1).support]
    draws = {tuple(c.id for c in split(data, 5, seed).support) for seed in range(8)}
    assert len(draws) == 8


def test_test_cases_of_the_layout_are_the_test():
    parts = split(dataset(5, tests=3), 5, 0)
    assert [case.id for case in parts.test] == ["t0", "t1", "t2"]
    assert len(parts.support) == 4


@pytest.mark.parametrize(
    ("count", "tests", "shots", "sentence"),
    [
        (4, 0, 10, "10 shots were asked for, but toy has 4 usable labelled cases; ask for at most 3"),
        (
            4,
            0,
            4,
            "would use all 4 usable labelled cases of toy and leave none to test on; ask for at most 3",
        ),
        (4, 2, 5, "ask for at most 4"),
        (4, 0, 0, "at least 1"),
        (0, 0, 1, "has 0 usable"),
    ],
)
def test_too_many_shots(count, tests, shots, sentence):
    with pytest.raises(DataError, match=sentence):
        split(dataset(count, tests), shots, 0)
