"""Numbers of masks for a cohort, and which parts of masks are kept."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sea_peft.backbones.typed import Typed
from sea_peft.data.planes import Planes
from sea_peft.data.volumes import read_volume
from sea_peft.errors import UsageError
from sea_peft.jobs.inference import confidences
from sea_peft.jobs.keeping import Keep, keep_parts, keeps
from sea_peft.jobs.predict import predict
from sea_peft.jobs.predictor import Predictor
from sea_peft.jobs.statistics import measured


def two_blobs() -> np.ndarray:
    """Label 1 in parts of 8, 2 and 1 voxels, the 2 touching the first by no corner; label 2 in
    one part at the border.
    """
    indices = np.zeros((9, 8, 7), dtype=np.uint8)
    indices[1:3, 1:3, 1:3] = 1
    indices[5, 5, 3:5] = 1
    indices[7, 1, 5] = 1
    indices[8, 7, 0] = 2
    return indices


def test_numbers_of_a_mask():
    indices = two_blobs()
    grey = np.arange(indices.size, dtype=np.float32).reshape(indices.shape)
    found = measured(indices, ["a", "b", "c"], {"CT": grey}, millilitres=0.5)
    assert found["a"] == {
        "volume_ml": 5.5,
        "mean": {"CT": pytest.approx(grey[indices == 1].mean(), rel=1e-5)},
        "components": 3,
        "touches_border": False,
    }
    assert (found["b"]["components"], found["b"]["touches_border"]) == (1, True)
    assert found["c"] == {
        "volume_ml": 0.0,
        "mean": {"CT": None},
        "components": 0,
        "touches_border": False,
    }


def test_voxels_that_share_a_corner_are_one_part():
    indices = np.zeros((4, 4, 4), dtype=np.uint8)
    indices[0, 0, 0] = indices[1, 1, 1] = 1
    assert measured(indices, ["a"], {}, 1.0)["a"]["components"] == 1


def test_confidence_is_the_soft_dice_of_the_networks_own_mask():
    p = torch.rand(3, 5, 6, 7, generator=torch.Generator().manual_seed(0)).softmax(0)
    p[2] = 0  # never the strongest
    m = (p.argmax(0) == 1).float()
    expected = 2 * (p[1] * m).sum() / (p[1].sum() + m.sum())
    assert confidences(Planes.of(p), ["a", "b"]) == {
        "a": pytest.approx(float(expected), abs=1e-4),
        "b": None,
    }


@pytest.mark.parametrize(
    ("rule", "left"),
    [("largest", 8), ("2", 10), ("min-ml=0.2", 10), ("min-ml=.9", 0), ("9", 11), ("all", 11)],
)
def test_parts_that_are_kept(rule, left):
    kept = keep_parts(two_blobs(), {1: Keep.parse(rule)}, millilitres=0.1)
    assert np.count_nonzero(kept == 1) == left
    assert np.count_nonzero(kept == 2) == 1
    assert not np.setdiff1d(np.unique(kept), [0, 1, 2]).size


def test_rules_for_one_label_go_before_those_for_all():
    labels = ["liver", "a=b", "spot"]
    largest, two, small = Keep(most=1), Keep(most=2), Keep(least_ml=0.5)
    assert keeps([], labels) == {}
    assert keeps(["spot=all", "largest", "a=b=min-ml=0.5"], labels) == {
        "liver": largest,
        "a=b": small,
    }
    assert keeps(["liver=2"], labels) == {"liver": two}
    assert [str(rule) for rule in (largest, two, small, Keep())] == [
        "largest",
        "2",
        "min-ml=0.5",
        "all",
    ]


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (["biggest"], "biggest is not known"),
        (["0"], "0 is not known"),
        (["min-ml=-1"], "min-ml=-1 is not known"),
        (["spleen=largest"], "there is no label spleen; there are liver"),
        (["largest", "2"], "twice for all labels"),
        (["liver=2", "liver=3"], "twice for liver"),
    ],
)
def test_rules_that_make_no_sense(rules, said):
    with pytest.raises(UsageError, match=said):
        keeps(rules, ["liver"])


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_cohort_goes_on_where_it_was_interrupted(adapter, weights, toy, tmp_path, monkeypatch):
    typed, out, table = (
        Typed(weights=str(weights)),
        tmp_path / "out",
        tmp_path / "tables" / "numbers.csv",
    )
    scans = sorted((toy / "imagesTr").glob("*.nii.gz"))[:3]

    def run(names: list[Path], **further: object) -> list[str]:
        """Which cases were really predicted."""
        seen: list[str] = []
        real = Predictor.probabilities

        def spying(self, scan, *given, **named):
            seen.append(scan.id)
            return real(self, scan, *given, **named)

        with monkeypatch.context() as patched:
            patched.setattr(Predictor, "probabilities", spying)
            statuses = predict(adapter, names, out, typed=typed, statistics=table, **further)
        assert [status.error for status in statuses] == [None] * len(names)
        return seen

    assert run(scans[:2]) == ["toy_0", "toy_1"]
    first = rows_of(table)
    assert run(scans) == ["toy_2"]
    found = rows_of(table)
    assert found[: len(first)] == first
    assert [(row["case"], row["label"]) for row in found] == [
        (f"toy_{n}", label) for n in range(3) for label in ("organ", "spot")
    ]
    mask = np.asarray(read_volume(out / "toy_2.nii.gz").array)
    grey = np.asarray(read_volume(scans[2]).array)
    index = (
        int(np.bincount(mask.ravel(), minlength=3)[1:].argmax()) + 1
    )  # of the two labels the one that was found
    row = found[3 + index]
    voxel = abs(np.linalg.det(read_volume(scans[2]).affine[:3, :3])) / 1000
    assert float(row["volume_ml"]) == pytest.approx(
        np.count_nonzero(mask == index) * voxel, abs=1e-3
    )
    assert float(row["mean_CT"]) == pytest.approx(grey[mask == index].mean(), rel=1e-4)
    assert (row["network"], row["kept"]) == ("adapted", "all")
    assert 0 <= float(row["confidence"]) <= 1
    # another rule, or another scan of the same name, is another prediction, and nothing is replaced
    # unasked
    with pytest.raises(UsageError, match="exists already"):
        run(scans, keep=["largest"])
    assert run(scans, keep=["largest"], overwrite=True) == ["toy_0", "toy_1", "toy_2"]
    assert {row["components"] for row in rows_of(table)} <= {"0", "1"}
    assert json.loads((out / "toy_0.json").read_text())["kept"] == {
        "organ": "largest",
        "spot": "largest",
    }
    assert run(scans, keep=["largest"]) == []
    assert len(rows_of(table)) == 6
    # a sidecar that somebody has edited is no earlier prediction
    edited = json.loads((out / "toy_1.json").read_text())
    edited["statistics"]["organ"] = 3
    (out / "toy_1.json").write_text(json.dumps(edited))
    with pytest.raises(UsageError, match=r"toy_1.* exists already"):
        run(scans, keep=["largest"])


def test_an_interrupted_cohort_leaves_the_table_of_what_is_done(
    adapter, weights, toy, tmp_path, monkeypatch
):
    real, table = Predictor.probabilities, tmp_path / "numbers.csv"

    def until_the_third(self, scan, *given, **named):
        if scan.id == "toy_2":
            raise KeyboardInterrupt
        return real(self, scan, *given, **named)

    monkeypatch.setattr(Predictor, "probabilities", until_the_third)
    scans = sorted((toy / "imagesTr").glob("*.nii.gz"))[:3]
    with pytest.raises(KeyboardInterrupt):
        predict(
            adapter, scans, tmp_path / "out", typed=Typed(weights=str(weights)), statistics=table
        )
    assert [row["case"] for row in rows_of(table)] == ["toy_0", "toy_0", "toy_1", "toy_1"]


def test_a_table_of_somebody_elses_is_not_replaced(adapter, weights, toy, tmp_path):
    table = tmp_path / "numbers.csv"
    table.write_text("patient,age\n1,2\n")
    with pytest.raises(UsageError, match="is no table of this adapter's statistics"):
        predict(
            adapter,
            [toy / "imagesTr"],
            tmp_path / "out",
            typed=Typed(weights=str(weights)),
            statistics=table,
        )
    assert table.read_text() == "patient,age\n1,2\n"
    assert not (tmp_path / "out").exists()
