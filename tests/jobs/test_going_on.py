"""`adapt --from RUN`: what a run takes over from an earlier one, and what it must not test on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from toys import SHORTEST, install
from traces import without_times

from sea_peft import cli
from sea_peft.artefacts.adapter_file import MODEL_NAME, load_adapter_files, read_adapter_config
from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.artefacts.trace import read_trace
from sea_peft.errors import BudgetError, DataError, SeaPeftError, UsageError, WeightsError
from sea_peft.jobs.adapt import adapt, resume
from sea_peft.jobs.going_on import read_earlier
from sea_peft.jobs.options import AdaptOptions
from sea_peft.jobs.setup import prepare_run
from sea_peft.loop import controller, events

Trace = list[events.Event]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def installed(home: Path, weights: Path, own_home: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(home))
    install(weights)


@pytest.fixture(scope="module")
def asked(toy: Path) -> AdaptOptions:
    return dataclasses.replace(SHORTEST, data=str(toy), weights="tiny", augment="none")


@pytest.fixture(scope="module")
def first(
    tmp_path_factory: pytest.TempPathFactory, home: Path, weights: Path, asked: AdaptOptions
) -> Path:
    """A run of two shots."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(home))
        install(weights)
        adapt(dataclasses.replace(asked, out=folder))
    return folder


def later(asked: AdaptOptions, first: Path, **others: object) -> AdaptOptions:
    given = {"shots": 4, "patch": None, "from_run": first, **others}
    return dataclasses.replace(asked, **given)


def names(run: Path, role: str) -> set[str]:
    folder = RunFolder(run)
    started = read_trace(folder.trace)[0]
    assert isinstance(started, events.RunStarted)
    known = folder.read_case_names()
    return {known[case] for case in started.split[role]}


def test_it_goes_on_with_units_head_and_audits_and_never_tests_on_an_old_shot(
    asked, first, tmp_path
):
    out, said = tmp_path / "second", []
    adapt(later(asked, first, out=out, seed=3), say=said.append)
    trace, config = read_trace(out / "trace.jsonl"), read_adapter_config(first / "adapter")
    started, warmed = (
        trace[0],
        next(e for e in trace if isinstance(e, events.Searched) and e.phase == "warmup"),
    )
    sha256 = read_earlier(first).sha256
    assert started.begun_from == sha256
    assert RunFolder(out).read_config().begun_from == sha256
    assert read_adapter_config(out / "adapter").begun_from == sha256
    assert read_adapter_config(first / "adapter").begun_from is None
    own = [unit.id for unit in config.units]
    assert sorted(warmed.active) == sorted(own)
    carried = started.settings["policy"]["carried"]
    audits = {
        row.unit
        for e in read_trace(first / "trace.jsonl")
        if isinstance(e, events.Audited)
        for row in e.rows
    }
    known = {unit for unit, estimate in carried.items() if estimate["audits"]}
    assert carried.keys() == set(own)
    assert known == audits & set(own)
    assert known
    assert any(
        f"({len(known)} of them audited there, so not again)" in sentence for sentence in said
    )
    again = {row.unit for e in trace if isinstance(e, events.Audited) for row in e.rows}
    assert again
    assert not again & known, "what the first run has audited is not audited again"

    old = names(first, "support") | names(first, "audit")
    assert old <= names(out, "support")
    assert not old & (names(out, "audit") | names(out, "test"))
    assert len(names(out, "audit")) == 1
    assert cli.run(["inspect", str(out), "--replay", "-q"]) == 0


def test_the_policy_begins_with_the_earlier_runs_tensors(asked, first):
    setup = prepare_run(later(asked, first), lambda _: None)
    assert not setup.model.bank.built
    assert not setup.model.head.weight.any(), (
        "the head alone, which is fitted first, begins at nothing"
    )
    _, tensors = load_adapter_files(first / "adapter")
    setup.earlier.begin(setup.model, tuple(setup.dataset.labels))
    own = {f"head/{k}": t for k, t in setup.model.head.state_dict().items()}
    own |= setup.model.bank.state_dict(setup.earlier.units)
    assert own.keys() == tensors.keys()
    assert all(own[name].equal(tensors[name]) for name in tensors)


