"""Files of a stranger: nothing that they name runs or is opened as a path, and what they state
is checked before it is believed.
"""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from toys import TINY, install

import sea_peft
from sea_peft import cli
from sea_peft.backbones.typed import Typed
from sea_peft.backbones.weights import load_typed
from sea_peft.errors import WeightsError
from sea_peft.jobs.adapt import adapt
from sea_peft.jobs.options import AdaptOptions
from sea_peft.loop import events

Call = Callable[..., tuple[int, str, str]]

TRAP = """
import pathlib
pathlib.Path(__file__).with_name("PWNED").touch()
def factory(**_):
    raise AssertionError
"""


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that can be imported, and leaves this file behind when it is."""
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "trap.py").write_text(TRAP)
    monkeypatch.syspath_prepend(tmp_path / "stranger")
    return tmp_path / "stranger" / "PWNED"


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory, toy: Path, weights: Path) -> Path:
    """A run that was ended while it scored the test cases."""
    folder = tmp_path_factory.mktemp("runs") / "broken-off"

    def stop(event: events.Event) -> None:
        if isinstance(event, events.Scored):
            raise KeyboardInterrupt

    options = AdaptOptions(
        data=str(toy),
        weights=str(weights),
        shots=3,
        budget="4%",
        policy="affine",
        steps=6,
        cycles=1,
        mlflow=False,
        out=folder,
    )
    with pytest.raises(KeyboardInterrupt):
        adapt(options, stop)
    return folder


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def with_code(card: dict[str, Any]) -> None:
    card |= {"architecture": "trap:factory", "kwargs": {"command": "touch PWNED"}}


def one_sentence(err: str) -> str:
    assert "Traceback" not in err
    assert "Internal error" not in err
    (sentence,) = [line for line in err.splitlines() if not line.startswith("warning: ")]
    return sentence


# -- nothing runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["nothing", "another architecture", "other code"])
@pytest.mark.parametrize("verb", ["adapt", "predict", "evaluate", "merge", "info", "adapters"])
def test_code_that_a_card_names_does_not_run(
    call: Call,
    trap: Path,
    adapter: Path,
    weights: Path,
    toy: Path,
    tmp_path: Path,
    verb: str,
    typed: str,
) -> None:
    file = shutil.copy(weights, tmp_path / "theirs.safetensors")
    card = Path(shutil.copy(weights.with_suffix(".json"), tmp_path / "theirs.json"))
    edit(card, with_code)
    (tmp_path / "stranger" / "mine.py").write_text(
        "import torch\ndef net(**_):\n    return torch.nn.Conv3d(1, 3, 1)\n"
    )
    line = {
        "adapt": ["adapt", toy, "--dry-run", *TINY],
        "predict": ["predict", adapter, toy, "--out", tmp_path / "masks"],
        "evaluate": ["evaluate", adapter, toy],
        "merge": ["merge", adapter, "--out", tmp_path / "m.safetensors"],
        "info": ["backbones", "info", file],
        "adapters": ["adapters", "list"],
    }[verb]
    given = {
        "nothing": [],
        "another architecture": ["--backbone", "unet"],
        "other code": ["--backbone", "mine:net"],
    }
    line += [*given[typed], *(["--weights", file] if verb != "info" else [])]
    code, out, err = call("-q", *line)
    assert (code, out) == (5, "")
    assert "code that a file names is never run" in one_sentence(err)
    assert "--backbone trap" not in err, "a line to paste is not a stranger's"
    assert not trap.exists()


@pytest.mark.parametrize(
    "name", ["backbone", "backbone.safetensors", "trap:factory", "folder", "TINY"]
)
@pytest.mark.parametrize("verb", ["predict", "evaluate", "merge"])
def test_a_name_in_an_adapter_is_no_path_and_no_code(
    call: Call,
    trap: Path,
    adapter: Path,
    weights: Path,
    toy: Path,
    tmp_path: Path,
    verb: str,
    name: str,
) -> None:
    """The working folder holds files of that name, whose card names code, and the weights that
    would fit.
    """
    for suffix in (".safetensors", ".json"):
        shutil.copy(weights.with_suffix(suffix), tmp_path / f"backbone{suffix}")
    edit(tmp_path / "backbone.json", with_code)
    (tmp_path / "folder").mkdir()
    theirs = shutil.copytree(adapter, tmp_path / "theirs")
    edit(theirs / "adapter_config.json", lambda config: config["backbone"].update(weights=name))
    rest = {
        "predict": [toy, "--out", tmp_path / "masks"],
        "evaluate": [toy],
        "merge": ["--out", tmp_path / "m.safetensors"],
    }
    code, out, err = call("-q", verb, theirs, *rest[verb])
    assert (code, out) == (5, "")
    assert f"seapeft {verb}" in one_sentence(err), "the line to type"
    assert not trap.exists()
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize("field", ["architecture", "weights", "both"])
def test_an_adapter_that_names_code_runs_none(
    call: Call, trap: Path, adapter: Path, weights: Path, toy: Path, tmp_path: Path, field: str
) -> None:
    theirs = shutil.copytree(adapter, tmp_path / "theirs")
    fields = ("architecture", "weights") if field == "both" else (field,)
    edit(
        theirs / "adapter_config.json",
        lambda config: config["backbone"].update(dict.fromkeys(fields, "trap:factory")),
    )
    assert call("-q", "predict", theirs, toy, "--out", tmp_path / "masks")[0] == 5
    if field != "weights":  # with the right weights the name that it has for them does not matter
        code, _, err = call(
            "-q", "predict", theirs, toy, "--out", tmp_path / "masks", "--weights", weights
        )
        assert code == 5
        assert "says that its network is trap:factory" in one_sentence(err)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["backbone.safetensors", "trap:factory", "{file}"])
def test_a_run_folder_names_weights_and_runs_nothing(
    call: Call, trap: Path, broken_off: Path, weights: Path, tmp_path: Path, name: str
) -> None:
    file = Path(shutil.copy(weights, tmp_path / "backbone.safetensors"))
    shutil.copy(weights.with_suffix(".json"), tmp_path / "backbone.json")
    edit(tmp_path / "backbone.json", with_code)
    theirs = shutil.copytree(broken_off, tmp_path / "theirs")
    edit(
        theirs / "config.json",
        lambda config: config["network"].update(weights=name.format(file=file)),
    )
    code, _, err = call("-q", "adapt", "--resume", theirs)
    assert code == (2 if "/" in name.format(file=file) else 5)
    if code == 5:
        assert f"seapeft adapt --resume {theirs} --weights FILE" in one_sentence(err)
    assert not trap.exists()


def test_a_run_is_resumed_with_weights_that_are_typed_and_with_no_others(
    call: Call, broken_off: Path, weights: Path, tmp_path: Path
) -> None:
    ours = shutil.copytree(broken_off, tmp_path / "ours")
    code, _, err = call("-q", "adapt", "--resume", ours)
    assert (code, "--weights FILE" in one_sentence(err)) == (5, True)
    code, _, err = call("-q", "adapt", "--resume", ours, "--weights", "phantom_segresnet")
    assert (code, "give the right ones" in one_sentence(err)) == (5, True)
    assert call("-q", "adapt", "--resume", ours, "--weights", weights)[0] == 0


def test_report_opens_the_network_that_is_typed_alone(
    call: Call, trap: Path, broken_off: Path, weights: Path, tmp_path: Path
) -> None:
    done = shutil.copytree(broken_off, tmp_path / "done")
    assert call("-q", "adapt", "--resume", done, "--weights", weights)[0] == 0
    for suffix in (".safetensors", ".json"):
        shutil.copy(weights.with_suffix(suffix), tmp_path / f"tiny{suffix}")
    edit(tmp_path / "tiny.json", with_code)
    for flag in ("--images", "--explain"):
        code, _, err = call("-q", "report", done, flag)
        assert (code, f"seapeft report {done}" in err) == (5, True)
    assert not trap.exists()
    assert not (done / "report.html").exists()
    assert call("-q", "report", done, "--images", "--weights", weights)[0] == 0


def test_installed_weights_whose_card_names_code_are_listed_and_not_run(
    call: Call, trap: Path, weights: Path
) -> None:
    """Somebody can have put the two files there."""
    from sea_peft.backbones.weights import user_weights

    name = install(weights)
    edit(user_weights() / f"{name}.json", with_code)
    code, out, _ = call("backbones", "list", "--json")
    (row,) = [row for row in json.loads(out) if row["weights"] == name]
    assert (code, row["parameters"], row["architecture"]) == (0, None, "trap:factory")
    assert call("-q", "doctor")[0] == 5
    assert not trap.exists()


def test_what_is_typed_runs(
    call: Call, weights: Path, adapter: Path, toy: Path, tmp_path: Path, monkeypatch
) -> None:
    """The same network behind a factory of the user's own: with --backbone its card may name
    it, and so may the adapter.
    """
    (tmp_path / "own_net.py").write_text(
        "from sea_peft.backbones import architecture\n"
        "def net(**kwargs):\n    return architecture('segresnet').build(**kwargs)\n"
        "net.divisor, net.minimum = 8, 16\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = Path(shutil.copy(weights, tmp_path / "own.safetensors"))
    shutil.copy(weights.with_suffix(".json"), tmp_path / "own.json")
    edit(tmp_path / "own.json", lambda card: card.update(architecture="own_net:net"))
    line = ["backbones", "info", own, "--json"]
    assert call(*line)[0] == 5
    code, out, _ = call(*line, "--backbone", "own_net:net")
    assert (code, json.loads(out)["card"]["architecture"]) == (0, "own_net:net")
    theirs = shutil.copytree(adapter, tmp_path / "theirs")
    edit(
        theirs / "adapter_config.json",
        lambda c: c["backbone"].update(architecture="own_net:net", weights="own"),
    )
    typed = ["--backbone", "own_net:net", "--weights", own]
    assert (
        call("-q", "predict", theirs, toy / "imagesTr", "--out", tmp_path / "masks", *typed)[0] == 0
    )
    assert call("-q", "predict", theirs, toy, "--out", tmp_path / "m", "--weights", own)[0] == 5


def test_code_is_no_weights() -> None:
    with pytest.raises(WeightsError, match="os:system is code; give it as the backbone"):
        Typed(weights="os:system")


def test_only_the_command_line_and_the_jobs_options_make_what_is_typed() -> None:
    """A verb that is added later cannot turn a name from a file into code: whoever makes a
    `Typed` stands in this list.
    """
    package = Path(sea_peft.__file__).parent
    makers, importers = set(), set()
    for file in package.rglob("*.py"):
        name = file.relative_to(package).as_posix()
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "Typed"
            ):
                makers.add(name)
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "importlib.import_module",
                "import_module",
                "__import__",
            ):
                importers.add(name)
    assert makers <= {
        "backbones/typed.py",
        "console/afterwards.py",
        "console/applying.py",
        "console/backbones.py",
        "console/catalogue.py",
        "console/taking_in.py",
        "jobs/options.py",
        "jobs/target.py",
    }
    assert importers <= {
        "__init__.py",
        "adapters/__init__.py",
        "backbones/typed.py",
        "data/dicom/files.py",
    }


# -- nothing is believed unread --------------------------------------------------------------------


def retensor(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the adapter's tensors, and let the config list them as they are now."""
    file = folder / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file(tensors, file, {"format": "pt"})
    specs = {
        k: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")}
        for k, t in tensors.items()
    }
    edit(folder / "adapter_config.json", lambda config: config.update(tensors=specs))


