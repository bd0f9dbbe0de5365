"""What a run is scored on: test cases, its own shots by leave-one-out, or nothing; and what it
recommends.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from toys import SHORTEST, install
from traces import without_times

from sea_peft.artefacts.adapter_file import read_adapter_config
from sea_peft.artefacts.result import Result
from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.artefacts.trace import read_trace
from sea_peft.backbones.typed import Typed
from sea_peft.data.codes import IGNORED
from sea_peft.data.digest import case_hash
from sea_peft.data.hold_out import hold_out_labels
from sea_peft.data.prepare import prepare
from sea_peft.data.volumes import Volume, read_volume, write_volume
from sea_peft.errors import DataError, UsageError
from sea_peft.jobs.adapt import adapt, resume
from sea_peft.jobs.evaluate import evaluate
from sea_peft.jobs.merge import merge
from sea_peft.jobs.options import AdaptOptions
from sea_peft.jobs.pictures import case_pictures, revisit
from sea_peft.jobs.predict import predict
from sea_peft.jobs.scoring import score_held_out_labels
from sea_peft.jobs.setup import prepare_run
from sea_peft.loop import events


@pytest.fixture(autouse=True)
def installed(weights: Path, own_home: None) -> None:
    """The weights are known by the name that a run has for them, so that it is opened without
    them being typed again.
    """
    install(weights)


def options(data: Path, weights: Path, out: Path, **changes: object) -> AdaptOptions:
    """The shortest run there is, of a policy without audits."""
    short = dataclasses.replace(
        SHORTEST,
        data=str(data),
        weights=str(weights),
        out=out,
        policy="affine",
        labels=("organ",),
    )
    return dataclasses.replace(short, **changes)


def ran(folder: Path, **changes: object) -> tuple[Result, list[events.Event]]:
    given = options(**changes, out=folder)  # type: ignore[arg-type]
    result = adapt(given)
    return result, read_trace(folder / "trace.jsonl")


def of(trace: list[events.Event], kind: type) -> list:
    return [event for event in trace if isinstance(event, kind)]


@pytest.fixture(scope="module")
def on_cases(tmp_path_factory, toy, weights):
    return ran(tmp_path_factory.mktemp("runs") / "cases", data=toy, weights=weights)


@pytest.fixture(scope="module")
def by_cv(tmp_path_factory, toy, weights):
    return ran(tmp_path_factory.mktemp("runs") / "cv", data=toy, weights=weights, test="cv")


def test_search_and_choice_are_the_same_with_and_without_test_cases(
    on_cases, toy, weights, tmp_path
):
    """Whatever a run measures before its recommendation does not depend on there being test
    cases.
    """
    with_tests, trace = on_cases
    without, other = ran(tmp_path / "none", data=toy, weights=weights, test="none")

    def before(trace: list[events.Event]) -> list[events.Event]:
        kept = [e for e in without_times(trace[1:]) if not isinstance(e, events.Recommended)]
        return [e for e in kept if not (isinstance(e, events.Scored) and e.on != "held_out")]

    assert before(trace) == before(other)
    assert of(trace, events.RunStarted)[0].split["test"] != []
    assert of(other, events.RunStarted)[0].split["test"] == []
    assert [e.on for e in of(other, events.Scored)] == ["held_out"] * 3
    assert (with_tests.test, with_tests.test_cases) == ("cases", 3)
    assert (without.test, without.test_cases) == ("none", 0)
    assert (without.dice.unadapted, without.dice.head_only, without.dice.adapted) == (
        None,
        None,
        None,
    )
    assert without.held_out == with_tests.held_out
    assert without.held_out is not None
    assert without.held_out.adapted is not None
    assert "Not scored on unseen scans" in (tmp_path / "none" / "report.md").read_text()


def test_the_recommendation_comes_after_the_last_score_and_goes_into_the_adapter(on_cases):
    result, trace = on_cases
    kinds = [e.kind for e in trace]
    assert kinds[-5:] == ["scored", "scored", "scored", "recommended", "run_finished"]
    assert result.recommended is not None
    assert read_adapter_config(Path(result.run) / "adapter").recommended == result.recommended


def test_leave_one_out_scores_every_shot_by_what_never_saw_it(by_cv):
    result, trace = by_cv
    folds = of(trace, events.Folded)
    shots = {
        case
        for role in ("support", "audit")
        for case in of(trace, events.RunStarted)[0].split[role]
    }
    assert {case for fold in folds for case in fold.split["test"]} == shots
    for fold in folds:
        seen = {*fold.split["support"], *fold.split["audit"]}
        assert seen == shots - set(fold.split["test"])
    assert (result.test, result.test_cases) == ("cv", 0)
    assert set(result.dice.per_case) == shots
    last = {e.arm: e for e in of(trace, events.Scored) if e.on == "cv"}
    assert set(last) == {"unadapted", "head_only", "adapted"}
    for fold in folds:
        (case,) = fold.split["test"]
        assert fold.dice["adapted"] == last["adapted"].per_case[case]


def test_what_is_fitted_without_a_shot_does_not_depend_on_its_labels(toy, weights, tmp_path):
    """The labels of one shot are replaced by nonsense: only what was made with it may come out
    differently, at any training step.
    """

    def steps(data: Path, folder: Path) -> dict[str, list[float]]:
        losses: dict[str, list[float]] = {}

        def listen(event: events.Event) -> None:
            if isinstance(event, events.TrainingStep) and event.phase.startswith("without"):
                losses.setdefault(event.phase, []).append(event.loss)

        adapt(options(data, weights, folder, test="cv"), listen)
        return losses

    before = steps(toy, tmp_path / "run")
    data = shutil.copytree(toy, tmp_path / "data")
    parts = prepare_run(options(data, weights, tmp_path / "x", test="cv"), lambda _: None).split
    for number, case in enumerate(parts.shots):
        file = data / "labelsTr" / f"{case.id}.nii.gz"
        whole = read_volume(file)
        write_volume(file, Volume(np.roll(whole.array, 5, axis=0).astype(np.uint8), whole.affine))
        after = steps(data, tmp_path / f"run{number}")
        shutil.copy(toy / "labelsTr" / f"{case.id}.nii.gz", file)
        mine = f"without shot {number + 1} of 2"
        assert before.keys() == after.keys() >= {mine, f"{mine}, the head alone"}
        assert {phase: before[phase] == after[phase] for phase in before} == {
            phase: phase.startswith(mine) for phase in before
        }


@pytest.mark.parametrize(
    "stop", ["in the first part", "while it is scored", "after it", "in the run itself"]
)
def test_leave_one_out_goes_on_where_it_was_ended(by_cv, toy, weights, tmp_path, stop):
    folder, seen = tmp_path / "run", []

    def listen(event: events.Event) -> None:
        seen.append(event)
        folded = sum(isinstance(e, events.Folded) for e in seen)
        step = isinstance(event, events.TrainingStep)
        if (
            stop == "in the first part"
            and step
            and event.phase == "without shot 1 of 2"
            and event.step == 6
        ):
            raise KeyboardInterrupt
        if stop == "while it is scored" and step and folded == 0 and event.phase == "held_out":
            raise KeyboardInterrupt
        if (
            stop == "after it"
            and step
            and folded == 1
            and event.step == 2
            and event.phase.startswith("without")
        ):
            raise KeyboardInterrupt
        if stop == "in the run itself" and step and folded == 2 and event.phase == "refit":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(options(toy, weights, folder, test="cv"), listen)
    result = resume(folder)
    assert without_times(read_trace(folder / "trace.jsonl")) == without_times(by_cv[1])
    assert result.dice == by_cv[0].dice


@pytest.mark.parametrize("shots", [1, 5])
def test_all_labelled_scans_can_be_shots(toy, weights, tmp_path, shots):
    data = toy
    if shots == 1:
        data = shutil.copytree(toy, tmp_path / "one")
        for file in [f for f in data.rglob("toy_*") if "toy_0" not in f.name]:
            file.unlink()
        described = json.loads((data / "dataset.json").read_text())
        (data / "dataset.json").write_text(json.dumps({**described, "numTraining": 1}))
    warned: list[str] = []
    result = adapt(options(data, weights, tmp_path / "run", shots=shots), warn=warned.append)
    assert (result.shots, result.test, result.dice.adapted) == (shots, "none", None)
    assert result.held_out is not None
    assert result.held_out.adapted is not None
    scored = [
        e for e in read_trace(tmp_path / "run" / "trace.jsonl") if isinstance(e, events.Scored)
    ]
    assert {e.on for e in scored} == {"held_out_labels" if shots == 1 else "held_out"}
    known = read_adapter_config(tmp_path / "run" / "adapter").quality
    assert known is not None
    assert known.labels["organ"].shots == shots
    held_out = {e.arm: e for e in scored}
    for network, (trust,) in known.held_out.items():
        assert trust["organ"].dice == held_out[network].per_label["organ"]
    assert known.held_out.keys() == {"adapted", "unadapted"}
    assert any(
        "not scored on unseen scans: no labelled scan is left" in sentence for sentence in warned
    )


def test_held_out_labels_are_scored_through_windows_over_the_whole_scan(toy, weights, tmp_path):
    """By hand: MONAI's sliding window over the shot, and of its voxels those whose labels were
    held out.
    """
    setup = prepare_run(options(toy, weights, tmp_path / "run", shots=1), lambda _: None)
    (case,) = setup.split.shots
    shot = prepare(case, setup.recipe, setup.dataset.channels, setup.dataset.labels)
    head = {name: torch.zeros_like(t) for name, t in setup.model.head.state_dict().items()}
    head["bias"][setup.model.head.rows[0]] = 20.0  # the organ everywhere
    apart = hold_out_labels(shot)[1]
    found = score_held_out_labels(setup, apart, head, False, tmp_path, lambda done, of: None).dice
    setup.model.head.load_state_dict(head)
    held = apart.label.numpy()
    for arm, gate in (("unadapted", False), ("head_only", True)):
        setup.model.head_gate = gate
        with torch.no_grad():
            planes = sliding_window_inference(
                shot.image[None],
                setup.window.patch,
                1,
                lambda x: setup.model(x).softmax(dim=1),
                overlap=setup.window.overlap,
                mode="gaussian",
            )
        p, r = (
            a[held != IGNORED] == 1 for a in (planes[0].argmax(dim=0).numpy(), shot.label.numpy())
        )
        expected = 2 * (p & r).sum() / (p.sum() + r.sum())
        assert found[arm][case_hash(case.id, setup.salt)]["organ"] == pytest.approx(expected)
    assert expected > 0


def test_a_split_file_names_the_cases_and_their_number(toy, weights, tmp_path):
    file = tmp_path / "split.json"
    file.write_text(
        json.dumps({"support": ["toy_4", "toy_1"], "audit": ["toy_0"], "test": ["toy_2"]})
    )
    given = options(toy, weights, tmp_path / "run", split=file, shots=None)
    setup = prepare_run(given, lambda _: None)
    names = {
        role: [c.id for c in getattr(setup.split, role)] for role in ("support", "audit", "test")
    }
    assert names == json.loads(file.read_text())
    assert setup.shots == 3
    with pytest.raises(UsageError, match=r"--shots 2 and split\.json, which names 3"):
        prepare_run(dataclasses.replace(given, shots=2), lambda _: None)
    file.write_text(json.dumps({"support": ["toy_9"]}))
    with pytest.raises(DataError, match="names case toy_9"):
        prepare_run(given, lambda _: None)


def test_cases_that_a_split_file_leaves_out_are_not_looked_at(toy, weights, tmp_path):
    data = shutil.copytree(toy, tmp_path / "data")
    (data / "imagesTr" / "toy_3_0000.nii.gz").write_bytes(b"damaged")
    file = tmp_path / "split.json"
    given = options(data, weights, tmp_path / "run", split=file, shots=None)
    file.write_text(json.dumps({"support": ["toy_1"], "test": ["toy_2"]}))
    assert prepare_run(given, lambda _: None).tested_on == "cases"
    file.write_text(json.dumps({"support": ["toy_1"]}))
    with pytest.raises(DataError, match="toy_3"):
        prepare_run(given, lambda _: None)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"test": "cv", "shots": 1}, "needs --shots 2"),
        ({"test": "some"}, "--test some is not known"),
        ({"test": 0}, "--test 0 is not a number of test cases"),
    ],
)
def test_what_cannot_be_asked_for(toy, weights, tmp_path, changes, sentence):
    with pytest.raises(UsageError, match=sentence):
        prepare_run(options(toy, weights, tmp_path / "run", **changes), lambda _: None)


def test_a_split_that_changed_meanwhile_is_not_resumed(toy, weights, tmp_path):
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"support": ["toy_1"], "test": ["toy_2", "toy_3"]}))

    def listen(event: events.Event) -> None:
        if isinstance(event, events.Searched):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(options(toy, weights, tmp_path / "run", split=file, shots=None), listen)
    file.write_text(json.dumps({"support": ["toy_3"], "test": ["toy_2", "toy_1"]}))
    with pytest.raises(UsageError, match="split"):
        resume(tmp_path / "run")


def recommending(adapter: Path, network: str, to: Path) -> Path:
    """A copy of an adapter whose run recommends this network."""
    shutil.copytree(adapter, to)
    file = to / "adapter_config.json"
    config = json.loads(file.read_text())
    config["recommended"] = {"network": network, "evidence": "12 test cases: -3.0 ± 1.0 points"}
    file.write_text(json.dumps(config))
    return to


def test_predictions_use_what_the_run_recommends_and_say_so(adapter, toy, weights, tmp_path):
    scan = toy / "imagesTr" / "toy_0_0000.nii.gz"
    both = {
        network: recommending(adapter, network, tmp_path / network)
        for network in ("adapted", "unadapted")
    }

    def mask(name: str, **given: object) -> np.ndarray:
        said: list[str] = []
        folder = both[name]
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        (status,) = predict(
            folder, [scan], out, typed=Typed(weights=str(weights)), say=said.append, **given
        )  # type: ignore[arg-type]
        network = str(given.get("use") or name)
        assert status.network == network
        assert said[0].startswith(
            f"Using the {network} network, as"
            f" {'asked' if network != name else 'the run recommends'}"
        )
        sidecar = json.loads((out / "toy_0.json").read_text())
        assert (sidecar["network"], sidecar["recommended"]["network"]) == (network, name)
        return np.asarray(read_volume(out / status.mask).array)

    with_adapter, without = mask("adapted"), mask("unadapted")
    assert not np.array_equal(with_adapter, without)
    assert np.array_equal(mask("unadapted", use="adapted"), with_adapter)
    assert np.array_equal(mask("adapted", use="unadapted"), without)
    scores = evaluate(both["unadapted"], str(toy), typed=Typed(weights=str(weights)), device="cpu")
    assert scores.network == "unadapted"
    assert scores.document()["network"] == "unadapted"


def test_a_network_that_is_not_known_is_refused(adapter, toy, weights, tmp_path):
    there = "--use neither is not known; there are adapted, unadapted, both"
    with pytest.raises(UsageError, match=there):
        predict(
            adapter,
            [toy / "imagesTr"],
            tmp_path / "out",
            typed=Typed(weights=str(weights)),
            use="neither",
        )


def test_merging_what_is_not_to_be_used_is_refused(adapter, weights, tmp_path):
    against = recommending(adapter, "unadapted", tmp_path / "against")
    with pytest.raises(UsageError, match=r"recommends the unadapted network .* --use adapted"):
        merge(against, tmp_path / "out.safetensors", Typed(weights=str(weights)))
    assert not (tmp_path / "out.safetensors").exists()
    assert (
        merge(against, tmp_path / "out.safetensors", Typed(weights=str(weights)), "adapted").units
        == 2
    )


def test_a_label_that_lost_has_a_picture_of_its_own(on_cases, tmp_path):
    """The trace is made to say that the unadapted backbone found the organ, which the adapter
    does not.
    """
    folder = RunFolder(Path(shutil.copytree(on_cases[0].run, tmp_path / "run")))
    lines = folder.trace.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        if row["event"] == "scored" and row["on"] == "test" and row["arm"] == "unadapted":
            row.update(
                dice=0.99,
                per_label={"organ": 0.99},
                per_case={case: {"organ": 0.99} for case in row["per_case"]},
            )
    folder.trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = revisit(folder, device="cpu", use="adapted")
    assert [lost.label for lost in run.lost] == ["organ"]
    captions = [picture.caption for picture in case_pictures(run)]
    assert len(captions) == len(run.shown) + 1
    assert captions[-1].startswith("organ lost by the adapter (0.990 → ")


def test_pictures_show_the_network_that_is_used(on_cases, tmp_path):
    folder = RunFolder(Path(on_cases[0].run))
    shown = {
        network: revisit(folder, device="cpu", use=network) for network in ("adapted", "unadapted")
    }
    scored = {e.arm: e.per_case for e in of(on_cases[1], events.Scored) if e.on == "test"}
    for network, run in shown.items():
        assert run.network == network
        assert all(case.dice in scored[network].values() for case in run.shown)
    assert "by the unadapted network" in case_pictures(shown["unadapted"])[0].caption
