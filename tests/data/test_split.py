import json

import pytest
from synthetic_scans import MemoryCase

from sea_peft.data.cases import Dataset
from sea_peft.data.split import split, split_as_named
from sea_peft.data.split_file import read_split
from sea_peft.errors import DataError, UsageError


def dataset(count, tests=0):
    cases = tuple(MemoryCase(f"c{i:02d}", {}, None) for i in range(count))
    return Dataset(
        name="toy",
        layout="folders",
        channels=("CT",),
        labels={"a": (1,)},
        cases=cases,
        test_cases=tuple(MemoryCase(f"t{i}", {}, None) for i in range(tests)),
    )


@pytest.mark.parametrize(
    ("shots", "audit"), [(1, 0), (2, 1), (3, 1), (5, 1), (9, 1), (10, 2), (16, 3)]
)
def test_shots_count_every_labelled_scan_used(shots, audit):
    parts = split(dataset(20), shots, seed=3)
    assert (len(parts.support), len(parts.audit), len(parts.test)) == (
        shots - audit,
        audit,
        20 - shots,
    )
    ids = [case.id for part in (parts.support, parts.audit, parts.test) for case in part]
    assert len(set(ids)) == 20


def test_the_draw_depends_on_names_and_seed_only():
    data = dataset(20)
    shuffled = data.with_cases(reversed(data.cases))
    assert [c.id for c in split(data, 5, 1).support] == [
        c.id for c in split(shuffled, 5, 1).support
    ]
    draws = {tuple(c.id for c in split(data, 5, seed).support) for seed in range(8)}
    assert len(draws) == 8


def test_test_cases_of_the_layout_are_the_test():
    parts = split(dataset(5, tests=3), 5, 0)
    assert [case.id for case in parts.test] == ["t0", "t1", "t2"]
    assert len(parts.support) == 4


@pytest.mark.parametrize(
    ("count", "tests", "shots", "sentence"),
    [
        (
            4,
            0,
            10,
            "10 shots were asked for, but toy has 4 usable labelled cases; ask for at most 4",
        ),
        (4, 2, 5, "ask for at most 4"),
        (1, 0, 2, "has 1 usable labelled case; ask for at most 1"),
        (4, 0, 0, "at least 1"),
        (0, 0, 1, "has 0 usable"),
    ],
)
def test_too_many_shots(count, tests, shots, sentence):
    with pytest.raises(DataError, match=sentence):
        split(dataset(count, tests), shots, 0)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_labelled_scan_can_be_a_shot(count):
    parts = split(dataset(count), count, 0)
    assert len(parts.shots) == count
    assert parts.test == ()


def test_test_cases_are_drawn_by_seed_and_no_more_than_asked_for():
    data, marked = dataset(20), dataset(20, tests=9)
    whole, drawn = split(data, 5, 3), split(data, 5, 3, test=4)
    assert drawn.shots == whole.shots
    assert len(drawn.test) == 4
    assert set(drawn.test) < set(whole.test)
    assert drawn.test == split(data, 5, 3, test=4).test
    assert len({split(marked, 5, seed, test=3).test for seed in range(4)}) > 1
    assert split(data, 5, 3, test=99).test == whole.test


@pytest.mark.parametrize("test", ["none", "cv"])
def test_without_test_cases_the_shots_are_the_same(test):
    data = dataset(20)
    parts = split(data, 5, 3, test=test)
    assert parts.test == ()
    assert parts.shots == split(data, 5, 3).shots


@pytest.mark.parametrize(
    ("shots", "roles"), [(2, [(1, 0)] * 2), (3, [(1, 1)] * 3), (5, [(3, 1)] * 5)]
)
def test_leave_one_out_never_trains_or_audits_on_the_one_that_it_scores(shots, roles):
    parts = split(dataset(20), shots, 0, test="cv")
    folds = parts.leave_one_out()
    assert [fold.test for fold in folds] == [(case,) for case in parts.shots]
    assert [(len(fold.support), len(fold.audit)) for fold in folds] == roles
    for fold in folds:
        assert {*fold.shots, *fold.test} == set(parts.shots)
        assert not set(fold.shots) & set(fold.test)