def test_of_fewer_labels_the_head_keeps_its_rows(asked, first):
    setup = prepare_run(later(asked, first, labels=("spot",)), lambda _: None)
    setup.earlier.begin(setup.model, ("spot",))
    _, tensors = load_adapter_files(first / "adapter")
    assert setup.model.head.new == 1
    assert setup.model.head.weight[-1].equal(tensors["head/weight"][-1])


@pytest.mark.slow
def test_killed_and_resumed_without_the_earlier_run_it_ends_the_same(
    asked, first, tmp_path, monkeypatch
):
    monkeypatch.setattr(controller, "_REFIT_CHECKPOINT_EVERY", 3)
    adapt(later(asked, first, out=tmp_path / "whole"))
    moved = shutil.copytree(first, tmp_path / "moved")

    class Stop(Exception):
        pass

    for doing in ("warmup", "search", "refit"):
        out = tmp_path / doing

        def stop(event: events.Event, doing: str = doing) -> None:
            if isinstance(event, events.TrainingStep) and event.phase == doing:
                raise Stop

        with pytest.raises(Stop):
            adapt(later(asked, moved, out=out), stop)
    shutil.rmtree(moved)
    for doing in ("warmup", "search", "refit"):
        resume(tmp_path / doing)
        ends = [tmp_path / doing, tmp_path / "whole"]
        here, whole = (without_times(read_trace(end / "trace.jsonl")) for end in ends)
        assert here == whole
        here, whole = ((end / "adapter" / MODEL_NAME).read_bytes() for end in ends)
        assert here == whole


REFUSED = {
    "no new shot": ({"shots": 2}, DataError, "served as shots before"),
    "cv": ({"test": "cv"}, UsageError, "never saw it"),
    "another patch": ({"patch": (16, 16, 32)}, UsageError, "--patch 16,16,16"),
    "another voxel size": ({"spacing": (3.0, 3.0, 3.0)}, UsageError, "--spacing 2,2,2"),
    "another label": ({"labels": ("organ", "blob=2")}, UsageError, "no label blob"),
    "another profile": ({"profile": "swin"}, UsageError, "--profile swin"),
    "less budget": ({"budget": "2%"}, BudgetError, "raise --budget"),
    "another network": (
        {"weights": None, "backbone": "unet"},
        WeightsError,
        "its adapter is for tiny",
    ),
    "no run": ({"from_run": Path("nowhere")}, UsageError, "no run folder"),
}


def test_a_head_that_was_fitted_is_not_taken_for_one_that_is_kept(asked, first, tmp_path):
    profile = tmp_path / "new.toml"
    families = "[families.affine]\n[families.lora]\nlevels = [1, 2, 4, 8, 16]\n[families.tsa]\n"
    profile.write_text(f'budget = "20%"\nhead = "new"\n{families}')
    with pytest.raises(UsageError, match="more of the head"):
        prepare_run(later(asked, first, profile=str(profile)), lambda _: None)


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_before_anything_is_written(what, asked, first, tmp_path):
    others, kind, said = REFUSED[what]
    out = tmp_path / "out"
    with pytest.raises(SeaPeftError, match=said) as error:
        adapt(later(asked, first, **{"out": out, **others}))
    assert isinstance(error.value, kind)
    assert not out.exists()


def test_a_split_file_may_not_test_on_an_old_shot(asked, first, tmp_path):
    old = sorted(names(first, "support") | names(first, "audit"))
    new = sorted({f"toy_{i}" for i in range(5)} - set(old))
    split = tmp_path / "split.json"

    def prepared(**lists: list[str]):
        split.write_text(json.dumps(lists))
        return prepare_run(later(asked, first, shots=None, split=split), lambda _: None).split

    with pytest.raises(DataError, match=f"{old[0]} under test"):
        prepared(support=new, test=old[:1])
    with pytest.raises(DataError, match="under audit"):
        prepared(support=new, audit=old[:1])
    with pytest.raises(DataError, match="no case that is new"):
        prepared(support=old)
    parts = prepared(support=[*old, new[0]])
    assert [case.id for case in parts.audit] == [new[0]]
    assert {case.id for case in parts.test} == set(new[1:])