def first(tensors: dict[str, torch.Tensor]) -> str:
    return min(tensors)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t[first(t)].fill_(float("nan")), "holds NaN or infinity"),
        (lambda t: t[max(t)].view(-1)[:1].fill_(float("-inf")), "holds NaN or infinity"),
        (lambda t: t.update({first(t): t[first(t)].double()}), "is float64, its unit float32"),
        (lambda t: t.update({first(t): t[first(t)].to(torch.int8)}), "is int8, its unit float32"),
        (lambda t: t.update({max(t): t[max(t)].half()}), "is float16, its unit float32"),
        (lambda t: t.update({first(t): t[first(t)][None]}), "has shape"),
        (lambda t: t.pop(first(t)), "lacks"),
        (lambda t: t.update(more=torch.zeros(1)), "unexpected tensor more"),
    ],
    ids=["nan", "inf", "float64", "int8", "float16", "shape", "missing", "surplus"],
)
def test_tensors_are_finite_and_of_the_units_own_kind(
    call: Call, adapter: Path, weights: Path, toy: Path, tmp_path: Path, change: Any, sentence: str
) -> None:
    theirs = shutil.copytree(adapter, tmp_path / "theirs")
    retensor(theirs, change)
    code, _, err = call(
        "-q", "predict", theirs, toy, "--out", tmp_path / "masks", "--weights", weights
    )
    assert (code, sentence in one_sentence(err)) == (5, True), err
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_logits_that_are_not_finite_fail_the_case(
    call: Call, adapter: Path, weights: Path, toy: Path, tmp_path: Path, verb: str
) -> None:
    theirs = shutil.copytree(adapter, tmp_path / "theirs")
    retensor(theirs, lambda tensors: [t.fill_(1e30) for t in tensors.values()])
    rest = ["--out", tmp_path / "masks"] if verb == "predict" else []
    code, _, err = call("-q", verb, theirs, toy, *rest, "--weights", weights)
    assert code == 8
    assert "the network's output is not finite or beyond" in err
    assert not (tmp_path / "masks").exists() or not list((tmp_path / "masks").iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda c: c["backbone"].update(kwargs={**c["backbone"]["kwargs"], "init_filters": 16}),
            "other settings",
        ),
        (lambda c: c["backbone"].update(architecture="unet"), "says that its network is unet"),
        (lambda c: c["backbone"].update(parameters=7), "other settings"),
        (lambda c: c["backbone"].update(sha256="ab" * 32), "give the right ones"),
        (lambda c: c["labels"].update(organ=[0]), "labels.organ.0"),
        (
            lambda c: (c["labels"].update(organ=[]), c["head"].update(rows=[None, 1])),
            "neither codes nor a row",
        ),
        (lambda c: c["labels"].update(organ=[65536]), "labels.organ.0"),
        (lambda c: c["labels"].update(organ=[2]), "code 2 stands twice"),
        (lambda c: c["labels"].update(organ=[True]), "labels.organ.0"),
        (lambda c: c.update(labels={}), "labels"),
        (lambda c: c.update(channels=[]), "channels"),
        (lambda c: c.update(channels=["CT", "CT2"]), "is for 2 channels"),
        (lambda c: c["head"].update(rows=[1]), "head.rows has 1 rows for 2 labels"),
        (lambda c: c["head"].update(rows=[7, None]), "head.rows names row 7"),
        (lambda c: c["head"].update(rows=[0, None]), "head.rows.0"),
        (lambda c: c["head"].update(classes=9), "and 9 classes"),
        (
            lambda c: c["head"].update(on_features=not c["head"]["on_features"]),
            "head of another kind",
        ),
        (lambda c: c["recipe"].update(spacing=[1e-9, 1, 1]), "recipe.spacing.0"),
        (lambda c: c["recipe"].update(spacing=["2", 2, 2]), "recipe.spacing.0"),
        (lambda c: c["recipe"].update(orientation="RRR"), "recipe"),
        (lambda c: c["recipe"]["intensity"].update(low=500), "recipe.intensity"),
        (lambda c: c["recipe"].update(run="os:system"), "recipe.run"),
        (lambda c: c["window"].update(patch=[15, 16, 16]), "states a patch that does not fit"),
        (lambda c: c["window"].update(patch=[4096, 4096, 4096]), "larger than any network takes"),
        (lambda c: c["window"].update(overlap=0.9999), "window.overlap"),
        (lambda c: c["units"][1].update(level=1 << 14), "no place for lora of this level"),
        (lambda c: c["units"][1].update(level="4"), "units.1.level"),
        (lambda c: c["units"][0].update(cost=1), "has 1 parameters, and it is"),
        (lambda c: c["units"][0].update(id="x"), "says that x has"),
        (lambda c: c["units"].append(c["units"][0]), "names one unit twice"),
        (lambda c: c["units"].pop(), "unexpected tensor"),
        (lambda c: c.update(seed=-1), "seed"),
        (lambda c: c.update(seed=2**63), "seed"),
        (lambda c: c.update(shots=1.5), "shots"),
        (lambda c: c["dice"].update(adapted=1.5), "dice.adapted"),
        (lambda c: c["dice"].update(adapted=float("nan")), "is not JSON"),
    ],
)
def test_every_field_of_an_adapter_is_checked(
    call: Call, adapter: Path, weights: Path, toy: Path, tmp_path: Path, change: Any, words: str
) -> None:
    theirs = shutil.copytree(adapter, tmp_path / "theirs")
    edit(theirs / "adapter_config.json", change)
    code, _, err = call(
        "-q", "predict", theirs, toy, "--out", tmp_path / "masks", "--weights", weights
    )
    assert (code, words in one_sentence(err)) == (5, True), err
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(kwargs={"init_filters": 10**9}), "kwargs"),
        (lambda c: c.update(kwargs={"init_filters": 4096}), "far larger network"),
        (
            lambda c: c.update(kwargs={"blocks_down": [4000] * 4, "blocks_up": [1] * 3}),
            "far larger network",
        ),
        (lambda c: c.update(kwargs={"init_filters": -8}), "does not fit segresnet"),
        (lambda c: c.update(kwargs={"spatial_dims": 2}), "does not fit"),
        (lambda c: c["kwargs"].update(norm="nothing"), "does not fit segresnet"),
        (lambda c: c.update(labels=["background"] * 4), "of another shape"),
        (lambda c: c.update(channels=["a", "b"]), "of another shape"),
        (lambda c: c.update(patch=[0, 16, 16]), "patch.0"),
        (lambda c: c.update(recipe={"intensity": {"kind": "eval", "low": 0}}), "recipe.intensity"),
        (lambda c: c.update(dice={"mean": 7}), "dice.mean"),
        (lambda c: c.update(architecture="unet"), "does not fit unet"),
        (lambda c: c.update(surprise=1), "surprise"),
    ],
)
def test_every_field_of_a_card_is_checked(
    weights: Path, tmp_path: Path, change: Any, words: str
) -> None:
    file = Path(shutil.copy(weights, tmp_path / "theirs.safetensors"))
    card = Path(shutil.copy(weights.with_suffix(".json"), tmp_path / "theirs.json"))
    edit(card, change)
    with pytest.raises(WeightsError) as caught:
        load_typed(Typed(weights=str(file)))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_refused(weights: Path, tmp_path: Path) -> None:
    tensors = safetensors.torch.load_file(weights)
    tensors[first(tensors)].view(-1)[0] = float("nan")
    safetensors.torch.save_file(tensors, tmp_path / "theirs.safetensors")
    digest = hashlib.sha256((tmp_path / "theirs.safetensors").read_bytes()).hexdigest()
    shutil.copy(weights.with_suffix(".json"), tmp_path / "theirs.json")
    edit(tmp_path / "theirs.json", lambda card: card.update(sha256=digest))
    with pytest.raises(WeightsError, match="holds NaN or infinity"):
        load_typed(Typed(weights=str(tmp_path / "theirs.safetensors")))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["options"].update(shots=0),
        lambda c: c["options"].update(weights="x.safetensors"),
        lambda c: c["options"].update(out="/etc"),
        lambda c: c.update(out="/etc"),
        lambda c: c.update(profile="x.toml"),
        lambda c: c["profile"].update(head="none"),
        lambda c: c.update(device="cuda:0; rm"),
        lambda c: c.update(data="\0"),
        lambda c: c.update(steps=0),
        lambda c: c.pop("network"),
        lambda c: c["network"].update(kwargs={"a": [[1] * 500]}),
        lambda c: c["versions"].update(torch=2),
    ],
)
def test_every_field_of_a_runs_config_is_checked(
    call: Call, broken_off: Path, weights: Path, tmp_path: Path, change: Any
) -> None:
    theirs = shutil.copytree(broken_off, tmp_path / "theirs")
    edit(theirs / "config.json", change)
    code, _, err = call("-q", "adapt", "--resume", theirs, "--weights", weights)
    assert code == 2
    assert "config.json: " in one_sentence(err)


def test_a_run_of_an_earlier_version_is_looked_at_and_not_resumed(
    call: Call, broken_off: Path, weights: Path, tmp_path: Path
) -> None:
    then = shutil.copytree(broken_off, tmp_path / "then")

    def as_it_was(config: dict[str, Any]) -> None:
        network = config.pop("network")
        for name in ("format_version", "options"):
            config.pop(name)
        config |= {
            "profile": "default",
            "out": None,
            "runs": "runs",
            "spacing": None,
            "options": {},
        }
        config |= {
            "backbone": network["architecture"],
            "weights": "/x.safetensors",
            "backbone_sha256": network["sha256"],
        }

    edit(then / "config.json", as_it_was)
    assert call("-q", "inspect", then)[0] == 0
    assert call("-q", "report", then)[0] == 0
    code, _, err = call("-q", "adapt", "--resume", then, "--weights", weights)
    assert (code, "can be looked at and not resumed" in one_sentence(err)) == (2, True)
