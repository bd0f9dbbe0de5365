"""`adapt --add-label`: a new label where only that is drawn, and what the network knew before
and after.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import SHORTEST, TINY, install, tiny_weights, toy_dataset
from traces import without_times

from sea_peft import cli
from sea_peft.artefacts.adapter_file import MODEL_NAME, read_adapter_config
from sea_peft.artefacts.known_labels import KnownLabel, forgotten
from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.artefacts.trace import read_trace
from sea_peft.backbones.typed import Typed
from sea_peft.data.layouts import open_dataset
from sea_peft.data.volumes import Volume, read_volume, write_volume
from sea_peft.errors import SeaPeftError, UsageError
from sea_peft.jobs.adapt import adapt, resume
from sea_peft.jobs.adding import drawn_in
from sea_peft.jobs.evaluate import evaluate
from sea_peft.jobs.merge import merge
from sea_peft.jobs.model import load_adapter, open_backbone
from sea_peft.jobs.options import AdaptOptions
from sea_peft.jobs.predictor import Predictor
from sea_peft.jobs.setup import prepare_run
from sea_peft.jobs.weights_file import save_weights
from sea_peft.loop import controller, events


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network, with a bias by which its masks hold the organ and the other label."""
    first = tiny_weights(tmp_path_factory.mktemp("first"))
    network = open_backbone(Typed(weights=str(first))).pretrained.network
    image = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(image)
        network.get_submodule("conv_final.2").conv.bias += torch.stack(
            [-logits[:, row].median() for row in range(3)]
        )
    card = json.loads(first.with_suffix(".json").read_text())
    folder = tmp_path_factory.mktemp("weights")
    return save_weights(
        folder, network, {k: v for k, v in card.items() if k != "sha256"}, half=False
    ).with_suffix(".safetensors")


