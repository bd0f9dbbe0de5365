"""What a run saw of its shots, and what `predict --qc` makes of it."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch

from sea_peft import cli
from sea_peft.artefacts.quality import QUANTILES
from sea_peft.backbones.typed import Typed
from sea_peft.data.volumes import Volume, read_volume, write_volume
from sea_peft.errors import UsageError
from sea_peft.jobs.predict import predict
from sea_peft.jobs.quality import Judged, Look, judge, quality

LABELS = ("liver", "spleen")
SPACING = (2.0, 6.0, 3.0)


def scan(seed: int = 0, noise: float = 0.05) -> tuple[torch.Tensor, np.ndarray]:
    """Two boxes, ten voxels apart, in smooth grey values; each seed moves them by a voxel or
    none.
    """
    rng = np.random.default_rng(seed)
    mask = np.zeros((12, 24, 24), dtype=np.uint8)
    d, h = rng.integers(0, 2, 2)
    mask[2 + d : 8 + d, 2:8, 4 + h : 12 + h] = 1
    mask[2 + d : 6 + d, 14:20, 4 + h : 9 + h] = 2
    image = (
        mask * 0.4
        + np.linspace(0, 1, 24, dtype=np.float32)
        + noise * rng.standard_normal(mask.shape)
    )
    return torch.from_numpy(image[None].astype(np.float32)), mask


def look(image: torch.Tensor, mask: np.ndarray) -> Look:
    return Look.at(image, lambda a, b: mask[a:b], LABELS, SPACING)


def known():
    confidence = {"adapted": {"case": {"liver": 0.95, "spleen": 0.9}}}
    dice = {
        "adapted": {"case": {"liver": 0.9, "spleen": 0.8}},
        "head_only": {"case": {"liver": 0.1}},
    }
    return quality([look(*scan(seed)) for seed in range(5)], LABELS, confidence, dice)


def test_a_look_is_what_numpy_counts():
    image, mask = scan()
    found = look(image, mask)
    liver = np.argwhere(mask == 1)
    assert found.volumes["liver"] == pytest.approx(len(liver) * 36 / 1000)
    assert found.centres["liver"] == pytest.approx(liver.mean(axis=0) * SPACING)
    assert found.quantiles[0] == pytest.approx(np.percentile(image.numpy(), QUANTILES), abs=1e-3)
    steps = [
        np.abs(np.diff(image[0].numpy().astype(np.float64), axis=axis)).mean() for axis in (1, 2)
    ]
    assert found.roughness[0] == pytest.approx(
        sum(steps) / image.numpy().astype(np.float64).std(ddof=1), abs=1e-3
    )
    middle = (found.centres["liver"] + found.centres["spleen"]) / 2
    assert found.positions()["spleen"] == pytest.approx(found.centres["spleen"] - middle)


def test_what_is_kept_of_the_shots_and_of_held_out_scans():
    found = known()
    volumes = [math.log(look(*scan(seed)).volumes["liver"]) for seed in range(5)]
    assert found.labels["liver"].log_volume == pytest.approx(np.mean(volumes), abs=1e-3)
    assert found.labels["liver"].shots == 5
    assert found.held_out.keys() == {"adapted"}
    assert found.held_out["adapted"][0]["spleen"].dice == 0.8
    assert found.usual_confidence("adapted") == pytest.approx(0.925)
    assert found.usual_confidence("unadapted") is None


def test_expected_dice_leans_on_what_was_held_out_and_on_what_is_usual():
    found, none = known(), known().model_copy(update={"held_out": {}})
    assert none.expected_dice("adapted", "liver", 0.9)[0] == pytest.approx(1 - 2.2 * 0.1)
    factor = (0.3 + 2.2 * 0.5) / (0.15 + 0.5)  # of all labels
    own = (0.2 + factor * 0.2) / (0.1 + 0.2)
    dice, low, high = found.expected_dice("adapted", "spleen", 0.9)
    assert dice == pytest.approx(1 - own * 0.1)
    assert low < dice < high <= 1
    assert found.expected_dice("adapted", "spleen", 0.0)[0] == 0
    assert found.expected_dice("adapted", "spleen", 1.0) == (1, 1, 1)


def test_a_scan_like_the_shots_has_no_flag():
    for seed in range(5, 15):
        found = judge(
            known(), "adapted", look(*scan(seed)), {"liver": 0.94, "spleen": 0.89}, ["CT"]
        )
        assert found.flags == ()


SURE = {"liver": 0.94, "spleen": 0.89}
WRONG = {
    "dark": (lambda i, m: (i - 2, m), SURE, "Grey values of CT"),
    "noisy": (
        lambda i, m: (
            i + 0.5 * torch.randn(i.shape, generator=torch.Generator().manual_seed(0)),
            m,
        ),
        SURE,
        "noisier",
    ),
    "one grey value": (lambda i, m: (torch.full_like(i, 0.5), m), SURE, "smoother"),
    "turned round": (lambda i, m: (i, m[:, ::-1]), SURE, "Not where the shots have it"),
    "a label is missing": (
        lambda i, m: (i, np.where(m == 2, 0, m)),
        {"liver": 0.94, "spleen": None},
        "not in the mask: spleen",
    ),
    "a label is tiny": (
        lambda i, m: (i, np.where((m == 2) & (np.cumsum(m == 2).reshape(m.shape) > 2), 0, m)),
        SURE,
        "spleen (0.0",
    ),
    "unsure": (lambda i, m: (i, m), {"liver": 0.9, "spleen": 0.8}, "less sure"),
    "nothing found": (
        lambda i, m: (i, 0 * m),
        {"liver": None, "spleen": None},
        "not in the mask: liver, spleen",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_flagged(what):
    spoil, sure, said = WRONG[what]
    found = judge(known(), "adapted", look(*spoil(*scan(7))), sure, ["CT"])
    assert any(said in flag for flag in found.flags), found.flags
    assert Judged.from_json(json.loads(json.dumps(found.as_json()))).flags == found.flags


@pytest.mark.parametrize(
    "odd",
    [None, {}, [], {"expected_dice": {"a": [1]}, "flags": []}, {"expected_dice": {}, "flags": 3}],
)
def test_an_edited_sidecar_holds_no_judgement(odd):
    assert Judged.from_json(odd) is None


def test_predict_writes_what_it_expects_and_why_to_look(knowing, weights, toy, tmp_path, capsys):
    scans, out = sorted((toy / "imagesTr").glob("*.nii.gz"))[:2], tmp_path / "out"
    dark = read_volume(scans[1])
    write_volume(
        tmp_path / "dark.nii.gz",
        Volume(np.asarray(dark.array, dtype=np.float32) - 900, dark.affine),
    )
    given = [str(scans[0]), str(tmp_path / "dark.nii.gz")]
    code = cli.run(
        [
            "predict",
            str(knowing),
            *given,
            "--out",
            str(out),
            "--weights",
            str(weights),
            "--qc",
            "--json",
        ]
    )
    printed = json.loads(capsys.readouterr().out)
    assert code == 7
    with (out / "qc.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    sidecar = json.loads((out / "dark.json").read_text())["qc"]
    assert any("Grey values of CT" in flag for flag in sidecar["flags"])
    assert rows[0]["flags"]
    assert {row["case"] for row in rows} == {"toy_0", "dark"}
    page = (out / "qc.html").read_text()
    assert "Grey values of CT" in page
    assert 'src="dark.png"' in page
    assert (out / "dark.png").is_file()
    assert {case["case"]: case["qc"] for case in printed["cases"]}["dark"] == sidecar


def test_an_interrupted_cohort_keeps_its_judgements(knowing, weights, toy, tmp_path):
    scans, out = sorted((toy / "imagesTr").glob("*.nii.gz"))[:2], tmp_path / "out"
    again = {"typed": Typed(weights=str(weights)), "statistics": tmp_path / "table.csv", "qc": True}
    (first,) = predict(knowing, scans[:1], out, **again)
    kept, new = predict(knowing, scans, out, **again)
    assert (kept.seconds, kept.qc) == (0.0, first.qc)
    assert new.qc is not None
    assert {row.split(",")[0] for row in (out / "qc.csv").read_text().splitlines()[1:]} == {
        "toy_0",
        "toy_1",
    }


def test_an_adapter_that_does_not_know_what_its_run_saw_is_refused(adapter, weights, toy, tmp_path):
    with pytest.raises(UsageError, match="adapt again"):
        predict(
            adapter,
            [toy / "imagesTr"],
            tmp_path / "out",
            typed=Typed(weights=str(weights)),
            qc=True,
        )
    assert not (tmp_path / "out").exists()


def test_another_file_called_qc_csv_is_not_replaced(knowing, weights, toy, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "qc.csv").write_text("mine")
    with pytest.raises(UsageError, match="no table of"):
        predict(knowing, [toy / "imagesTr"], out, typed=Typed(weights=str(weights)), qc=True)
    assert [p.name for p in out.iterdir()] == ["qc.csv"]
