"""The examples in the docstrings run: those of the Python API, and those of single modules."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import sea_peft

PACKAGE = Path(sea_peft.__file__).parent
MODULES = [
    ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in sorted(PACKAGE.glob("*/**/*.py"))
    if ">>> " in path.read_text()
]
EXAMPLES = {
    name: [
        test
        for test in doctest.DocTestFinder(recurse=False).find(getattr(sea_peft, name), name)
        if test.examples
    ]
    for name in sea_peft.__all__
}


@pytest.mark.parametrize("name", [name for name, found in EXAMPLES.items() if found])
def test_the_examples_of_the_python_api_run(name: str) -> None:
    for test in EXAMPLES[name]:
        assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_there_are_examples() -> None:
    assert EXAMPLES["wrap"]
    assert "sea_peft.loop.knapsack" in MODULES