@pytest.fixture(autouse=True)
def installed(home: Path, weights: Path, own_home: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(home))
    install(weights)


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy data with nothing but the spot drawn, as 1."""
    root = toy_dataset(tmp_path_factory.mktemp("data") / "Dataset008_Spots")
    for path in (root / "labelsTr").iterdir():
        stored = read_volume(path)
        write_volume(path, Volume((stored.array == 2).astype(np.uint8), stored.affine))
    described = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(
        json.dumps({**described, "labels": {"background": 0, "spot": 1}})
    )
    return root


@pytest.fixture(scope="module")
def asked(spots: Path) -> AdaptOptions:
    return dataclasses.replace(
        SHORTEST, data=str(spots), weights="tiny", add_labels=("spot=1",), augment="none"
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, home: Path, weights: Path, spots: Path) -> Path:
    """As on the command line, with a gate that nothing passes."""
    folder = tmp_path_factory.mktemp("runs") / "spots"
    command = [
        "adapt",
        str(spots),
        "--weights",
        "tiny",
        "--add-label",
        "spot=1",
        "--budget",
        "20%",
        "--no-mlflow",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(home))
        install(weights)
        gated = ["--max-forget", "0", "--policy", "affine", "-q"]
        assert cli.run([*command, *TINY, "--out", str(folder), *gated]) == 7
    return folder


def test_everything_that_the_network_knew_is_kept_and_reported(run):
    config, result = read_adapter_config(run / "adapter"), RunFolder(run).read_result()
    assert config.labels == {"organ": [], "other": [], "spot": [1]}
    assert config.head.rows == [1, 2, None]
    assert config.recommended.network == "adapted"
    rules = [
        event.rules
        for event in read_trace(run / "trace.jsonl")
        if isinstance(event, events.PartsKept)
    ]
    assert [config.keep] == (rules or [{}])
    assert config.keep == result.keep
    assert result.dice.per_label.keys() == {"spot"}
    assert result.known.keys() == {"organ", "other"}, "the untrained network's masks hold both"
    assert all(
        label.before == 1 and 0.5 < label.after <= 1 and not label.drawn
        for label in result.known.values()
    )
    scored = [
        event for event in read_trace(run / "trace.jsonl") if isinstance(event, events.Scored)
    ]
    assert {event.on for event in scored if event.kept} == {"held_out", "test"}
    assert "unadapted network's masks" in (run / "report.md").read_text()


def test_where_nothing_is_drawn_the_unadapted_network_costs_nothing(asked):
    setup = prepare_run(asked, lambda _: None)
    model, crop = setup.model, torch.randn(1, 1, 16, 16, 16)
    opinion = model.opinion(crop)
    logits = model.backbone(crop)
    model.take_features(logits)
    assert torch.allclose(opinion[:, :3], logits.softmax(dim=1), atol=1e-6)
    assert not opinion[:, 3].any()
    assert model.head_gate, "the gate is open again"


@pytest.mark.slow
def test_where_the_data_draw_a_known_label_it_is_scored_and_not_learnt(asked, toy, tmp_path):
    drawn = dataclasses.replace(asked, data=str(toy), add_labels=("spot",), out=tmp_path / "drawn")
    setup = prepare_run(drawn, lambda _: None)
    assert setup.dataset.labels == {"organ": (), "other": (), "spot": (2,)}
    assert setup.scored == {"organ": (1,), "other": (), "spot": (2,)}
    known = adapt(drawn).known
    assert known["organ"].drawn
    assert 0 < known["organ"].before < 1
    assert not known["other"].drawn
    scores = {
        use: evaluate(tmp_path / "drawn", str(toy), cases="test", use=use)
        for use in ("unadapted", "adapted")
    }
    assert scores["adapted"].labels == ("organ", "spot")
    assert "other" in scores["adapted"].warnings[-1]
    for use, value in (("unadapted", known["organ"].before), ("adapted", known["organ"].after)):
        assert scores[use].mean("organ", "dice") == pytest.approx(value, abs=1e-6)


def test_labels_of_other_data_are_found_by_name(toy):
    opened = open_dataset(toy)
    assert drawn_in(opened, {"Organ": (), "other": (), "lesion": (2,)}) == {
        "Organ": (1,),
        "other": (),
        "lesion": (2,),
    }
    assert drawn_in(opened, {"organ": (), "lesion": (1,)})["organ"] == (), (
        "its code means something else here"
    )


def test_masks_hold_the_networks_own_numbers_and_the_new_label_behind_them(run, spots, tmp_path):
    scan = spots / "imagesTr" / "toy_4_0000.nii.gz"
    assert cli.run(
        ["predict", str(run), str(scan), "--out", str(tmp_path / "masks"), "--qc", "-q"]
    ) in (0, 7)
    sidecar = json.loads(next((tmp_path / "masks").glob("*.json")).read_text())
    assert sidecar["labels"] == {"background": 0, "organ": 1, "other": 2, "spot": 3}
    mask = read_volume(next((tmp_path / "masks").glob("*.nii.gz"))).array
    before = tmp_path / "before"
    assert (
        cli.run(["predict", str(run), str(scan), "--out", str(before), "--use", "unadapted", "-q"])
        == 0
    )
    assert set(np.unique(read_volume(next(before.glob("*.nii.gz"))).array)) <= {0, 1, 2}
    assert {1, 2} & set(np.unique(mask))
    assert (
        Predictor(run, device="cpu")
        .choice()
        .endswith("; --use both takes the labels known before from the unadapted one.")
    )


def test_with_both_networks_what_was_known_changes_only_where_the_new_label_is(
    run, spots, tmp_path
):
    case = open_dataset(spots).cases[-1]
    masks = {}
    for use in ("adapted", "unadapted", "both"):
        predictor = Predictor(run, device="cpu", use=use)
        head = predictor.model.head
        with (
            torch.no_grad()
        ):  # as after more steps: the spot is found, and the known labels have moved
            head.bias[-1] += 3.5
            head.bias[1] += 0.5
        masks[use] = predictor.label_map(case)
    new = masks["both"] == 3
    assert 0 < new.mean() < 0.9
    kept = {use: (masks[use] == masks["unadapted"])[~new].mean() for use in ("both", "adapted")}
    assert kept["both"] > 0.99 > kept["adapted"], (
        kept
    )  # not 1: overlapping windows differ in how much is left
    assert (masks["adapted"] == 3)[new].mean() > 0.5


def test_masks_of_both_networks_say_so(run, spots, tmp_path):
    scan = spots / "imagesTr" / "toy_4_0000.nii.gz"
    assert cli.run(
        ["predict", str(run), str(scan), "--out", str(tmp_path), "--use", "both", "--qc", "-q"]
    ) in (0, 7)
    assert json.loads(next(tmp_path.glob("*.json")).read_text())["network"] == "both"
    assert evaluate(run, str(spots), cases="test", use="both").network == "both"


def test_both_networks_are_refused_where_they_make_no_sense(asked, run, tmp_path, toy):
    with pytest.raises(UsageError, match="not one to merge"):
        merge(run, tmp_path / "both.safetensors", use="both")
    known = {"data": str(toy), "add_labels": (), "labels": ("organ=1",)}
    adapt(dataclasses.replace(asked, **known, out=tmp_path / "known"))
    with pytest.raises(UsageError, match="only labels that its backbone knew"):
        load_adapter(tmp_path / "known", use="both")


def test_the_merged_network_knows_all_labels_and_takes_another(run, asked, tmp_path):
    made = merge(run, tmp_path / "more.safetensors")
    assert made.labels == ("background", "organ", "other", "spot")
    wider = dataclasses.replace(
        asked, weights=str(tmp_path / "more.safetensors"), add_labels=("dot=1",)
    )
    assert tuple(prepare_run(wider, lambda _: None).dataset.labels) == (
        "organ",
        "other",
        "spot",
        "dot",
    )
    model, _ = load_adapter(run)
    assert model(torch.zeros(1, 1, 16, 16, 16)).shape[1] == 4


def test_what_was_lost_is_said_where_it_is_more_than_was_allowed(run):
    assert (run / "adapter" / MODEL_NAME).is_file(), "written all the same, with exit code 7"
    assert RunFolder(run).read_config().options.max_forget == 0
    known = [
        KnownLabel("liver", 0.912, 0.889, drawn=True),
        KnownLabel("aorta", 1.0, 0.985, drawn=False),
    ]
    assert forgotten(known, 2.5) is None
    assert forgotten([], 0) is None
    said = forgotten(known, 1)
    assert said.startswith(
        "liver has lost 2.3 Dice points (0.912 before, 0.889 now), more than --max-forget 1;"
    )
    assert "by 0.985, which is 1.5 points short of 1, more than --max-forget 1;" in forgotten(
        known[1:], 1
    )


REFUSED = {
    "a label that it knows": ({"add_labels": ("Organ=1",)}, "tiny knows organ already"),
    "labels to choose": ({"labels": ("spot",)}, "leave --label out"),
    "an earlier run": ({"from_run": Path("run")}, "seapeft merge RUN"),
    "a gate without labels": ({"add_labels": (), "max_forget": 1.0}, "only --add-label keeps that"),
    "no number of points": ({"max_forget": 101.0}, "--max-forget 101"),
    "a frozen head": ({"profile": "frozen.toml"}, "freezes the head"),
    "a code that is not there": ({"add_labels": ("spot=7",)}, "code 7 is not declared"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_go_together_is_refused_before_anything_is_written(what, asked, tmp_path):
    others, said = REFUSED[what]
    Path("frozen.toml").write_text('budget = "20%"\nhead = "frozen"\n[families.affine]\n')
    with pytest.raises(SeaPeftError, match=said):
        adapt(dataclasses.replace(asked, out=tmp_path / "out", **others))
    assert not (tmp_path / "out").exists()


def test_labels_that_one_adapter_cannot_hold_are_refused(asked, tmp_path, weights):
    def known(names: list[str]) -> AdaptOptions:
        for file in (weights, weights.with_suffix(".json")):
            shutil.copy(file, tmp_path)
        card = tmp_path / weights.with_suffix(".json").name
        card.write_text(
            json.dumps({**json.loads(card.read_text()), "labels": ["background", *names]})
        )
        return dataclasses.replace(asked, weights=str(tmp_path / weights.name))

    with pytest.raises(UsageError, match="calls two labels organ"):
        prepare_run(known(["organ", "organ"]), lambda _: None)
    with pytest.raises(UsageError, match="reads like a path"):
        prepare_run(known(["organ", "/home/me/organ"]), lambda _: None)


@pytest.mark.slow
def test_killed_and_resumed_it_ends_the_same(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(controller, "_REFIT_CHECKPOINT_EVERY", 3)
    adapt(dataclasses.replace(asked, out=tmp_path / "whole"))

    class Stop(Exception):
        pass

    for doing in ("head_only", "search", "refit"):

        def stop(event: events.Event, doing: str = doing) -> None:
            if isinstance(event, events.TrainingStep) and event.phase == doing:
                raise Stop

        with pytest.raises(Stop):
            adapt(dataclasses.replace(asked, out=tmp_path / doing), stop)
        resume(tmp_path / doing)
        ends = [tmp_path / doing, tmp_path / "whole"]
        here, whole = (without_times(read_trace(end / "trace.jsonl")) for end in ends)
        assert here == whole
        here, whole = ((end / "adapter" / MODEL_NAME).read_bytes() for end in ends)
        assert here == whole