def named(tmp_path, **lists):
    file = tmp_path / "split.json"
    file.write_text(json.dumps(lists))
    return read_split(file)


def ids(cases):
    return [case.id for case in cases]


def test_a_file_names_the_cases(tmp_path):
    given = named(tmp_path, support=["c03", "c01"], audit=["c02"], test=["c00", "t1"])
    parts = split_as_named(dataset(6, tests=2), given, seed=0)
    assert (ids(parts.support), ids(parts.audit), ids(parts.test)) == (
        ["c03", "c01"],
        ["c02"],
        ["c00", "t1"],
    )
    assert split_as_named(dataset(6, tests=2), given, seed=0, test="cv").test == ()
    assert len(split_as_named(dataset(6, tests=2), given, seed=0, test=1).test) == 1


def test_what_a_file_leaves_open_is_as_without_it(tmp_path):
    parts = split_as_named(dataset(6), named(tmp_path, support=["c03", "c01", "c02"]), seed=0)
    assert (len(parts.support), len(parts.audit)) == (2, 1)
    assert ids(parts.test) == ["c00", "c04", "c05"]
    assert ids(
        split_as_named(dataset(6, tests=2), named(tmp_path, support=["c03"]), seed=0).test
    ) == ["t0", "t1"]
    assert split_as_named(dataset(6), named(tmp_path, support=["c03"], test=[]), seed=0).test == ()


def test_a_file_names_a_case_that_is_not_there(tmp_path):
    with pytest.raises(
        DataError, match=r"split.json names case x9, which is no usable labelled case of toy"
    ):
        split_as_named(dataset(3), named(tmp_path, support=["c00"], test=["x9"]), seed=0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "Invalid JSON"),
        ("[]", "write lists of case ids"),
        ('{"support": "c00"}', "support: Input should be a valid array"),
        ('{"support": [1]}', "support.0: Input should be a valid string"),
        ('{"train": ["c00"]}', "write lists of case ids"),
        ('{"support": [], "test": ["c00"]}', "names no support case"),
        ('{"support": ["c00", "c00"]}', "names case c00 twice under support"),
        ('{"support": ["c00"], "test": ["c00"]}', "names case c00 under support and under test"),
        (
            '{"support": ["c00"], "audit": ["c01"], "test": ["c01"]}',
            "names case c01 under audit and under test",
        ),
    ],
)
def test_a_split_file_that_makes_no_sense(tmp_path, text, sentence):
    file = tmp_path / "split.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=sentence):
        read_split(file)


def test_a_split_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_split(tmp_path / "none.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="write lists of case ids"):
        read_split(tmp_path / "binary")


def test_no_label_is_held_out_altogether_where_that_can_be_helped(tmp_path):
    data = dataset(20)
    drawn = split(data, 5, 3)
    common = {case.id: {"organ"} for case in data.cases}
    rare = {**common, drawn.audit[0].id: {"organ", "lesion"}}
    found = split(data, 5, 3, holds=rare)
    assert {*found.shots} == {*drawn.shots}, "the shots are drawn without looking"
    assert drawn.audit[0] in found.support
    assert len(found.audit) == 1
    assert not found.hidden
    assert split(data, 5, 3, holds=common).audit == drawn.audit, (
        "and nothing changes where nothing is rare"
    )
    each = {case.id: {"organ", case.id} for case in data.cases}
    assert split(data, 5, 3, holds=each).hidden == {drawn.audit[0].id}, "one must be held out"

    names = named(tmp_path, support=[case.id for case in drawn.shots])
    whole = split_as_named(data, names, 0)
    rare = {**common, whole.audit[0].id: {"organ", "lesion"}}
    assert whole.audit[0] in split_as_named(data, names, 0, holds=rare).support

    rare = {**common, found.support[0].id: {"organ", "lesion"}}
    for fold in split(data, 5, 3, holds=rare).leave_one_out():
        assert not fold.hidden


def test_an_earlier_run_s_shots_stay_support_whatever_they_hold():
    data = dataset(20)
    seen = {case.id for case in split(data, 3, 1).shots}
    found = split(data, 10, 1, seen=seen, holds={case.id: {case.id} for case in data.cases})
    assert len(found.audit) == 2
    assert seen <= {case.id for case in found.support}
