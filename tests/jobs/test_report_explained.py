"""`report --explain` on a real run: figures in the page, numbers beside it, and nothing that
names a case.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from foreign import network
from toys import TINY, make_adapter

from sea_peft import cli
from sea_peft.artefacts.run_folder import RunFolder
from sea_peft.artefacts.trace import read_trace
from sea_peft.backbones import architecture
from sea_peft.backbones.typed import Typed
from sea_peft.data.layouts import open_dataset
from sea_peft.data.recipe import Recipe, Window
from sea_peft.jobs.explain import explain
from sea_peft.jobs.pictures import Revisited, ShownCase
from sea_peft.jobs.predictor import Predictor
from sea_peft.jobs.weights_file import save_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, toy: Path, weights: Path) -> RunFolder:
    """A real run on the toy data."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = [*TINY, "--budget", "20%"]
    assert (
        cli.run(
            [
                "adapt",
                str(toy),
                "--weights",
                str(weights),
                "--out",
                str(folder),
                "--no-mlflow",
                "-q",
                *options,
            ]
        )
        == 0
    )
    return RunFolder(folder)


def test_the_page_explains_the_network(
    run: RunFolder, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["report", str(run.path), "--explain", "--json", "--weights", str(weights)]) == 0
    told = capsys.readouterr()
    places = {"page": str(run.page), "explanation": str(run.explanation)}
    assert json.loads(told.out) == {**places, "network": "adapted"}
    assert "pictures of patients' scans" in told.err
    page = run.page.read_text("utf-8")
    assert "Looking inside" in page
    assert "ProtoSeg: how well" in page
    assert page.count("data:image/png") == 1  # the class maps of the median case
    found = run.explanation.read_text("utf-8")
    assert not any(name in page + found for name in ("toy_", str(run.path)))


def test_every_layer_is_scored_with_and_without_adapters(run: RunFolder) -> None:
    found = json.loads(run.explanation.read_text("utf-8"))
    assert (found["cases"], found["labels"]) == (3, ["organ", "spot"])
    unadapted, adapted = (
        found["segmentation_ability"][state] for state in ("unadapted", "adapted")
    )
    sites = {row.site for row in read_trace(run.trace)[0].units}
    assert sites <= set(adapted) == set(unadapted)
    values = [value for row in (*adapted.values(), *unadapted.values()) for value in row.values()]
    assert all(0 <= value <= 1 for value in values)
    assert adapted != unadapted
    assert set(found["grad_cam_dice"]["adapted"]) < set(adapted)


@pytest.mark.parametrize(
    ("name", "kwargs", "side"),
    [
        ("unetr", dict(architecture("unetr").small), 32),
        ("dynunet", {"filters": (4,) * 6, "strides": (1, *(2,) * 5)}, 64),
    ],
)
def test_crops_have_a_size_that_the_network_takes_as_it_was_built(
    name: str, kwargs: dict, side: int, toy: Path, tmp_path: Path
) -> None:
    """Neither takes the 48 voxels that a scan of 37 would be rounded up to by the multiple that
    holds for default widths.
    """
    card = {
        "name": "own",
        "architecture": name,
        "kwargs": kwargs,
        "labels": ["background", "organ", "other"],
        "channels": ["CT"],
        "recipe": (
            Recipe(spacing=(1.2, 1.2, 1.2), intensity=Window(low=-100, high=200)).model_dump(
                mode="json"
            )
        ),
        "patch": (side, side, side),
        "licence": "CC0-1.0",
    }
    own = save_weights(tmp_path, network(name, **kwargs), card, half=False).with_suffix(
        ".safetensors"
    )
    adapter = make_adapter(tmp_path / "adapter", own, {"organ": [1]}, ["CT"], ("affine",))
    predictor = Predictor(adapter, Typed(weights=str(own)), "cpu")
    shown = ShownCase("Median", open_dataset(toy).cases[0], {"organ": 0.5})
    found = explain(
        Revisited(
            predictor=predictor,
            network="adapted",
            channels=("CT",),
            labels=predictor.labels,
            shown=(shown,),
            of=1,
            lost=(),
        )
    )
    assert found.cases == 1
    assert found.cams is not None
