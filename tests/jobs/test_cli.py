"""Every verb as a user calls it: what is on stdout, what on stderr, and the exit code."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import AFFINE, TINY, toy_scan

from sea_peft import cli
from sea_peft.artefacts.store import open_store
from sea_peft.console import parse
from sea_peft.console.verb import outcome
from sea_peft.data.volumes import Volume, read_volume, write_volume
from sea_peft.errors import BudgetError

VERBS = [
    "adapt",
    "predict",
    "evaluate",
    "inspect",
    "report",
    "merge",
    "export",
    "backbones",
    "adapters",
    "data",
    "ui",
    "doctor",
]

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        caught = capsys.readouterr()
        assert "Traceback" not in caught.err or "--debug" in arguments
        assert "\x1b[" not in caught.out + caught.err  # no colours where there is no terminal
        return code, caught.out, caught.err

    return run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, toy: Path, weights: Path) -> Path:
    """A real run on the toy data, without MLflow."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    arguments = [
        "adapt",
        toy,
        "--weights",
        weights,
        "--out",
        folder,
        "--budget",
        "20%",
        "--no-mlflow",
        "-q",
        *TINY,
    ]
    assert cli.run([str(argument) for argument in arguments]) == 0
    return folder


def test_help_names_every_verb(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    assert all(verb in out for verb in VERBS)
    assert "not a medical device" in out


def test_no_verb_shows_the_help(call: Call) -> None:
    code, out, err = call()
    assert (code, err) == (2, "")
    assert "adapt" in out


def test_adapt_prints_one_json_document(
    call: Call, toy: Path, weights: Path, tmp_path: Path
) -> None:
    code, out, err = call(
        "adapt",
        toy,
        "--weights",
        weights,
        "--runs",
        tmp_path / "runs",
        "--budget",
        "20%",
        "--no-mlflow",
        "--json",
        *TINY,
    )
    assert code == 0
    result = json.loads(out)
    assert result["status"] == "done"
    assert (result["support_cases"], result["audit_cases"], result["test_cases"]) == (1, 1, 3)
    assert 0 < result["budget"]["used"] <= result["budget"]["limit"]
    assert set(result["dice"]) == {"unadapted", "head_only", "adapted", "per_label", "per_case"}
    run = Path(result["run"])
    kept = json.loads((run / "result.json").read_text())
    assert kept == {**result, "run": "."}  # a folder that is moved stays true
    assert "units on offer" in err
    assert "score on test cases: 3 of 3" in err
    everything = "".join(p.read_text() for p in run.rglob("*") if p.suffix in (".jsonl", ".md"))
    assert "toy_" not in everything  # case names stay in cases.json


def test_adapt_ends_in_a_table(call: Call, toy: Path, weights: Path, tmp_path: Path) -> None:
    code, out, err = call(
        "adapt",
        toy,
        "--weights",
        weights,
        "--out",
        tmp_path / "here",
        "--budget",
        "20%",
        "--no-mlflow",
        "-q",
        *TINY,
    )
    assert code == 0
    assert err == ""
    for words in (
        "unadapted",
        "head only",
        "adapted",
        "organ",
        "budget",
        "head",
        "seapeft inspect",
    ):
        assert words in out
    assert (
        max(len(line) for line in out.splitlines() if "seapeft" not in line) < 200
    )  # commands are whole, however long


def test_a_label_that_no_shot_holds_is_said(
    call: Call, toy: Path, weights: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(toy, tmp_path / "data")
    described = json.loads((data / "dataset.json").read_text())
    described["labels"]["ghost"] = 3
    (data / "dataset.json").write_text(json.dumps(described))
    _, _, err = call("adapt", data, "--weights", weights, "--budget", "20%", *TINY)
    assert "Label ghost is in none of the shots" in " ".join(err.split())
    assert "Label organ" not in err


def test_dry_run_writes_nothing(call: Call, toy: Path, weights: Path, tmp_path: Path) -> None:
    code, out, _ = call(
        "--json", "adapt", toy, "--weights", weights, "--budget", "20%", "--dry-run", *TINY
    )
    planned = json.loads(out)
    assert code == 0
    assert planned["data"]["new_labels"] == ["spot"]
    assert planned["steps"]["warmup"] + planned["steps"]["search"] + planned["steps"]["refit"] == 8
    assert planned["memory_bytes"] > 0
    assert planned["budget"]["counts"] == "parameters"
    assert planned["budget"]["limit"] == int(0.2 * planned["budget"]["whole"])
    assert planned["budget"]["whole"] == planned["backbone"]["parameters"]
    assert 8 * planned["seconds"]["step"] < planned["seconds"]["total"] < 600
    assert list(tmp_path.iterdir()) == []
    code, out, _ = call("adapt", toy, "--weights", weights, "--budget", "20%", "--dry-run", *TINY)
    assert "Nothing was trained" in out
    assert re.search(
        r"time +about \d+ (seconds|minutes) on this machine \([\d.]+ s a step, measured\)", out
    )


def test_inspect_says_why_and_why_not(call: Call, run_folder: Path) -> None:
    code, out, _ = call("inspect", run_folder, "--unit", "*")
    assert code == 0
    assert "On: " in out
    code, out, _ = call("inspect", run_folder / "adapter", "--json")
    document = json.loads(out)
    assert document["units"]
    assert all(unit["reason"] for unit in document["units"])
    assert sum(unit["on"] for unit in document["units"]) == len(
        json.loads((run_folder / "adapter" / "adapter_config.json").read_text())["units"]
    )
    assert call("inspect", run_folder, "--cycle", "99")[0] == 2
    assert call("inspect", run_folder, "--unit", "nothing*")[0] == 2
    assert call("inspect", run_folder.parent)[0] == 2


def test_report_is_one_page(call: Call, run_folder: Path) -> None:
    code, out, _ = call("report", run_folder)
    assert code == 0
    page = Path(out.strip())
    assert page.read_text().lstrip().lower().startswith("<!doctype html>")


def test_report_with_pictures_names_no_case(call: Call, run_folder: Path, weights: Path) -> None:
    code, out, err = call("report", run_folder, "--images", "--json", "--weights", weights)
    assert code == 0
    assert "pictures of patients' scans" in err
    page = Path(json.loads(out)["page"]).read_text()
    assert page.count("data:image/png") == 3
    assert "test cases: mean Dice" in page
    assert "toy_" not in page


def test_a_run_without_the_names_of_its_cases(
    call: Call, run_folder: Path, toy: Path, weights: Path, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shutil.copytree(run_folder, shared)
    (shared / "cases.json").unlink()
    code, out, err = call("evaluate", shared, toy, "--weights", weights, "--json")
    assert code == 0
    assert json.loads(out)["roles"] == {}
    assert (
        "cannot be read (No such file or directory), so shots of the run cannot be told apart from"
        " new cases." in err
    )
    assert call("evaluate", shared, toy, "--weights", weights, "--cases", "test")[0] == 2
    code, _, err = call("report", shared, "--images", "--weights", weights)
    assert code == 2
    assert "cases.json" in err
    assert "write the report without --images and --explain" in err


def test_evaluate_agrees_with_the_run(
    call: Call, run_folder: Path, toy: Path, weights: Path
) -> None:
    code, out, err = call(
        "evaluate", run_folder, toy, "--weights", weights, "--cases", "test", "--json"
    )
    result = json.loads((run_folder / "result.json").read_text())
    scores = json.loads(out)
    assert code == 0
    assert scores["dice"] == pytest.approx(result["dice"]["adapted"], abs=1e-9)
    assert set(scores["roles"].values()) == {"test"}
    names = json.loads((run_folder / "cases.json").read_text())
    for hashed, dice in result["dice"]["per_case"].items():
        found = {label: row["dice"] for label, row in scores["per_case"][names[hashed]].items()}
        assert found == pytest.approx(dice, abs=1e-9)
    code, _, err = call("evaluate", run_folder, toy, "--weights", weights)
    assert "Of 5 cases, 2 served as shots of this run" in err


def test_evaluate_as_a_gate(call: Call, adapter: Path, toy: Path, weights: Path) -> None:
    code, out, err = call(
        "evaluate", adapter, toy, "--weights", weights, "--min-dice", "1", "--json"
    )
    assert code == 7
    assert json.loads(out)["dice"] < 1
    assert "below --min-dice 1" in err
    assert call("evaluate", adapter, toy, "--weights", weights, "--min-dice", "0")[0] == 0
    assert call("evaluate", adapter, toy, "--weights", weights, "--min-dice", "80")[0] == 2


def test_predict(call: Call, adapter: Path, toy: Path, weights: Path, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(toy / "imagesTr" / "toy_0_0000.nii.gz", scans / "a.nii.gz")
    code, out, _ = call("predict", adapter, scans, "--out", tmp_path / "m", "--weights", weights)
    assert code == 0
    assert "organ (ml)" in out
    (scans / "b.nii.gz").write_bytes(b"")
    code, out, err = call(
        "predict", adapter, scans, "--out", tmp_path / "n", "--weights", weights, "--json"
    )
    document = json.loads(out)
    assert code == 8
    assert (document["done"], document["failed"]) == (1, 1)
    assert "b.nii.gz is empty (0 bytes)" in err
    assert call("predict", adapter, scans, "--out", tmp_path / "m", "--weights", weights)[0] == 2


def test_data_verbs(call: Call, toy: Path, weights: Path, tmp_path: Path) -> None:
    code, out, err = call("data", "check", toy, "--shots", "2", "--weights", weights)
    assert code == 0
    assert "5 of 5 labelled cases can be used" in out
    assert err == "check: 5 of 5\n"
    pair = tmp_path / "two"
    for folder in ("images", "labels"):
        (pair / folder).mkdir(parents=True)
    for number in range(2):
        image, label = toy_scan(number)
        write_volume(pair / "images" / f"c{number}.nii.gz", Volume(image, AFFINE))
        write_volume(pair / "labels" / f"c{number}.nii.gz", Volume(label, AFFINE))
    code, out, err = call("data", "check", pair)
    assert code == 0
    assert "phantom_segresnet knows none of the labels by name (label_1, label_2)" in err
    assert "it knows liver, spleen" in err
    named = ("--label", "liver=1", "--label", "other=2")
    assert "by name" not in call("data", "check", pair, *named)[2]
    assert call("data", "check", pair, "--weights", "nothing")[0] == 5
    code, out, _ = call("data", "init", pair, "--json")
    assert code == 0
    assert json.loads(out)["cases"] == 2
    assert call("data", "init", pair)[0] == 3
    code, out, _ = call("data", "phantom", "low-dose-ct", "--out", tmp_path / "ph", "--cases", "1")
    assert code == 0
    assert read_volume(next((tmp_path / "ph" / "imagesTr").iterdir())).array.ndim == 3
    code, _, _ = call(
        "data", "phantom", "low-dose-ct", "--out", tmp_path / "next", "--cases", "1", "--skip", "1"
    )
    first, second = (next((tmp_path / name / "imagesTr").iterdir()) for name in ("ph", "next"))
    assert code == 0
    assert first.name != second.name
    assert (
        call(
            "data",
            "phantom",
            "low-dose-ct",
            "--out",
            tmp_path / "q",
            "--cases",
            "1",
            "--skip",
            "-1",
        )[0]
        == 2
    )
    assert call("data", "phantom", "nowhere", "--out", tmp_path / "q", "--cases", "1")[0] == 3


def test_data_check_shows_everything_then_refuses(call: Call, toy: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(toy, broken)
    image = toy_scan(0)[0].astype(np.float32)
    image[0, 0, 0] = np.nan
    write_volume(broken / "imagesTr" / "toy_0_0000.nii.gz", Volume(image, AFFINE))
    write_volume(
        broken / "labelsTr" / "toy_1.nii.gz", Volume(np.zeros(image.shape, np.uint8), AFFINE)
    )
    code, out, err = call("data", "check", broken, "--json")
    assert code == 3
    assert len([f for f in json.loads(out)["findings"] if f["severity"] == "error"]) == 2
    assert "NaN" in err


def test_listings(call: Call, weights: Path) -> None:
    code, out, _ = call("backbones", "list", "--json")
    assert code == 0
    assert "segresnet" in {row["architecture"] for row in json.loads(out)}
    code, out, _ = call("backbones", "info", weights)
    assert code == 0
    assert "organ, other" in out
    assert "sides are multiples of 8 and at least 16" in " ".join(out.split())
    code, out, _ = call("backbones", "info", weights, "--json")
    assert code == 0
    assert (json.loads(out)["divisor"], json.loads(out)["minimum"]) == ([8, 8, 8], [16, 16, 16])
    code, out, _ = call("adapters", "list", "--weights", weights, "--units")
    assert code == 0
    assert "affine@" in out
    assert call("backbones", "info", "nothing")[0] == 5


def test_memory_that_runs_out_is_said_whoever_says_it_first() -> None:
    with pytest.raises(RuntimeError) as of_the_cpu:
        torch.empty(1 << 55)
    for error in (of_the_cpu.value, torch.OutOfMemoryError("CUDA out of memory."), MemoryError()):
        sentence, code = outcome(error)
        assert (code, "--patch" in sentence) == (6, True), sentence
    assert outcome(RuntimeError("shapes differ"))[1] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["adapt", "nowhere"], 3, "no such folder"),
        (["adapt", "{toy}", "--label", "orgam"], 3, "did you mean 'organ'"),
        (["adapt", "{toy}", "--shots", "10"], 3, "10 shots were asked for"),
        (["adapt", "{toy}", "--budget", "1"], 2, "write 1% for one per cent"),
        (["adapt", "{toy}", "--budget", "3", "--shots", "2"], 4, "fits no unit"),
        (["adapt", "{toy}", "--weights", "nothing"], 5, "No weights are called 'nothing'"),
        (["adapt", "{toy}", "--device", "cuda:7"], 6, "use --device cpu"),
        (["adapt", "{toy}", "--policy", "best"], 2, "No policy is called 'best'"),
        (["adapt", "{toy}", "--patch", "16,16"], 2, "write three whole numbers"),
        (["adapt", "{toy}", "--shots", "many"], 2, "--shots"),
        (["adapt", "--resume", "nowhere"], 2, "no run folder"),
        (["adapt", "--resume", "nowhere", "--seed", "3"], 2, "give --resume alone"),
        (["adapd"], 2, "Did you mean 'adapt'"),
        (["predict", "nowhere", "nowhere", "--out", "o"], 5, "no adapter folder"),
        (["ui", "--runs", "nowhere"], 2, "No run is logged"),
        (["report", "nowhere"], 2, "no run folder"),
    ],
)
def test_one_sentence_and_the_right_exit_code(
    call: Call,
    toy: Path,
    weights: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    filled = [argument.format(toy=toy) for argument in arguments]
    if arguments[0] == "adapt" and "--weights" not in arguments and "--resume" not in arguments:
        filled += ["--weights", str(weights)]
    found, out, err = call("-q", *filled)
    assert found == code
    assert out == ""
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []  # nothing half-written
    found, out, _ = call(*filled, "--json")
    assert found == code
    document = json.loads(out)
    assert document["exit_code"] == code
    assert words in document["error"]


def test_internal_errors(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("by chance")

    monkeypatch.setattr("sea_peft.jobs.listing.list_backbones", broken)
    code, out, err = call("backbones", "list")
    assert code == 1
    assert out == ""
    assert err == "Internal error: ZeroDivisionError: by chance (--debug shows the traceback)\n"
    code, _, err = call("backbones", "list", "--debug")
    assert code == 1
    assert "Traceback" in err


def test_debug_shows_where_an_expected_error_comes_from(call: Call) -> None:
    code, _, err = call("--debug", "adapt", "nowhere")
    assert code == 3
    assert "Traceback" in err
    assert err.strip().splitlines()[-1].startswith("no such folder")


def test_an_interrupted_run_says_how_to_go_on(
    call: Call, toy: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    options = [toy, "--weights", weights, "--budget", "20%", "--no-mlflow", *TINY]
    with monkeypatch.context() as patched:
        patched.setattr("sea_peft.loop.audit.Auditor.audit", interrupted)
        code, out, err = call("adapt", *options, "--runs", tmp_path / "runs")
    assert code == 130
    assert out == ""
    (folder,) = (tmp_path / "runs").iterdir()
    again = (  # a file that a run names is not opened unasked
        f"seapeft adapt --resume {folder} --weights {weights}"
    )
    assert err.strip().splitlines()[-1] == f"Interrupted; go on with `{again}`."
    code, out, _ = call("adapt", "--resume", folder, "--weights", weights, "--json")
    assert code == 0
    assert json.loads(out)["status"] == "done"
    assert call("adapt", "--resume", folder)[0] == 2
    with monkeypatch.context() as patched:
        patched.setattr("sea_peft.jobs.adapt.adapt", interrupted)
        code, _, err = call("adapt", *options, "--runs", tmp_path / "other")
    assert (code, err) == (130, "Interrupted before the run began.\n")


def test_the_hint_names_the_run_that_was_interrupted_and_not_its_neighbour(
    call: Call, toy: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        neighbour = tmp_path / "runs" / "neighbour"
        neighbour.mkdir()
        (neighbour / "trace.jsonl").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("sea_peft.loop.audit.Auditor.audit", interrupted)
    options = [toy, "--weights", weights, "--budget", "20%", "--no-mlflow", *TINY]
    code, _, err = call("adapt", *options, "--runs", tmp_path / "runs")
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if path.name != "neighbour")
    assert code == 130
    again = (  # a file that a run names is not opened unasked
        f"seapeft adapt --resume {folder} --weights {weights}"
    )
    assert err.strip().splitlines()[-1] == f"Interrupted; go on with `{again}`."


def test_a_run_is_resumed_from_elsewhere_in_its_own_store_and_profile(
    call: Call, toy: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    (here / "my.toml").write_text('budget = "20%"\n[families.affine]\n')
    monkeypatch.chdir(here)
    with monkeypatch.context() as patched:
        patched.setattr("sea_peft.loop.audit.Auditor.audit", interrupted)
        assert call("adapt", toy, "--weights", weights, "--profile", "my.toml", *TINY)[0] == 130
    (config,) = (here / "runs").glob("*/config.json")
    monkeypatch.chdir(elsewhere)
    code, out, err = call("adapt", "--resume", config.parent, "--weights", weights, "--json")
    assert code == 0, err
    assert list(elsewhere.iterdir()) == []
    store, run_id = open_store(here / "runs"), json.loads(out)["mlflow_run_id"]
    assert store.get_run(run_id).info.status == "FINISHED"
    monkeypatch.chdir(here / "runs")  # places of artifacts are relative to it
    assert "report.md" in [item.path for item in store.list_artifacts(run_id)]
    assert store.list_artifacts(run_id, "images") == [], (
        "pixels are logged where --log-images asks for them"
    )


def test_pictures_go_into_mlflow_where_they_are_asked_for(
    call: Call, toy: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # places of artifacts are relative to it
    options = [
        toy,
        "--weights",
        weights,
        "--budget",
        "20%",
        "--policy",
        "affine",
        "--log-images",
        "--json",
        *TINY,
    ]
    code, out, err = call("adapt", *options, "--out", tmp_path / "run")
    assert code == 0, err
    store, run_id = open_store(tmp_path), json.loads(out)["mlflow_run_id"]
    assert [item.path for item in store.list_artifacts(run_id, "images")] == [
        f"images/{role}.png" for role in ("best", "median", "worst")
    ]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "data": "gone"}))
    code, _, err = call("report", tmp_path / "run", "--mlflow", "--weights", weights)
    assert code == 0
    assert "MLflow gets no pictures of the run: no such folder" in err


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        (
            "predict",
            "Interrupted; what is done is kept, and the same command with --resume goes on.",
        ),
        ("evaluate", "Interrupted."),
    ],
)
def test_an_interrupt_with_json_is_one_document(
    call: Call,
    adapter: Path,
    toy: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    said: str,
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sea_peft.jobs.predictor.Predictor.probabilities", interrupted)
    out_folder = ["--out", tmp_path / "out"]
    code, out, err = call(verb, adapter, toy, "--weights", weights, *out_folder, "--json")
    assert code == 130
    assert json.loads(out) == {"status": "interrupted", "error": said, "exit_code": 130}
    assert err.strip().splitlines()[-1] == said


def test_out_of_memory_is_no_internal_error(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise MemoryError

    monkeypatch.setattr("sea_peft.jobs.listing.list_backbones", broken)
    assert call("backbones", "list")[0] == 6


def test_budget_errors_from_a_job_keep_their_sentence(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BudgetError("[bold]nothing[/bold] fits")  # no markup is read into it

    monkeypatch.setattr("sea_peft.jobs.adapt.adapt", refuse)
    code, _, err = call("adapt")
    assert (code, err) == (4, "[bold]nothing[/bold] fits\n")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90.0), ("20m", 1200.0), ("2h", 7200.0), ("1h30m", 5400.0), ("0.5m", 30.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse.duration(text) == seconds


@pytest.mark.parametrize("text", ["20", "", "m", "0s", "-5m", "5 d"])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(Exception, match="write 90s"):
        parse.duration(text)


def test_sizes() -> None:
    assert parse.size("48,48,32") == (48, 48, 32)
    assert parse.size("48x48x32") == (48, 48, 32)
    assert parse.millimetres("1.5") == (1.5, 1.5, 1.5)
    assert parse.millimetres("1,1,2.5") == (1.0, 1.0, 2.5)
    for text in ("0,1,1", "a", "1,2"):
        with pytest.raises(Exception, match="write three numbers"):
            parse.millimetres(text)
