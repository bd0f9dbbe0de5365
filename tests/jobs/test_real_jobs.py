"""Real scans the whole way: check, adapt with as many shots as there are, predict, evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sea_peft import cli
from sea_peft.artefacts.history import History
from sea_peft.artefacts.trace import read_trace
from sea_peft.data.volumes import read_volume
from sea_peft.jobs.adapt import adapt
from sea_peft.jobs.importing import import_weights
from sea_peft.jobs.options import AdaptOptions
from sea_peft.loop.recommendation import recommend

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
MRICRON = Path("/usr/share/mricron/templates")  # Debian's mricron-data
TINY = [
    "--steps",
    "8",
    "--cycles",
    "1",
    "--patch",
    "16,16,16",
    "--spacing",
    "4",
    "--budget",
    "20%",
    "--no-mlflow",
    "-q",
]


def run(*arguments: object) -> int:
    return cli.run([str(argument) for argument in arguments])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shots", "flags"),
    [("brats2015", 3, ["--label", "tumour=1,2,3,4", "--channel", "FLAIR"]), ("pyradiomics", 2, [])],
)
def test_check_adapt_predict_evaluate(
    weights: Path, tmp_path: Path, name: str, shots: int, flags: list[str]
) -> None:
    data = SHARED / name
    if not data.is_dir():
        pytest.skip(f"the real scans of {name} are not beside the repository")
    adapter, masks = tmp_path / "run", tmp_path / "masks"
    assert run("data", "check", data, "--shots", shots, *flags) == 0
    assert (
        run("adapt", data, "--weights", weights, "--out", adapter, "--shots", shots, *flags, *TINY)
        == 0
    )
    assert (
        run("predict", adapter, data, "--out", masks, "--weights", weights, "--preview", "-q") == 0
    )
    scores = tmp_path / "scores"
    channel = ["--channel", "FLAIR"] if name == "brats2015" else []
    assert (
        run("evaluate", adapter, data, "--weights", weights, "--out", scores, "-q", *channel) == 0
    )
    document = json.loads((scores / "scores.json").read_text())
    for case in document["per_case"]:
        suffix = ".nii.gz" if name == "brats2015" else ".nrrd"
        image = (
            data / "imagesTr" / f"{case}_0000{suffix}"
            if name == "brats2015"
            else data / f"{case}_image{suffix}"
        )
        mask = read_volume(masks / f"{case}{suffix}")
        assert np.array_equal(mask.affine, read_volume(image).affine)
        assert mask.shape == read_volume(image).shape


@pytest.mark.slow
def test_colin27_and_its_atlases(adapter: Path, weights: Path, tmp_path: Path) -> None:
    """A head in RAS with AAL's 116 regions, and one in LAS whose qform is unset to the point of
    being wrong.
    """
    if not MRICRON.is_dir():
        pytest.skip("Debian's mricron-data is not installed")
    data = tmp_path / "heads"
    for image, label in (("ch2", "aal"), ("ch2bet", "brodmann"), ("jhu189", "natbrainlab")):
        for folder, source in (("images", image), ("labels", label)):
            (data / folder).mkdir(parents=True, exist_ok=True)
            (data / folder / f"{image}.nii.gz").symlink_to(MRICRON / f"{source}.nii.gz")
    assert run("data", "check", data) == 0
    assert (
        run(
            "predict",
            adapter,
            data,
            "--out",
            tmp_path / "masks",
            "--weights",
            weights,
            "--preview",
            "-q",
        )
        == 0
    )
    for name in ("ch2", "ch2bet", "jhu189"):
        mask, source = (
            read_volume(folder / f"{name}.nii.gz")
            for folder in (tmp_path / "masks", data / "images")
        )
        assert np.array_equal(mask.affine, source.affine)
        assert mask.shape == source.shape


@pytest.mark.slow
@pytest.mark.parametrize("steps", [30, 240])
@pytest.mark.parametrize(
    ("shot", "other"), [("biograph_ct", "totalseg_ct"), ("totalseg_ct", "biograph_ct")]
)
def test_one_shot_does_no_harm_to_a_network_that_is_good_already(
    tmp_path: Path, shot: str, other: str, steps: int
) -> None:
    """What is recommended, with a test case and without one, is never more than a point below
    the unadapted network on another scan.
    """
    real = SHARED / "real"
    if not (real / "ct_liver").is_dir():
        pytest.skip("the real CTs are not beside the repository")
    import_weights(real / "weights_obelisk" / "allconvunet_tcia_fold1.pth", "organs", "obelisk")
    (tmp_path / "split.json").write_text(json.dumps({"support": [shot], "test": [other]}))
    result = adapt(
        AdaptOptions(
            data=str(real / "ct_liver"),
            weights="organs",
            labels=("liver=1",),
            split=tmp_path / "split.json",
            steps=steps,
            patch=(64, 64, 64),
            mlflow=False,
            out=tmp_path / "run",
        )
    )
    assert result.dice.unadapted is not None
    history = History(read_trace(tmp_path / "run" / "trace.jsonl"))
    without_tests = recommend((), {}, history.held_out)
    for recommended in (history.recommended, without_tests):
        assert recommended is not None
        dice = {"adapted": result.dice.adapted, "unadapted": result.dice.unadapted}[
            recommended.network
        ]
        assert dice is not None
        assert dice >= result.dice.unadapted - 0.01
