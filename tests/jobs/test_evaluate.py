from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from toys import AFFINE

from sea_peft.backbones.typed import Typed
from sea_peft.data.volumes import Volume, read_volume, write_volume
from sea_peft.errors import DataError, UsageError
from sea_peft.jobs.boxplot import boxplot_png
from sea_peft.jobs.evaluate import evaluate, write_evaluation
from sea_peft.jobs.inference import dice_per_label
from sea_peft.jobs.predict import predict


@pytest.fixture(scope="module")
def scores(adapter: Path, weights: Path, toy: Path):
    return evaluate(adapter, str(toy), typed=Typed(weights=str(weights)))


def test_agrees_with_the_masks_that_predict_writes(
    scores, adapter: Path, weights: Path, toy: Path, tmp_path: Path
) -> None:
    predict(adapter, [toy], tmp_path / "out", typed=Typed(weights=str(weights)))
    for number in range(5):
        mask = read_volume(tmp_path / "out" / f"toy_{number}.nii.gz").array
        label = read_volume(toy / "labelsTr" / f"toy_{number}.nii.gz").array
        expected = dice_per_label(mask, label, {"organ": (1,), "spot": (2,)})
        found = {name: s.dice for name, s in scores.cases[f"toy_{number}"].items()}
        assert found == pytest.approx(expected, abs=1e-12)


def test_means_are_over_cases_then_labels(scores) -> None:
    organ = np.mean([case["organ"].dice for case in scores.cases.values()])
    spot = np.mean([case["spot"].dice for case in scores.cases.values()])
    assert scores.mean("organ", "dice") == pytest.approx(organ)
    assert scores.overall("dice") == pytest.approx((organ + spot) / 2)
    assert scores.document()["dice"] == pytest.approx((organ + spot) / 2)


def test_written_files(scores, tmp_path: Path) -> None:
    table, document, picture = write_evaluation(scores, tmp_path / "new" / "folder")
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 10
    assert rows[0]["case"] == "toy_0"
    assert float(rows[0]["dice"]) == pytest.approx(scores.cases["toy_0"]["organ"].dice, rel=1e-5)
    assert "hd95_mm" in rows[0]
    assert json.loads(document.read_text()) == scores.document()


def test_a_box_for_every_label_also_where_nothing_is_defined() -> None:
    nan = float("nan")
    scores = {
        m: {"liver": [0.5, 0.7, nan], "spleen": [nan, nan, nan]} for m in ("dice", "nsd", "hd95")
    }
    assert boxplot_png(scores, ["liver", "spleen"], "toy").startswith(b"\x89PNG")
    many = {m: {f"organ {n}": [0.5] for n in range(117)} for m in scores}
    assert boxplot_png(many, [f"organ {n}" for n in range(117)], "toy").startswith(b"\x89PNG")


def _copy(toy: Path, root: Path, **description: object) -> Path:
    shutil.copytree(toy, root)
    content = json.loads((toy / "dataset.json").read_text()) | description
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_labels_are_matched_by_name_then_by_code(
    scores, adapter: Path, weights: Path, toy: Path, tmp_path: Path
) -> None:
    swapped = _copy(toy, tmp_path / "swapped", labels={"background": 0, "organ": 2, "spot": 1})
    for number in range(5):
        path = swapped / "labelsTr" / f"toy_{number}.nii.gz"
        write_volume(
            path, Volume(np.array([0, 2, 1], dtype=np.uint8)[read_volume(path).array], AFFINE)
        )
    again = evaluate(adapter, str(swapped), typed=Typed(weights=str(weights)))
    assert again.cases == scores.cases
    unnamed = _copy(toy, tmp_path / "unnamed", labels={"background": 0, "one": 1, "two": 2})
    assert evaluate(adapter, str(unnamed), typed=Typed(weights=str(weights))).cases == scores.cases
    named = evaluate(
        adapter, str(unnamed), typed=Typed(weights=str(weights)), labels=["spot=two", "organ=one"]
    )
    assert named.cases == scores.cases
    organ, spot = evaluate(adapter, str(unnamed), typed=Typed(weights=str(weights))).warnings
    assert organ.startswith(
        "organ is scored against code 1, which this data set calls one; if that is another"
        " structure"
    )
    assert spot.startswith("spot is scored against code 2, which this data set calls two;")
    assert named.warnings == again.warnings == scores.warnings == ()


def test_channels_are_matched_by_name(
    adapter: Path, weights: Path, toy: Path, tmp_path: Path
) -> None:
    other = _copy(toy, tmp_path / "mr", channel_names={"0": "T1"})
    with pytest.raises(DataError, match="no channel 'CT'"):
        evaluate(adapter, str(other), typed=Typed(weights=str(weights)))
    assert evaluate(adapter, str(other), typed=Typed(weights=str(weights)), channels=["T1"]).cases


def test_a_case_that_cannot_be_read_is_named(
    adapter: Path, weights: Path, toy: Path, tmp_path: Path
) -> None:
    broken = _copy(toy, tmp_path / "broken")
    (broken / "imagesTr" / "toy_2_0000.nii.gz").write_bytes(b"nothing")
    scores = evaluate(adapter, str(broken), typed=Typed(weights=str(weights)))
    assert list(scores.failed) == ["toy_2"]
    assert len(scores.cases) == 4


def test_refusals(adapter: Path, weights: Path, toy: Path) -> None:
    with pytest.raises(UsageError, match="The adapter predicts organ, spot, not organ"):
        evaluate(adapter, str(toy), typed=Typed(weights=str(weights)), labels=["organ"])
    with pytest.raises(UsageError, match="marks no case as test"):
        evaluate(adapter, str(toy), typed=Typed(weights=str(weights)), cases="test")
    with pytest.raises(UsageError, match="--cases some"):
        evaluate(adapter, str(toy), typed=Typed(weights=str(weights)), cases="some")
    with pytest.raises(DataError, match="no such folder"):
        evaluate(adapter, "nowhere", typed=Typed(weights=str(weights)))
