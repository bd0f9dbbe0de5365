"""The examples in the docstrings of the Python API run."""

from __future__ import annotations

import doctest

import pytest

import sea_peft

EXAMPLES = {
    name: [test for test in doctest.DocTestFinder(recurse=False).find(getattr(sea_peft, name), name) if test.examples]
    for name in sea_peft.__all__
}


@pytest.mark.parametrize("name", [name for name, found in EXAMPLES.items() if found])
def test_the_examples_of_the_python_api_run(name: str) -> None:
    for test in EXAMPLES[name]:
        assert doctest.DocTestRunner().run(test).failed == 0


def test_there_are_examples() -> None:
    assert EXAMPLES["wrap"]
