"""How long a run will take: as often as the run has what is timed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from toys import SHORTEST

from sea_peft.jobs import duration
from sea_peft.jobs.setup import Setup, prepare_run


@pytest.fixture
def setup(toy, weights) -> Setup:
    options = dataclasses.replace(SHORTEST, data=str(toy), weights=str(weights), test=1)
    return prepare_run(options, print)


def test_every_part_of_the_run_counts(setup, monkeypatch) -> None:
    monkeypatch.setattr(duration, "_seconds", lambda work: (work(), 1.0)[1])
    whole = duration.expected(setup)
    assert whole.step == 1.0
    looks = 1 * 6  # 8 steps are worth the audit of one unit, on six patches
    # 8 steps and 4 batches of saliency, the head alone, the looks of audits; 1 held-out and 1 test
    # scan
    assert whole.total > 8 + 4 + 8 + looks + 2 * 2
    limited = dataclasses.replace(
        setup, settings=dataclasses.replace(setup.settings, time_limit=3.0)
    )
    assert whole.total - duration.expected(limited).total == pytest.approx(
        8 + 4 + looks - 3, abs=1.0
    )


def test_measuring_leaves_the_network_as_it_was(setup) -> None:
    before = {name: tensor.clone() for name, tensor in setup.model.state_dict().items()}
    duration.expected(setup)
    after = setup.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not setup.model.bank.active


@pytest.mark.parametrize("most", [0, 2, None])
def test_looks_are_those_of_the_units_that_are_audited(setup, monkeypatch, most) -> None:
    monkeypatch.setattr(duration, "_seconds", lambda work: (work(), 1.0)[1])
    room = len(setup.space.room().fill(setup.space.cheapest_first()))
    assert room > 2
    monkeypatch.setattr(setup.policy, "most_audited", 0)
    without = duration.expected(setup).total
    monkeypatch.setattr(setup.policy, "most_audited", most)
    looks = (room if most is None else most) * setup.settings.audit_patches
    assert duration.expected(setup).total - without == pytest.approx(looks, abs=1.0)
