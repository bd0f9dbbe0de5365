"""The profile's head policy: all rows, the new labels' rows, or none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from toys import SHORTEST

from sea_peft.errors import UsageError
from sea_peft.jobs.setup import Setup, prepare_run


def _set_up(
    toy: Path, weights: Path, folder: Path, head: str, labels: tuple[str, ...] = ()
) -> Setup:
    profile = folder / "own.toml"
    profile.write_text(f'head = "{head}"\n[families.affine]\n')
    options = dataclasses.replace(
        SHORTEST, data=str(toy), profile=str(profile), weights=str(weights), labels=labels
    )
    return prepare_run(options, lambda _sentence: None)


def test_the_rows_that_are_fitted_are_counted(toy: Path, weights: Path, tmp_path: Path) -> None:
    every, new = (_set_up(toy, weights, tmp_path, head).space.head for head in ("train", "new"))
    assert every == 4 * new  # three rows of the backbone, one new label


def test_a_frozen_head_takes_nothing_but_can_learn_no_label(
    toy: Path, weights: Path, tmp_path: Path
) -> None:
    assert _set_up(toy, weights, tmp_path, "frozen", ("organ",)).space.head == 0
    with pytest.raises(
        UsageError,
        match=r'Label spot is new to tiny, but profile own freezes the head.*head = "new"',
    ):
        _set_up(toy, weights, tmp_path, "frozen")
